"""`python -m lstmfast`: the same as the command `lstmfast`."""

import sys

from lstmfast.command.main import main

if __name__ == "__main__":
    sys.exit(main())
