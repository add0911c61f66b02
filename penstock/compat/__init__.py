"""The public names of the seeds' Python interfaces, over penstock's own. Each is imported on first use.

distill.py         BinaryDistillDataset, collate_distill
distill_open.py    its checks when a folder is opened
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.compat.distill import BinaryDistillDataset, collate_distill

_HOMES = {
    "BinaryDistillDataset": "distill",
    "collate_distill": "distill",
}

__all__ = ["BinaryDistillDataset", "collate_distill"]


def __getattr__(name: str) -> object:
    """Loads a public name's module on first use: `import penstock.compat` itself imports nothing heavy."""
    if name not in _HOMES:
        raise AttributeError(f"module 'penstock.compat' has no attribute {name!r}")
    value = getattr(import_module(f"penstock.compat.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
