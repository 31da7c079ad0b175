"""What the verbs say to people and to machines."""

from __future__ import annotations

import json
import sys
from typing import Any

WRONG_USAGE = 2  # the exit code of wrong usage, as argparse has it


def say(message: str) -> None:
    """Tell people something, on standard error."""
    print(f"solo-infer: {message}", file=sys.stderr, flush=True)


def fail(error: Exception) -> int:
    """Tell what went wrong and return the exit code."""
    say(f"{type(error).__name__}: {error}")
    return 1


def print_text(text: str) -> None:
    """Print with escapes for what the output's encoding lacks (in names of files or classes)."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def print_json(value: Any) -> None:
    """Print a JSON-ready value."""
    print(json.dumps(value, indent=2, allow_nan=False))
