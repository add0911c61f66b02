"""Names of readers, stages and launchers, each a "module:attribute" that is imported when asked for; outside packages add
theirs through the entry points `penstock.readers`, `penstock.stages` and `penstock.launchers`."""

from importlib import import_module
from importlib.metadata import entry_points

from penstock.errors import UsageError

TABLES: dict[str, dict[str, str]] = {
    "readers": {"sa1b-tar": "penstock.readers.sa1b_tar:open_sa1b_tars"},
    "stages": {"sa1b-convert": "penstock.stages.convert:Sa1bConvert"},
    "launchers": {"inline": "penstock.launch.local:Inline", "local": "penstock.launch.local:Local"},
}


def names(kind: str) -> list[str]:
    """Names known of a kind ("readers", "stages", "launchers"), sorted."""
    return sorted({*_table(kind), *(point.name for point in entry_points(group=f"penstock.{kind}"))})


def find(kind: str, name: str) -> object:
    """Imports what is registered under a name.

    Raises:
        UsageError: nothing is; the names that are known are listed.
    """
    known = _table(kind)
    if name in known:
        module, _, attribute = known[name].partition(":")
        found: object = getattr(import_module(module), attribute)
        return found
    for point in entry_points(group=f"penstock.{kind}", name=name):
        outside: object = point.load()
        return outside
    raise UsageError(f"no {kind.removesuffix('s')} {name!r}; known: {', '.join(names(kind))}")


def _table(kind: str) -> dict[str, str]:
    if kind not in TABLES:
        raise UsageError(f"no table {kind!r}; there are {', '.join(TABLES)}")
    return TABLES[kind]
