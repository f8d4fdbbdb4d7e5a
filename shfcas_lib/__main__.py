"""`python -m shfcas_lib`: the command line of module cli."""

import sys

from shfcas_lib.cli.program import main

if __name__ == "__main__":
    sys.exit(main())
