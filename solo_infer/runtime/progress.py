"""Progress bars on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

HIDE = "TQDM_DISABLE"  # environment variable that hides all progress bars


def progress_bar(iterable: Iterable[Any] | None = None, *, enabled: bool = True, **options: Any) -> Any:
    """Return a tqdm bar that is shown on a terminal only, and never if ``TQDM_DISABLE`` is set.

    Programs without a console, whose ``sys.stderr`` is None, have no bar either.

    Args:
        iterable: Items to count; None for a bar that is updated by hand.
        enabled: Whether the bar may be shown.
        options: Other arguments of ``tqdm``.
    """
    from tqdm import tqdm

    has_no_console = sys.stderr is None and "file" not in options
    is_hidden = not enabled or has_no_console or os.environ.get(HIDE, "") not in ("", "0")
    return tqdm(iterable, disable=True if is_hidden else None, **options)
