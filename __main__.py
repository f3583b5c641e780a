"""`python -m kinograph` is the command `kinograph`."""

import sys

from kinograph.cli import main

if __name__ == "__main__":
    sys.exit(main())
