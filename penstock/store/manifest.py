"""store.json: the schema, the attributes, the recipe and the parts of a store; replaced atomically, never edited."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from penstock.errors import RecipeMismatch, SchemaError, SourceNotFound, StoreCorrupt, StoreUnsupported
from penstock.schema import Field, Schema
from penstock.store.disk import Disk

Read = TypeVar("Read")

NAME = "store.json"
FORMAT_VERSION = 1
KNOWN_INCOMPAT: frozenset[str] = frozenset()
"""Features that a reader must know. None yet."""
KNOWN_READ_COMPAT: frozenset[str] = frozenset()
"""Features that a writer must know. None yet."""


@dataclass(frozen=True, kw_only=True)
class PartEntry:
    """One part as the manifest knows it."""

    name: str
    """Folder; "part-00003", or "part-00003.1" after rows of the sealed part were recomputed."""
    rows: int
    """Rows planned. Of a part that still grows: rows it has room for."""
    growing: bool = False
    """Whether keys are still added; its rows are then those up to the last committed one."""
    sealed: bool = False
    done: int = 0
    """Done rows, once sealed."""
    failed: int = 0
    """Failed rows, once sealed."""
    blob_bytes: Mapping[str, int] = field(default_factory=dict)
    """Size of each canonical blob, by field, once sealed."""
    digest: str = ""
    """xxh3_128 of `_rows.bin` and `keys.txt`, once sealed."""
    draft: str = ""
    """Folder of the next version, while rows of this sealed part are recomputed."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The whole of store.json."""

    schema: Schema
    attributes: Mapping[str, object] = field(default_factory=dict)
    identity: Mapping[str, object] = field(default_factory=dict)
    """What defines the rows: stage and version, parameters, model and weights. Another identity is refused."""
    provenance: Mapping[str, object] = field(default_factory=dict)
    """Library versions, host, times. Recorded, not compared."""
    parts: tuple[PartEntry, ...] = ()
    features: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """compat: nobody need know them; read_compat: a writer must; incompat: a reader must, too."""

    def save(self, disk: Disk, folder: Path) -> None:
        """Replaces store.json, atomically and flushed."""
        content = {
            "format": "penstock",
            "version": FORMAT_VERSION,
            "features": {name: sorted(self.features.get(name, ())) for name in ("compat", "read_compat", "incompat")},
            "schema": self.schema.to_json(),
            "attributes": dict(self.attributes),
            "recipe": {
                "identity": dict(self.identity),
                "digest": digest_identity(self.identity),
                "provenance": dict(self.provenance),
            },
            "parts": [asdict(part) for part in self.parts],
        }
        disk.replace(folder / NAME, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Reads store.json.

        Raises:
            SourceNotFound: there is none.
            StoreUnsupported: it was written by a later version, or needs a feature that this one does not know.
            StoreCorrupt: it is not what a store.json is.
        """
        path = folder / NAME
        try:
            content = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise SourceNotFound(f"{path}: no such file; expected a penstock store in {folder}") from error
        except ValueError as error:
            raise StoreCorrupt(f"{path}: expected JSON: {error}") from error
        _check_format(path, content)
        recipe = content["recipe"]
        try:
            return cls(
                schema=Schema.from_json(content["schema"]),
                attributes=content["attributes"],
                identity=recipe["identity"],
                provenance=recipe["provenance"],
                parts=tuple(PartEntry(**part) for part in content["parts"]),
                features=content.get("features", {}),
            )
        except (TypeError, KeyError, SchemaError) as error:
            raise StoreUnsupported(
                f"{path}: not as this penstock knows it ({error}); written by a later one?"
            ) from error

    def with_part(self, entry: PartEntry) -> "Manifest":
        """This manifest with the entry in the place of the one of the same number, or added at the end."""
        stem = entry.name.split(".")[0]
        parts = list(self.parts)
        for number, part in enumerate(parts):
            if part.name.split(".")[0] == stem:
                parts[number] = entry
                return replace(self, parts=tuple(parts))
        return replace(self, parts=(*parts, entry))

    def check_identity(self, folder: Path, identity: Mapping[str, object], schema: Schema) -> None:
        """Compares the recipe and the schema of a run with the store's.

        Raises:
            RecipeMismatch: they differ; the message names each difference.
        """
        unknown = sorted(set(self.features.get("read_compat", ())) - KNOWN_READ_COMPAT)
        if unknown:
            raise StoreUnsupported(f"{folder}: to write here a penstock must know {', '.join(unknown)}; upgrade it")
        changed = [name for name in (*self.schema, *schema) if self.schema.get(name) != schema.get(name)]
        if changed:
            lines = [
                f"{name}: {_difference(self.schema.get(name), schema.get(name))}" for name in dict.fromkeys(changed)
            ]
            raise RecipeMismatch(
                f"{folder} has another schema; use it, or another output folder:\n  " + "\n  ".join(lines)
            )
        ours = json.loads(json.dumps(identity))
        if digest_identity(ours) == digest_identity(self.identity):
            return
        before, now = flat(self.identity), flat(ours)
        names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
        lines = [f"{name}: store {before.get(name)!r}, now {now.get(name)!r}" for name in names]
        raise RecipeMismatch(
            f"{folder} was made with another recipe; use it, or another output folder:\n  " + "\n  ".join(lines)
        )


def read_steadily(path: Path, read: Callable[[Manifest], Read]) -> Read:
    """Reads what the manifest of a store names: again where a part was sealed, or replaced, by its writer meanwhile.

    Raises:
        SourceNotFound, StoreUnsupported, StoreCorrupt: as `Manifest.load`, and what `read` raises.
    """
    while True:
        manifest = Manifest.load(path)
        try:
            return read(manifest)
        except (StoreCorrupt, FileNotFoundError):
            if Manifest.load(path) == manifest:
                raise


def _difference(before: Field | None, now: Field | None) -> str:
    """What differs between a field of the store and the same of the run."""
    if before is None or now is None:
        return "not in the store" if before is None else "only in the store"
    left, right = asdict(before), asdict(now)
    return "; ".join(f"{name}: store {left[name]}, now {right[name]}" for name in left if left[name] != right[name])


def digest_identity(identity: Mapping[str, object]) -> str:
    """SHA-256 of the canonical JSON of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _check_format(path: Path, content: object) -> None:
    if not isinstance(content, dict) or content.get("format") != "penstock":
        raise StoreCorrupt(f"{path}: expected the manifest of a penstock store")
    version = content.get("version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise StoreUnsupported(
            f"{path}: format version {version!r}, this penstock reads up to {FORMAT_VERSION}; upgrade it"
        )
    unknown = sorted(set(content.get("features", {}).get("incompat", [])) - KNOWN_INCOMPAT)
    if unknown:
        raise StoreUnsupported(f"{path}: needs the features {', '.join(unknown)}, unknown to this penstock; upgrade it")
    missing = sorted({"schema", "attributes", "recipe", "parts"} - set(content))
    if missing:
        raise StoreCorrupt(f"{path}: lacks {', '.join(missing)}")


def flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested plain values under names with dots: what differs between two recipes is said by its own name."""
    found: dict[str, object] = {}
    for name, value in values.items():
        found.update(
            flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else {f"{prefix}{name}": value}
        )
    return found
