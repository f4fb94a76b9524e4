"""The entry point of `python -m export`."""

import os
import sys

if __name__ == "__main__":
    # `python -m` puts the working folder first, whose files are not to be imported. The folder of this package is
    # needed if it is not installed.
    sys.path[:] = [folder for folder in sys.path if os.path.realpath(folder) != os.getcwd()]
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

    from tfdecouple.cli import main

    sys.exit(main(["export", *sys.argv[1:]]))
