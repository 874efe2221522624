"""`python -m lstmfast`: the same as the command `lstmfast`."""

import sys

from lstmfast.cli import main

if __name__ == "__main__":
    sys.exit(main())
