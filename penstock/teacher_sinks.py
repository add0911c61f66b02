"""What a teacher writes besides a store: v1 directories, TARs of pictures and NPZ files, and such files in a folder.

DIR/sa1b_shard_00000.tar          <id>.jpg and <id>_features.npz of each picture, in order; there once it is whole
DIR/<id>.jpg, <id>_features.npz   or the files themselves
DIR/.penstock/                    a store of one small row for each pair: claims, what is done, what failed and why
DIR/.penstock/pending/            pairs that wait until their TAR is whole

A worker puts the files of a row in their places, flushed, the NPZ last; then the driver commits the row. So a done row has its
files. A TAR is written under another name and renamed when all of its rows are done or failed; then its pairs are removed.
"""

import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np
import xxhash

from penstock.errors import RowError, StoreCorrupt, UsageError
from penstock.geometry.boxes import xyxy_to_xywh
from penstock.jobs import Sink
from penstock.readers.sa1b_pairs import NPZ_SUFFIXES, parse_member
from penstock.refine_sink import NewestRows
from penstock.schema import Field, Record, Schema
from penstock.source import Candidate
from penstock.store import StoreSink
from penstock.store.commit import Admission, Commit, refuse_foreign
from penstock.store.disk import Disk
from penstock.store.layout import Layout, size_of
from penstock.store.manifest import NAME
from penstock.store.open_part import OpenPart
from penstock.store.provenance import provenance
from penstock.store.rows import DONE, KEYS
from penstock.store.v1 import SIDE
from penstock.store.v1_sink import V1Sink
from penstock.store.write import Encoded, RowWriter, Ticket, Written

if TYPE_CHECKING:
    from penstock.stages.teacher import TeachPictures
    from penstock.teacher_config import TeacherConfig

SHARD_ROWS = 1000
"""Samples of a TAR, as the original packs them."""
PENDING = "pending"
MAX_NAME_BYTES = 200
_MEMBERS = ("picture", "npz")
_ROWS = Schema([Field(name=f"{name}_bytes", dtype="int64", meaning="size of the file") for name in _MEMBERS])
_END_OF_TAR = 2 * tarfile.BLOCKSIZE


def open_teacher_sink(config: "TeacherConfig", stage: "TeachPictures", disk: Disk | None = None) -> Sink:
    """Where the rows of a teacher go if `config.write` is "v1", "tar" or "npz".

    TARs and folders hold what the original's extractor writes: `P4_S16` and so on (1, C, h, w), edges, weight maps, `bboxes`
    XYWH in original pixels, `image_shape`, `has_bbox`, `num_bboxes`, `image_id`, `model_type`, `geometry_color_flag`. The
    picture is the one that the stage gives: stretched, as JPEG. `masks` are (N, 256, 256) uint8, a plain array, which the
    original's converter reads too (of its own object arrays it makes zeros); like every size, it covers the whole picture. A
    box whose mask is empty at 256 x 256 is left out: no reader takes an empty mask. All NPZs are uncompressed.

    Args:
        config: output, write, durability, part_rows (samples of a TAR).
        stage: what gives the rows.
        disk: the write seam; tests replace it.

    Raises:
        UsageError: `write` is something else; or pairs would have boxes without masks, which no reader takes, or a picture
            that is no JPEG.
        OutputRefused: the output holds something else; nothing was touched.
        RecipeMismatch: it was made by another recipe; each difference is named.
    """
    from penstock.stages.teacher import attributes_of

    if config.write == "v1":
        return V1Sink(
            config.output, identity=stage.identity(), attributes=attributes_of(stage), durability=config.durability,
            disk=disk,
        )  # fmt: skip
    if config.write in ("tar", "npz"):
        return PairSink(config, stage, disk=disk)
    raise UsageError(f"write: expected v1, tar or npz, got {config.write!r}")


def rows_folder(output: Path) -> Path:
    """The store of small rows in an output of TARs or files: for `known_rows` and `check_output`."""
    return output / SIDE


