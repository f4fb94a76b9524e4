#!/usr/bin/env python3
"""Trains a model. `python train.py` alone takes minutes on a CPU; `python train.py --help` says what else it can do."""

import sys

from tfdecouple.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
