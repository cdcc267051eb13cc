"""Maps errors that a user can cause to one line on stderr and an exit code. Other errors keep their traceback.

Exit codes: 0 done, 1 it failed, 2 for settings that cannot be used; typer adds 2 for a command used wrongly and 130
for Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from presage.user_error import UserError


class CommandError(UserError):
    """A command that cannot do what it was asked; the message is one line that says what to change."""


def one_line(error: BaseException) -> str:
    """What to tell the user of an error."""
    if isinstance(error, OSError) and error.strerror:
        named = f"{error.filename}: " if error.filename is not None else ""
        return f"{named}{error.strerror[:1].lower()}{error.strerror[1:]}"
    return " ".join(str(error).split()) or type(error).__name__


def run(command: Callable[[], None]) -> int:
    """The exit code of a command that was run here; its errors are told on stderr."""
    try:
        command()
    except (UserError, OSError) as error:
        sys.stderr.write(f"presage: {one_line(error)}\n")
        return 2 if type(error).__name__ == "SettingsError" else 1
    return 0
