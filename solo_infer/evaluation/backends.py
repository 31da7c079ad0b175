"""Implementations of COCO's evaluation: faster-coco-eval if it is installed, else pycocotools."""

from __future__ import annotations

import logging
from functools import cache, partial
from types import FunctionType
from typing import Any, NamedTuple

from solo_infer.runtime.messages import describe_error

logger = logging.getLogger(__name__)


class Backend(NamedTuple):
    """Classes of an implementation, which do not print.

    Attributes:
        name: Name of the package.
        coco: ``COCO``, called without arguments.
        evaluator: ``COCOeval``, called with ``iouType``.
    """

    name: str
    coco: Any
    evaluator: Any


@cache
def select_backend() -> Backend:
    """Return the fastest implementation that is installed; all give the same numbers."""
    try:
        return faster_coco_eval()
    except ModuleNotFoundError as error:
        if error.name != "faster_coco_eval":
            _report_broken(error)
    except (ImportError, OSError) as error:
        _report_broken(error)
    return pycocotools()


def _report_broken(error: Exception) -> None:
    logger.warning(
        "faster-coco-eval is installed but does not work (%s): pycocotools is used.", describe_error(error)
    )


def faster_coco_eval() -> Backend:
    """Return faster-coco-eval's classes, whose matching and accumulation are in C++.

    Raises:
        ImportError: It is not installed, or broken.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    return Backend(
        "faster-coco-eval",
        partial(COCO, print_function=_ignore),
        partial(COCOeval_faster, print_function=_ignore),
    )


def pycocotools() -> Backend:
    """Return subclasses of pycocotools' classes that do not print.

    ``contextlib.redirect_stdout`` would also drop what other threads print in the meantime, so each method is
    copied with a ``print`` that does nothing among its globals.
    """
    from pycocotools import coco, cocoeval

    return Backend("pycocotools", _without_print(coco.COCO), _without_print(cocoeval.COCOeval))


def _ignore(*values: object, **options: object) -> None:
    """Print nothing."""


def _without_print(cls: type) -> type:
    def silence(method: FunctionType) -> FunctionType:
        variables = {**method.__globals__, "print": _ignore}
        return FunctionType(
            method.__code__, variables, method.__name__, method.__defaults__, method.__closure__
        )

    methods = {name: silence(item) for name, item in vars(cls).items() if isinstance(item, FunctionType)}
    return type(cls.__name__, (cls,), methods)
