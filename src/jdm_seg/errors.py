"""What a user can put right.

Every message follows one grammar: which case or file, what was expected, what was found, what to do.
"""

from __future__ import annotations

from pathlib import Path


class InputError(ValueError):
    """Something that was given cannot be used; the message says what to do about it.

    The command line prints the message alone, without a traceback. Anything else that escapes is a bug of ours
    and keeps its traceback.
    """

    def __init__(self, where: str | Path, *, expected: str = "", found: str = "", remedy: str = "") -> None:
        """Compose the message.

        Args:
            where: The case, file or option at fault. A path is reduced to its last part: parents may name a patient.
                Alone, it is taken as a finished message: OmegaConf re-raises errors that way.
            expected: What would have been right.
            found: What is there instead.
            remedy: What the reader can do.
        """
        name = where.name if isinstance(where, Path) else where
        super().__init__(f"{name}: expected {expected}, found {found}; {remedy}." if expected else name)


class GridMismatchError(InputError):
    """Two volumes that must share a voxel grid do not."""


class CaseNotFoundError(InputError, FileNotFoundError):
    """A scan, label or folder that should exist does not."""

    def __str__(self) -> str:
        """Return the composed message (``FileNotFoundError`` would format its arguments as an errno)."""
        return str(self.args[0])


def reason_of(error: BaseException) -> str:
    """Return why something failed in one line; of a system error without the path, which may name a patient."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError):
        return f"{type(error).__name__}: {error.strerror or 'the file cannot be used'}"
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