@dataclass(frozen=True, kw_only=True)
class PairFiles:
    """Where the two files of a row lie, and what is in them."""

    output: Path
    in_tars: bool
    records: Schema
    """Fields of the rows."""
    model_type: str
    strategy: str

    def paths(self, folder: Path, row: int, key: str) -> tuple[Path, Path]:
        """Picture and NPZ of a row of a part, outside of TARs."""
        if not self.in_tars:
            names = member_names(key)
            return self.output / names[0], self.output / names[1]
        pending = self.pending(folder.name)
        return pending / f"{row}.jpg", pending / f"{row}.npz"

    def pending(self, part: str) -> Path:
        """The folder of pairs that wait for the TAR of a part."""
        return self.output / SIDE / PENDING / part

    def shard(self, part: str) -> Path:
        """The TAR of a part, whatever its version: "part-00003.1" is the fourth."""
        number = int(part.partition(".")[0].removeprefix("part-"))
        return self.output / f"sa1b_shard_{number:05d}.tar"

    def contents(self, row: Encoded, key: str) -> tuple[bytes, bytes]:
        """Bytes of picture and NPZ."""
        buffer = io.BytesIO()
        np.savez(buffer, **self._arrays(row, key))  # type: ignore[arg-type]  # names of fields, none is an option
        return row["image_jpeg"].tobytes(), buffer.getvalue()

    def _arrays(self, row: Encoded, key: str) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        for name, field in self.records.items():
            if field.kind == "features":
                arrays[name] = row[name][None]
            elif field.kind in ("mask", "map") and name != "masks":
                arrays[name] = row[name]
        if "bboxes" in row:
            arrays |= _objects(row)
        named = {"image_id": key, "model_type": self.model_type}
        arrays["image_shape"] = row["image_shape"].astype(np.int64)
        arrays |= {name: np.array(text) for name, text in named.items()}
        return arrays | {"geometry_color_flag": np.array(self.strategy == "geometry-colour", np.int32)}


class PairWriter(RowWriter):
    """What a worker writes with: a record becomes two files and a small row."""

    def __init__(self, files: PairFiles, disk: Disk) -> None:
        super().__init__(_ROWS, Layout.of(_ROWS), disk)
        self.files = files
        self._records = RowWriter(files.records, Layout.of(files.records), disk)
        self._keys: dict[Path, list[str]] = {}

    def encode(self, record: Record) -> Encoded:
        """The record's values.

        Raises:
            SchemaError: it does not fit the stage's schema.
        """
        return self._records.encode(record)

    def write_rows(self, folder: Path, position: int, rows: Sequence[Encoded]) -> list[Written]:
        """Puts the files of each row in their places, the NPZ last; then writes the rows.

        Raises:
            OutputFull: no room.
        """
        sizes = [self._put_files(folder, number, row) for number, row in enumerate(rows, position)]
        small = [dict(zip(_ROWS, np.array(pair, np.int64), strict=True)) for pair in sizes]
        written = super().write_rows(folder, position, [super(PairWriter, self).encode(one) for one in small])
        return [replace(one, size=one.size + sum(pair)) for one, pair in zip(written, sizes, strict=True)]

    def _put_files(self, folder: Path, number: int, row: Encoded) -> tuple[int, int]:
        if folder not in self._keys:
            self._keys = {folder: (folder / KEYS).read_bytes().decode().split("\n")}
        key = self._keys[folder][number]
        contents = self.files.contents(row, key)
        for path, content in zip(self.files.paths(folder, number, key), contents, strict=True):
            if not path.parent.is_dir():
                self.disk.make_directory(path.parent)
            self.disk.replace(path, content)
        return len(contents[0]), len(contents[1])


