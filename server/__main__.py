"""`python -m server` serves what the PRESAGE_* variables say; `presage serve` adds flags and a file."""

import sys

from server.serving import main

if __name__ == "__main__":
    sys.exit(main())
