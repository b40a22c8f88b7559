"""`python -m safe_refs` is the command `safe-refs`: for environments whose scripts are not on the path."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