class PairSink(StoreSink):
    """Pairs of a picture and an NPZ, in TARs of `part_rows` samples or as files (see `open_teacher_sink`).

    The claim on a part of the store is the claim on its TAR. A done row whose files, or whose TAR, are gone is computed anew; a
    TAR of which rows are computed again is made anew from the old one and put in its place whole.
    """

    def __init__(self, config: "TeacherConfig", stage: "TeachPictures", *, disk: Disk | None = None) -> None:
        from penstock.stages.teacher import attributes_of

        if "image_jpeg" not in stage.schema or ("bboxes" in stage.schema and "masks" not in stage.schema):
            found = ", ".join(stage.schema)
            raise UsageError(f"write {config.write}: expected image-codec jpeg, and mask where bbox is, got {found}")
        side = rows_folder(config.output)
        refuse_foreign(config.output, begun=side / NAME, ours=(SIDE,))
        self.files = PairFiles(
            output=config.output, in_tars=config.write == "tar", records=stage.schema, model_type=stage.teacher.name,
            strategy=stage.strategy,
        )  # fmt: skip
        super().__init__(
            side,
            _ROWS,
            identity={**stage.identity(), "write": config.write},
            attributes=attributes_of(stage),
            provenance=provenance(config.to_json(), libraries=dict(stage.teacher.libraries())),
            durability=config.durability,
            part_rows=config.part_rows or SHARD_ROWS,
            disk=disk,
        )
        for entry in self.known.manifest.parts:
            if entry.sealed and not entry.draft:
                self._remove_pending(entry.name)  # a run was killed before it did
        self._rows = NewestRows(self.path)

    def writer(self) -> PairWriter:
        """What a worker writes rows with; pickles."""
        return PairWriter(self.files, self.disk.for_worker())

    def admit(
        self, candidates: Sequence[Candidate], *, retry_failed: bool = False, grow: bool = False
    ) -> list[Admission]:
        """As `StoreSink.admit`; a done row without its files is to be computed."""
        admitted = super().admit(candidates, retry_failed=retry_failed, grow=grow)
        return [self._checked(*pair) for pair in zip(candidates, admitted, strict=True)]

    def commit(self, commit: Commit) -> None:
        """Takes one finished row; of a failed one the files of an earlier run are removed."""
        if commit.written is None:
            for path in self.files.paths(commit.ticket.folder, commit.ticket.row, commit.ticket.key):
                if path.exists():
                    self.disk.remove(path)
        super().commit(commit)

    def _checked(self, candidate: Candidate, admission: Admission) -> Admission:
        if admission.verdict not in ("done", "compare") or self._has_files(candidate.key):
            return admission
        self.known.reload()  # another driver may have made the TAR, and removed the pair, meanwhile
        if self._has_files(candidate.key):
            return admission
        ticket: Ticket | None = self.recompute(candidate)
        return Admission(verdict="compute", ticket=ticket) if ticket else Admission(verdict="held")

    def _has_files(self, key: str) -> bool:
        name, row = self.known.find([key])[key]
        entry = self.known.entry(name)
        if self.files.in_tars and entry.sealed:  # of a draft too: it has the rows that are computed again, no others
            return self.files.shard(name).exists()
        found = self.files.paths(self.path / name, row, key)
        sizes = [size_of(path) for path in found]
        try:
            recorded = self._recorded(key)
        except RowError:  # another driver computes it anew since it was admitted
            return False
        return sizes == [int(np.asarray(recorded[field])) for field in _ROWS]

    def _recorded(self, key: str) -> Mapping[str, object]:
        try:
            return self._rows.read(key, list(_ROWS))
        except (KeyError, RowError):  # done, by us or by another, since the store was opened
            return self._rows.reread(key, list(_ROWS))

    def _seal_if_whole(self, part: OpenPart | None, *, complete: bool) -> None:
        """First the TAR, then the part, then the pairs go: whatever happens in between, one of them is there."""
        if part is not None and self.files.in_tars and part.rows and not part.missing:
            self._reset_lost(part)
            if not part.missing:
                self._pack(part)
        super()._seal_if_whole(part, complete=complete)
        if part is not None and self._parts.get(part.folder.name) is not part:
            self._remove_pending(part.folder.name)

    def _reset_lost(self, part: OpenPart) -> None:
        """Of a part whose TAR is gone, done rows without a pair are to be computed: another driver had the part when they were
        looked at, and was killed."""
        if self.files.shard(part.folder.name).exists():
            return
        keys = (part.folder / KEYS).read_bytes().decode().split("\n")
        done = np.flatnonzero(part.states[: part.rows] == DONE).tolist()
        lost = [row for row in done if not all(path.exists() for path in self.files.paths(part.folder, row, keys[row]))]
        if lost:
            part.ledger.reset(self.disk, lost)
            part.states[lost] = 0

    def _remove_pending(self, name: str) -> None:
        pending = self.files.pending(name)
        if pending.exists():
            self.disk.remove(pending)

    def _pack(self, part: OpenPart) -> None:
        """Makes the TAR of a part's done rows, in order; none of no row."""
        shard = self.files.shard(part.folder.name)
        fresh = shard.with_name(f".{shard.name}.new")
        keys = (part.folder / KEYS).read_bytes().decode().split("\n")
        rows = np.flatnonzero(part.states[: part.rows] == DONE).tolist()
        if not rows:
            return
        self.disk.resize(fresh, 0)
        end = 0
        for row in rows:
            names = member_names(keys[row])
            for name, path in zip(names, self.files.paths(part.folder, row, keys[row]), strict=True):
                content = path.read_bytes() if path.exists() else _member(shard, name)
                header = _header(name, content)
                self.disk.write(fresh, header + content + bytes(-len(content) % tarfile.BLOCKSIZE), end)
                end += len(header) + -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        self.disk.write(fresh, bytes(-(end + _END_OF_TAR) % tarfile.RECORDSIZE + _END_OF_TAR), end)
        self.disk.sync(fresh)
        self.disk.close(fresh)
        self.disk.rename(fresh, shard)


