"""The root of every error that a user can cause. Imports nothing, so that any part of Presage can raise one."""

from __future__ import annotations


class UserError(Exception):
    """Something a user can change; the message is one line that names what, the rule and the value.

    Commands print it and end with exit code 1. Everything else that is raised is a bug and keeps its traceback.
    """
