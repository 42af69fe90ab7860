"""``python -m vidi`` is ``vidi``: what ``torchrun -m vidi`` starts."""

import sys

from vidi.cli import main

if __name__ == "__main__":
    sys.exit(main())