def member_names(key: str) -> tuple[str, str]:
    """Names of picture and NPZ of a key, of which a reader makes the key again: `sa_1.jpg`, `sa_1_features.npz`.

    A slash, a percent sign, what cannot be printed and a dot at the start are written as %2F and so on; a long name is cut, and
    ends with a hash.
    """
    name = "".join(quote(one, safe="") if one in "/%\\" or not one.isprintable() else one for one in key)
    name = f"%2E{name[1:]}" if name.startswith(".") else name
    if len(name.encode()) > MAX_NAME_BYTES:
        cut = name.encode()[: MAX_NAME_BYTES - 17].decode(errors="ignore")
        name = f"{cut}~{xxhash.xxh3_64_hexdigest(key.encode())}"
    for suffix in ("_features.npz", *NPZ_SUFFIXES):  # "x_sam2" with the first one would read as "x"
        member = parse_member(f"{name}{suffix}", size=0, mtime=0, offset=0)
        if member is not None and member.id == name:
            return f"{name}.jpg", f"{name}{suffix}"
    raise UsageError(f"key {key!r}: no name of an NPZ gives it back")


def _objects(row: Encoded) -> dict[str, np.ndarray]:
    """Boxes XYWH, their masks, and how many they are; those with an empty mask are left out."""
    boxes, masks = row["bboxes"], row.get("masks")
    if masks is not None:
        kept = masks.any(axis=(1, 2))
        boxes, masks = boxes[kept], masks[kept]
    found = {
        "bboxes": xyxy_to_xywh(boxes).astype(np.float32),
        "has_bbox": np.array(len(boxes) > 0),
        "num_bboxes": np.array(len(boxes), np.int32),
    }
    return found if masks is None or not len(masks) else {**found, "masks": masks}


def _header(name: str, content: bytes) -> bytes:
    """The member's header. Its time is made from the content: `penstock convert` tells by name, size and time whether a member
    has changed, an NPZ always has the same size, and the same rows must give the same TAR."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mtime = 10**9 + xxhash.xxh3_64_intdigest(content) % 10**8
    return info.tobuf(tarfile.PAX_FORMAT)


def _member(shard: Path, name: str) -> bytes:
    """A member of the TAR that a new version is made from.

    Raises:
        StoreCorrupt: it is not there.
    """
    if shard.exists():
        with tarfile.open(shard, "r:") as tar:
            if name in tar.getnames() and (file := tar.extractfile(name)) is not None:
                return file.read()
    raise StoreCorrupt(f"{shard}: {name} is gone, and so is the pair that waited for it; remove the TAR and run again")
