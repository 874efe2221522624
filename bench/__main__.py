"""`python -m lstmfast.bench` is `lstmfast bench`."""

import sys

from lstmfast.command.main import main

sys.exit(main(["bench", *sys.argv[1:]]))
