"""`python -m cli` is the `presage` command, for processes that Presage starts itself."""

from __future__ import annotations

from cli.main import main

if __name__ == "__main__":
    main()
