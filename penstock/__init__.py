"""penstock: the training-data engine for segmentation, tracking and distillation. Five systems on one store."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if sys.platform == "win32":
    raise ImportError("penstock runs on Linux (in full) and macOS (best effort), not on Windows; WSL 2 is Linux")

__version__ = "0.1.0.dev0"

_HOMES = {
    "BadData": "errors",
    "Concat": "source",
    "ConvertConfig": "convert",
    "Epochs": "samplers",
    "Field": "schema",
    "Group": "source",
    "Loader": "loader",
    "Map": "source",
    "PenstockError": "errors",
    "Record": "schema",
    "Schema": "schema",
    "Source": "source",
    "Store": "store",
    "Subset": "source",
    "convert_sa1b_tar": "convert",
    "open_source": "registry",
    "open_sources": "registry",
    "open_store": "store",
    "write_store": "store",
}

__all__ = [
    "BadData",
    "Concat",
    "ConvertConfig",
    "Epochs",
    "Field",
    "Group",
    "Loader",
    "Map",
    "PenstockError",
    "Record",
    "Schema",
    "Source",
    "Store",
    "Subset",
    "convert_sa1b_tar",
    "open_source",
    "open_sources",
    "open_store",
    "write_store",
]

if TYPE_CHECKING:
    from penstock.convert import ConvertConfig, convert_sa1b_tar
    from penstock.errors import BadData, PenstockError
    from penstock.loader import Loader
    from penstock.registry import open_source, open_sources
    from penstock.samplers import Epochs
    from penstock.schema import Field, Record, Schema
    from penstock.source import Concat, Group, Map, Source, Subset
    from penstock.store import Store, open_store, write_store


def __getattr__(name: str) -> object:
    """Loads a public name's module on first use: `import penstock` itself imports nothing heavy."""
    if name not in _HOMES:
        raise AttributeError(f"module 'penstock' has no attribute {name!r}")
    value = getattr(import_module(f"penstock.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
