"""``python -m solo_infer``: the same as ``solo-infer``."""

import sys

from solo_infer.cli import main

if __name__ == "__main__":
    sys.exit(main())
