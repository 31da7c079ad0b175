"""Run the command line: ``python -m solo_infer`` is ``solo-infer``."""

import sys

from solo_infer.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
