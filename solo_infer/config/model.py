"""Configuration of a whole model: everything but the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from solo_infer.config import legacy
from solo_infer.config.architecture import ArchitectureConfig, BasePostprocessConfig
from solo_infer.config.categories import COCO, Categories
from solo_infer.config.families import FAMILIES, family_of
from solo_infer.config.preprocess import PreprocessConfig
from solo_infer.config.solo import PostprocessConfig, SOLOConfig
from solo_infer.config.validation import bounded_repr, require, require_choice, require_instance
from solo_infer.errors import ConfigError

FORMAT = "solo_infer/2"
WEIGHTS_ID = "weights_id"  # entry of a config.json that names the weights beside it; no setting

_Config = TypeVar("_Config")


@dataclass(frozen=True)
class ModelConfig:
    """Everything but the weights; the content of ``config.json`` in a saved model.

    Attributes:
        architecture: Architecture of the network.
        preprocessing: From an image to a network input.
        thresholds: Post-processing settings, of the family of the architecture.
        categories: Class names and category ids.
    """

    architecture: ArchitectureConfig = field(default_factory=SOLOConfig)
    preprocessing: PreprocessConfig = field(default_factory=PreprocessConfig)
    thresholds: BasePostprocessConfig = field(default_factory=PostprocessConfig)
    categories: Categories = COCO

    def __post_init__(self) -> None:
        require_instance("architecture", self.architecture, ArchitectureConfig)
        require_instance("preprocessing", self.preprocessing, PreprocessConfig)
        require_instance("categories", self.categories, Categories)
        expected = family_of(self.architecture).postprocess
        is_shared = type(self.thresholds) in expected.__mro__[1:]  # the settings of several families
        if is_shared and isinstance(self.thresholds, BasePostprocessConfig):
            shared = dataclasses.asdict(self.thresholds)
            object.__setattr__(self, "thresholds", expected(**shared))
        require(
            isinstance(self.thresholds, expected),
            f"thresholds are {type(self.thresholds).__name__}: a {self.architecture.name} model takes "
            f"{expected.__name__}.",
        )
        names, classes = len(self.categories), self.architecture.num_classes
        require(names == classes, f"{names} category names for a model of {classes} classes.")

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON-ready values."""
        return {"format": FORMAT, "family": self.architecture.family, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Read what ``to_dict`` of this or an earlier version wrote.

        Raises:
            ConfigError: The format is unknown, or a field is unknown or wrong.
        """
        require(isinstance(values, Mapping), f"{type(values).__name__}: expected an object of settings.")
        sections = legacy.upgrade(values)
        sections.pop(WEIGHTS_ID, None)
        written = sections.pop("format", None)
        require(written == FORMAT, f"format={bounded_repr(written)}: expected {FORMAT!r}.")
        name = sections.pop("family", None)
        require_choice("family", name, FAMILIES)
        types: dict[str, Any] = {
            "architecture": FAMILIES[name].architecture,
            "preprocessing": PreprocessConfig,
            "thresholds": FAMILIES[name].postprocess,
            "categories": Categories,
        }
        unknown = sorted(set(sections) - set(types))
        require(not unknown, f"Unknown section(s) {unknown}: expected {sorted(types)}.")
        # A section that is left out takes the defaults of its family.
        values = {name: sections.get(name, {}) for name in ("architecture", "thresholds")} | sections
        return cls(
            **{name: _build(section, values[name]) for name, section in types.items() if name in values}
        )


def _build(section: type[_Config], values: Any) -> _Config:
    """Build a dataclass from JSON values; name what is wrong with them."""
    name = section.__name__
    require(isinstance(values, Mapping), f"{name}: expected an object, got {type(values).__name__}.")
    known = {item.name for item in dataclasses.fields(section)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    require(not unknown, f"{name}: unknown field(s) {unknown}; expected {sorted(known)}.")
    tuples = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    try:
        return section(**tuples)
    except ConfigError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{name}: a value is wrong ({error}) in {bounded_repr(dict(values))}.") from error
