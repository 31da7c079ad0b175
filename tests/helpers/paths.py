"""Paths of the checkout."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
DATA = TESTS / "data"
EXAMPLES = ROOT / "examples"
KIT = ROOT.parent / "shared" / "reference"  # mmdet's full results; beside some checkouts only
