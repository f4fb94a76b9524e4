"""`python -m export`."""

import sys

from tfdecouple.runtime.process import import_nothing_from_here

import_nothing_from_here()

from export.cli import main  # noqa: E402 - not before

if __name__ == "__main__":
    sys.exit(main())
