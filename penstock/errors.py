"""Every error penstock raises on purpose.

    PenstockError
    +-- UsageError (ValueError)                 a flag, an argument or a setting is wrong; nothing was started
    |   +-- MissingExtra (ImportError)          an optional package is needed: the message names the extra
    |   +-- SchemaError                         a field or a schema is contradictory, or not the one expected
    |   +-- SourceNotFound (FileNotFoundError)  the path of a source or of a store holds none
    |   +-- OutputRefused (FileExistsError)     the output is something else's, or cannot be written; nothing was touched
    |   +-- RecipeMismatch                      the store was made by another recipe; the differences are named
    |   +-- StateMismatch                       a saved loader state belongs to other data or other settings
    +-- StoreError
    |   +-- StoreCorrupt (OSError)              bytes on disk are fewer, or other, than the manifest says
    |   +-- StoreUnsupported (ValueError)       the store needs a feature that this version does not know
    |   +-- PartClaimed (BlockingIOError)       another driver holds the part; the message says who
    |   +-- OutputFull (OSError)                the disk or a quota is full; committed rows are kept
    +-- RowError (LookupError)
    |   +-- RowMissing                          the row was never computed
    |   +-- RowFailed                           the row was tried and failed; the message carries the recorded reason
    +-- BadData (ValueError)                    bytes were read, and what they say is wrong: the row fails, the rest goes on
    +-- NotFinite (ArithmeticError)             a loss or a gradient is NaN or infinite; the message names the samples
    +-- WorkersLost (RuntimeError)              every worker was killed from outside before one had begun; nothing is lost
    +-- BudgetExceeded (RuntimeError)           more rows failed than the budget allows

Each class also inherits the built-in one that a caller would catch. A message says what, where, what was expected, what
was found, and what to do.
"""


class PenstockError(Exception):
    """Base of every error raised on purpose by penstock."""


class UsageError(PenstockError, ValueError):
    """A flag, an argument or a setting is wrong. The caller is at fault; nothing was started."""


class MissingExtra(UsageError, ImportError):
    """An optional package is missing."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package}: pip install 'penstock[{extra}]'")
        self.needed = package, extra, purpose

    def __reduce__(self) -> tuple[type["MissingExtra"], tuple[str, str, str]]:
        """Pickled with what it was made of: workers send it to their driver."""
        return type(self), self.needed


class SchemaError(UsageError):
    """A field or a schema is contradictory, or a record does not fit it."""


class SourceNotFound(UsageError, FileNotFoundError):
    """The path given holds no such source or store."""


class OutputRefused(UsageError, FileExistsError):
    """The output path holds something else, or cannot be written. Nothing was touched."""


class RecipeMismatch(UsageError):
    """The store was made with another recipe; the message names each difference."""


class StateMismatch(UsageError):
    """A saved state belongs to other data or other settings; the message names each difference."""


class StoreError(PenstockError):
    """Base of what can go wrong with a store on disk."""


class StoreCorrupt(StoreError, OSError):
    """Bytes on disk are fewer, or other, than the manifest says."""


class StoreUnsupported(StoreError, ValueError):
    """The store needs a feature that this version does not know."""


class PartClaimed(StoreError, BlockingIOError):
    """Another driver holds the part."""


class OutputFull(StoreError, OSError):
    """The disk or a quota is full. Committed rows are kept; run the same command again once there is room."""


class RowError(PenstockError, LookupError):
    """Base of what `store[i]` raises for a row that holds nothing."""


class RowMissing(RowError):
    """The row is planned and was never computed."""


class RowFailed(RowError):
    """The row was tried and failed; the message carries the recorded reason."""


class BadData(PenstockError, ValueError):
    """Bytes were read, and what they say is wrong. The row fails, the rest goes on."""


class BudgetExceeded(PenstockError, RuntimeError):
    """More rows failed than the budget allows."""


class NotFinite(PenstockError, ArithmeticError):
    """A loss or a gradient is NaN or infinite. The weights are those before the step; the message names the samples."""


class WorkersLost(PenstockError, RuntimeError):
    """Every worker of a run was killed from outside before one of them had begun. What was committed is kept."""
