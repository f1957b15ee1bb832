"""``python -m constrained_cnn``: the command line."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        # Python has put the current folder in front, where a file random.py would be run in place
        # of the standard module. The installed command has no such folder; so neither has this.
        del sys.path[0]
    from constrained_cnn.cli import main

    sys.exit(main())
