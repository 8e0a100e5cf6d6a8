"""`python -m ahkernels` is the command `ahkernels`."""

import sys

from ahkernels.command_line import main

if __name__ == "__main__":
    sys.exit(main())
