"""The two ways a command ends badly.

A :class:`UserError` is something its reader can mend (exit code 2, one or two lines, no traceback);
anything else is a fault of the program (exit code 1).
"""

from __future__ import annotations


class UserError(Exception):
    """What was found, where, and what to do about it, in one or two lines."""
