"""Progress bars on standard error."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

HIDE = "TQDM_DISABLE"  # environment variable that hides all progress bars


def progress_bar(iterable: Iterable[Any] | None = None, *, enabled: bool = True, **options: Any) -> Any:
    """Return a tqdm bar that is shown on a terminal only, and never if ``TQDM_DISABLE`` is set.

    Args:
        iterable: Items to count; None for a bar that is updated by hand.
        enabled: Whether the bar may be shown.
        options: Other arguments of ``tqdm``.
    """
    from tqdm import tqdm

    is_hidden = not enabled or os.environ.get(HIDE, "") not in ("", "0")
    return tqdm(iterable, disable=True if is_hidden else None, **options)
