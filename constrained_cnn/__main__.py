"""``python -m constrained_cnn``: the command line."""

import sys

from constrained_cnn.cli import main

if __name__ == "__main__":
    sys.exit(main())
