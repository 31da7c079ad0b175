"""Parsers whose errors suggest the option or the command that was meant."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from solo_infer.config import keywords
from solo_infer.config.suggestions import closest, did_you_mean
from solo_infer.runtime.messages import escaped

# Options of other programs, and ours in order of preference.
_FOREIGN_OPTIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(keywords.SCORE_KEYWORDS, ("--min-score",)),
    **dict.fromkeys(keywords.SIZE_KEYWORDS, ("--input-size", "--crop-size")),
    **dict.fromkeys(keywords.COUNT_KEYWORDS, ("--max-detections",)),
    **dict.fromkeys(keywords.IOU_KEYWORDS, ("--nms-iou",)),
    **dict.fromkeys(keywords.AGNOSTIC_KEYWORDS, ("--across-classes",)),
    **dict.fromkeys(keywords.CLASS_KEYWORDS, ("--classes",)),
    **dict.fromkeys(keywords.SAVE_KEYWORDS, ("--output", "--save-json", "--save-chart")),
    **dict.fromkeys(keywords.EXPORT_KEYWORDS, ("--save-json", "--json")),
    **dict.fromkeys(keywords.HALF_KEYWORDS, ("--dtype",)),
    **dict.fromkeys(keywords.NAME_KEYWORDS, ("--model", "--config")),
    **dict.fromkeys(("gpu", "cuda", "gpus", "device_id"), ("--device",)),
    **dict.fromkeys(("batch", "bs", "samples_per_gpu"), ("--batch-size",)),
    **dict.fromkeys(("nosave", "dont_save"), ("--no-save",)),
    **dict.fromkeys(("data", "ann", "anns", "ann_file", "gt", "dataset"), ("--annotations",)),
    **dict.fromkeys(("img_dir", "image_dir", "image_folder", "img_folder"), ("--images",)),
    **dict.fromkeys(("epoch", "max_epochs", "num_epochs"), ("--epochs",)),
    **dict.fromkeys(("lr0", "learning_rate"), ("--lr",)),
    **dict.fromkeys(("num_workers", "nw", "threads"), ("--workers",)),
    **dict.fromkeys(("silent", "no_progress"), ("--quiet",)),
}
_INPUT_OPTIONS = (*keywords.IMAGE_KEYWORDS, "source", "sources", "video", "webcam")
_FOREIGN_COMMANDS = {
    **dict.fromkeys(("segment", "detect", "infer", "inference", "run", "test_image"), "predict"),
    **dict.fromkeys(("serve", "web", "webui", "ui", "app", "gui", "gradio"), "demo"),
    **dict.fromkeys(("val", "validate", "test", "evaluate", "score"), "eval"),
    **dict.fromkeys(("fit", "finetune", "fine-tune", "fine_tune", "training"), "train"),
    **dict.fromkeys(("bench", "speed", "profile"), "benchmark"),
    **dict.fromkeys(("list", "ls", "zoo"), "models"),
    **dict.fromkeys(("describe", "show", "summary"), "info"),
    **dict.fromkeys(("get", "fetch", "pull"), "download"),
    **dict.fromkeys(("onnx",), "export"),
    **dict.fromkeys(("checks", "check", "env", "environment", "collect_env"), "doctor"),
}


class Parser(argparse.ArgumentParser):
    """Parser whose errors repeat arguments without their control characters."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the error, and exit with code 2."""
        super().error(escaped(message))


class ProgramParser(Parser):
    """Parser of the program, which suggests commands.

    Attributes:
        commands: Parsers of the commands by name, from ``set_commands``.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands: dict[str, CommandParser] = {}

    def set_commands(self, commands: dict[str, CommandParser]) -> None:
        """Set the parsers of the commands by name."""
        self.commands = commands
        for parser in commands.values():
            parser.siblings = commands

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse arguments; see ``argparse``."""
        arguments = list(sys.argv[1:] if args is None else args)
        first = arguments[0] if arguments else ""
        if first.startswith("-") and first.partition("=")[0] not in self._option_string_actions:
            self.error(
                f"unrecognized arguments: {first}. Options follow the command: solo-infer COMMAND {first}"
            )
        if first and not first.startswith("-") and first not in self.commands:
            self.error(f"unknown command {first!r}. {_command_hint(first, list(self.commands))}")
        return super().parse_known_args(arguments, namespace)


class CommandParser(Parser):
    """Parser of one command, which suggests options.

    Attributes:
        siblings: Parsers of all commands by name.
    """

    siblings: dict[str, CommandParser]

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse arguments; unknown options are reported before arguments that are missing."""
        arguments = list(sys.argv[1:] if args is None else args)
        options = arguments[: arguments.index("--")] if "--" in arguments else arguments
        if not {"-h", "--help"} & set(options):
            self._refuse([text for text in options if self._is_unknown(text)])
        parsed, unknown = super().parse_known_args(arguments, namespace)
        self._refuse([text for text in unknown if text.startswith("-")] or unknown)
        return parsed, unknown

    def _is_unknown(self, text: str) -> bool:
        """Return whether argparse takes an argument for a long option that the command does not have."""
        return text.startswith("--") and " " not in text and text.partition("=")[0] not in self.options()

    def options(self) -> list[str]:
        """Return the names of the options with two dashes."""
        return [option for option in self._option_string_actions if option.startswith("--")]

    def _refuse(self, unknown: Sequence[str]) -> None:
        if unknown:
            hint = self._hint(unknown[0].partition("=")[0])
            self.error(f"unrecognized arguments: {' '.join(unknown)}{'. ' if hint else ''}{hint}")

    def _hint(self, option: str) -> str:
        """Return a sentence about the option that was meant, "" for arguments that are no options."""
        if not option.startswith("-"):
            return ""
        name = option.lstrip("-").lower().replace("-", "_")
        known = self.options()
        ours = [candidate for candidate in _FOREIGN_OPTIONS.get(name, ()) if candidate in known]
        if ours:
            return f"Did you mean {ours[0]!r}?"
        if name in _INPUT_OPTIONS and any(action.dest == "sources" for action in self._actions):
            return f"Files, folders and URLs are passed without an option: {self.prog} photo.jpg"
        others = [command for command, parser in self.siblings.items() if option in parser.options()]
        if others:
            return f"{option} is an option of {' and '.join(map(repr, others))}."
        own = did_you_mean(f"--{option.lstrip('-')}", known)
        return own.strip() or f"'{self.prog} --help' lists the options."


def _command_hint(name: str, commands: list[str]) -> str:
    """Return sentences about the command that was meant."""
    meant = _FOREIGN_COMMANDS.get(name.lower()) or closest(name, commands)
    if meant:
        return f"Did you mean {meant!r}?"
    if os.path.exists(name) or "." in name or "/" in name:
        return f"Did you mean 'solo-infer predict {name}'?"
    return f"Commands: {', '.join(commands)}."
