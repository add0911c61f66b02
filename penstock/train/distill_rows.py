"""Rows of distillation as sources: of a store, straight into the loader's buffers; of pairs, converted as they are read.

Both give the fields of a store of `penstock convert sa1b-tar`, the picture always as `image`, and raise BadData for a row whose
numbers are not finite: it is looked for in the loader's threads, in the bytes that have just been copied.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import xxhash

from penstock.errors import BadData
from penstock.geometry.images import decode_picture
from penstock.readers.npz_dir import NpzDir
from penstock.readers.sa1b_tar import Sa1bTar
from penstock.schema import Field, Record, Schema
from penstock.source import Lookup, check_index
from penstock.stages.convert import Sa1bConvert
from penstock.store import Store

JPEG = "image_jpeg"
_SMALL_BYTES = 1 << 18
"""Four masks: up to here a value is read in the loader's thread, as a whole."""


class StoreRows:
    """Some rows of a store or a v1 directory.

    `gather` reads fixed fields into the caller's arrays as the store's does; nothing is copied twice. Pictures that are kept
    as JPEG are decoded into them.

    Args:
        store: opened.
        rows: (N,) int64, rows that are done.
        names: fields of the store, beside the picture.
        image_size: side S of the pictures in pixels.
    """

    def __init__(self, store: Store, rows: np.ndarray, names: Sequence[str], image_size: int) -> None:
        self.store, self.rows = store, rows
        self._is_jpeg = JPEG in store.schema
        image = Field(name="image", dtype="uint8", shape=(image_size, image_size, 3), axes="H W C", kind="image")
        self.schema = Schema([image, *(store.schema[name] for name in names)])

    @property
    def keys(self) -> Sequence[str]:
        """Those of the store."""
        return Lookup(len(self), lambda row: self.store.keys[int(self.rows[row])])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        return self.read(index, list(self.schema))

    def read(self, index: int, fields: Sequence[str]) -> Record:
        """Some fields of a row, read now; of long ones (many masks) views, of which the bytes used are read when they are.

        Raises:
            IndexError, RowError, StoreCorrupt: as `Store.read`.
            BadData: a number is not finite, or the picture is damaged or of another size.
        """
        place = check_index(index, len(self))
        variable = [name for name in fields if self.schema[name].is_variable]
        found = [self.schema[name] for name in fields if name not in variable]
        out = {field.name: np.empty((1, *field.item_shape), field.numpy_dtype) for field in found}
        if out:
            self.gather(np.array([place]), list(out), out)
        record: Record = {name: array[0] for name, array in out.items()}
        for name, value in (self.store.read(int(self.rows[place]), variable) if variable else {}).items():
            record[name] = np.array(value) if np.asarray(value).nbytes <= _SMALL_BYTES else value
        return record

    def gather(
        self, rows: np.ndarray, fields: Sequence[str] | None, out: Mapping[str, np.ndarray], *, io: str = "mmap"
    ) -> None:
        """As `Store.gather`: out[name] (N, *field.shape) for rows (N,) int64 of these rows.

        Raises:
            IndexError, RowError, StoreCorrupt: as there.
            BadData: as `read`; of several rows any may be meant.
        """
        picked = self.rows[rows]
        names = [name for name, field in self.schema.items() if not field.is_variable] if fields is None else fields
        kept = [name for name in names if name != "image" or not self._is_jpeg]
        if kept:
            self.store.gather(picked, kept, out, io=io)
        if "image" in names and self._is_jpeg:
            for place, row in enumerate(picked.tolist()):
                self._decode(row, out["image"][place])
        for name in names:
            require_numbers(
                name, out[name], lambda place: f"{self.store.path}: {self.store.keys[int(picked[place])]}: "
            )

    def digest(self) -> str:
        """Identity of the store's snapshot, of the rows and of the fields."""
        names = " ".join(self.schema)
        return xxhash.xxh3_128_hexdigest(f"{self.store.digest()} {names} ".encode() + self.rows.tobytes())

    def residency(self, rows: Sequence[int] | np.ndarray, fields: Sequence[str] | None = None) -> float:
        """As `Store.residency`; pictures that are decoded do not count."""
        names = list(self.schema) if fields is None else fields
        return self.store.residency(self.rows[np.asarray(rows)], [name for name in names if name in self.store.schema])

    def _decode(self, row: int, out: np.ndarray) -> None:
        pixels = decode_picture(np.asarray(self.store.read(row, [JPEG])[JPEG]).tobytes(), exif="ignore")
        if pixels.shape != out.shape:
            raise BadData(f"{JPEG}: expected a picture of {out.shape[0]} x {out.shape[1]} pixels, got {pixels.shape}")
        out[:] = pixels


class PairRows:
    """Some pairs of picture and NPZ, each converted when it is read.

    Args:
        source: of pairs.
        rows: (N,) int64.
        stage: the conversion; its schema is the rows'.
    """

    def __init__(self, source: Sa1bTar | NpzDir, rows: np.ndarray, stage: Sa1bConvert) -> None:
        self.source, self.rows, self.stage = source, rows, stage
        self.schema = stage.schema

    @property
    def keys(self) -> Sequence[str]:
        """Those of the pairs."""
        return Lookup(len(self), lambda row: self.source.keys[int(self.rows[row])])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        """The converted pair.

        Raises:
            BadData: a picture or a field is damaged, not finite, or not as the format states.
        """
        record = self.stage([self.source[int(self.rows[check_index(index, len(self))])]])[0]
        for name in ("image_shape", *(name for name, field in self.schema.items() if field.kind == "map")):
            if name in record:
                require_numbers(name, np.asarray(record[name])[None], lambda _: f"{self.keys[index]}: ")
        return record

    def digest(self) -> str:
        """Names, sizes and times of the pairs, the rows and the conversion."""
        cheap = [one.cheap for one in self.source.candidates() if not one.failure]
        digest = xxhash.xxh3_128(repr((self.stage.identity(), self.schema.to_json())).encode())
        digest.update(np.array(cheap, np.uint64).tobytes() + self.rows.tobytes())
        return digest.hexdigest()


def require_numbers(name: str, values: np.ndarray, where: Callable[[int], str] = lambda place: "") -> None:
    """Refuses what no training can use.

    Args:
        name: of the field.
        values: (N, ...) of N rows.
        where: what an error begins with, of the first row that is wrong, 0..N-1.

    Raises:
        BadData: a float is NaN or infinite, or of `image_shape` (N, 3) a side is not above 0.
    """
    if name == "image_shape" and len(values) and values[:, :2].min() <= 0:
        place = int(values[:, :2].min(axis=1).argmin())
        raise BadData(f"{where(place)}image_shape: expected positive sides, got {values[place, :2].tolist()}")
    if values.dtype.kind == "f" and values.size:
        place = next((place for place, row in enumerate(values) if not _is_finite(row)), -1)
        if place >= 0:
            raise BadData(f"{where(place)}{name}: expected finite numbers, got NaN or infinite ones")


def _is_finite(values: np.ndarray) -> bool:
    """Without an array as large as the values: one costs as much again as the copy that they came by."""
    if values.dtype == np.float16:  # NumPy compares halves one by one; all bits of the exponent set: NaN or infinite
        return bool((values.view(np.uint16) & 0x7FFF).max() < 0x7C00)
    with np.errstate(invalid="ignore"):
        return bool(np.isfinite(values.min()) and np.isfinite(values.max()))
