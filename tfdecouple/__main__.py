"""The entry point of `python -m tfdecouple`, which runs the command line."""

import sys

from tfdecouple.cli import main

if __name__ == "__main__":
    sys.exit(main())
