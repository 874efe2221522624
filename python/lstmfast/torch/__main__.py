"""`python -m lstmfast.torch [--report] SCRIPT.py [ARGS]`, or `-m MODULE [ARGS]`: see `program`."""

import sys

from lstmfast.torch.program import main

if __name__ == "__main__":
    main(sys.argv[1:])
