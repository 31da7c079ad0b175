"""Options of ``Result.plot`` as a type."""

from __future__ import annotations

import os
from typing import TypedDict

import numpy as np


class PlotOptions(TypedDict, total=False):
    """Keyword arguments of ``Result.plot``, which ``Result.save`` accepts too."""

    image: np.ndarray | None
    min_score: float | None
    alpha: float
    boxes: bool
    captions: bool
    font: str | os.PathLike[str] | None
