"""The program `python -m tfdecouple`, which runs the command `tfdecouple`."""

import sys

from tfdecouple.cli import main

if __name__ == "__main__":
    sys.exit(main())
