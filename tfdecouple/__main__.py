"""`python -m tfdecouple`."""

import sys

from tfdecouple.cli import main

sys.exit(main())
