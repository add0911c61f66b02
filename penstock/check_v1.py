"""The files of a v1 directory against its config.json; where a writer was killed, and how many rows are still right."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from penstock.check_boxes import AGREE, DISAGREE, iou, tight_boxes
from penstock.check_values import SUM_TOLERANCE, Finding, reading
from penstock.geometry.boxes import xywh_to_xyxy
from penstock.store.layout import RecordFile, size_of
from penstock.store.v1 import CONFIG, REBUILDING, V1_LAYOUT
from penstock.store.v1_schema import IMAGE_SIZE, MASK_SIZE

FILES: Mapping[str, RecordFile] = {file.name: file for file in V1_LAYOUT.records}
_EDGE_MARGIN = 0.2
_MIN_EDGES = 8


def v1_config(path: Path, faults: list[Finding]) -> dict[str, object]:
    """What config.json says, as far as it can be used; `total_samples` is there only if it is a count."""
    try:
        config = json.loads((path / CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        faults.append(Finding(code="config", where=CONFIG, message=f"{CONFIG}: cannot be read: {error}"))
        return {}
    if not isinstance(config, dict):
        text = f"{CONFIG}: expected an object, got {type(config).__name__}"
        faults.append(Finding(code="config", where=CONFIG, message=text))
        return {}
    total = config.get("total_samples")
    if not isinstance(total, int) or isinstance(total, bool) or total < 0:
        text = f"{CONFIG}: total_samples: expected a count, got {total!r}"
        faults.append(Finding(code="config", where=CONFIG, message=text))
        config.pop("total_samples", None)
    sizes = config.get("sample_sizes", {})
    found = sizes if isinstance(sizes, dict) else {}
    wrong = {}
    for file in FILES.values():
        name = f"{file.name.removesuffix('.bin')}_bytes".replace("images", "image")
        if found.get(name, file.record_bytes) != file.record_bytes:
            wrong[f"sample_sizes.{name}"] = file.record_bytes, found[name]
    for name, side in (("image_size", IMAGE_SIZE), ("mask_size", MASK_SIZE)):
        if config.get(name, side) != side:
            wrong[name] = side, config[name]
    for name, (right, got) in wrong.items():
        text = f"{CONFIG}: {name}: expected {right:,}, got {got!r}: these are no records of layout v1"
        faults.append(Finding(code="config", where=CONFIG, message=text))
    if config.get("bbox_format") == REBUILDING:
        text = f"{CONFIG}: a repair of the boxes was interrupted; run the same penstock repair again"
        faults.append(Finding(code="repair-interrupted", where=CONFIG, message=text))
    return config


def sizes_of(path: Path) -> dict[str, int]:
    """Bytes of each of the seven files; -1 where there is none."""
    return {name: size_of(path / name) for name in FILES}


def check_v1_files(
    path: Path, total: int, committed: int | None, faults: list[Finding], notes: list[Finding]
) -> dict[str, int]:
    """Sizes of the seven files; of a torn one the record is named. Gives the number of whole records of each.

    Args:
        path: the folder.
        total: what config.json counts, -1 where it does not.
        committed: rows of our ledger, which counts more than config.json; None where there is none.
        faults: where faults go.
        notes: where notes go.
    """
    counted, counter = (total, CONFIG) if committed is None else (committed, "the ledger")
    sizes = sizes_of(path)
    whole = {name: max(0, size) // FILES[name].record_bytes for name, size in sizes.items()}
    for name, size in sizes.items():
        record = FILES[name].record_bytes
        tail = max(0, size) % record
        expected = f" (expected {counted * record:,} bytes, found {max(size, 0):,})" if counted >= 0 else ""
        counts = f"{counter} counts {counted:,}" if counted >= 0 else ""
        if committed is not None and size > committed * record:
            text = f"{name}: {size - committed * record:,} bytes behind record {committed - 1} were never committed"
            notes.append(Finding(code="uncommitted", where=name, message=f"{text}; the next convert run cuts them off"))
        elif size < 0:
            text = f"{name}: no such file{'; ' * bool(counts)}{counts}{expected}"
            faults.append(Finding(code="size", where=name, message=text, first_row=0))
        elif tail:
            faults.append(_torn(path, name, size, counts + expected))
        elif counted >= 0 and whole[name] != counted:
            text = f"{name} holds {whole[name]:,} whole records, {counts}{expected}"
            first = min(whole[name], counted)
            faults.append(Finding(code="record-count", where=name, message=text, first_row=first))
    return whole


def _torn(path: Path, name: str, size: int, expected: str) -> Finding:
    record = FILES[name].record_bytes
    last, tail = divmod(size, record)
    row = first_misaligned(path, name)
    bytes_ = f"{tail:,} of {record:,} bytes"
    text = f"{name}: record {last} is torn: {bytes_}; {expected}"
    if row is not None:
        behind = last - row
        text = (
            f"{name}: record {row} is torn: {bytes_}, and {behind:,} records were appended behind it, so that all "
            f"from record {row} on are misaligned; {expected}"
        )
    code = "torn-record" if row is None else "misaligned"
    return Finding(code=code, where=name, message=text, first_row=last if row is None else row)


def first_misaligned(path: Path, name: str) -> int | None:
    """The record at which a file was torn before more were appended; None if it was not, or its values cannot tell.

    The rest of the size says by how many bytes the records behind the tear are shifted. From the first one that is no
    record where it should be and is one where the shift puts it, the file is misaligned.
    """
    judge = {"weight_maps.bin": _judge_weights, "edge_maps.bin": _judge_edges}.get(name)
    record = FILES[name].record_bytes
    size = (path / name).stat().st_size
    whole, tail = divmod(size, record)
    if judge is None or not tail or not whole:
        return None
    votes = np.zeros(whole, np.int8)
    with reading(path / name) as descriptor:
        for row in range(whole):
            raw = os.pread(descriptor, record + tail, row * record)
            votes[row] = judge(raw[:record], raw[tail : tail + record])
    return change_point(votes < 0, votes > 0)


def change_point(before: np.ndarray, after: np.ndarray) -> int | None:
    """Where rows of one sort give way to the other, with the fewest rows on the wrong side; None if they do not.

    Args:
        before: (n,) bool, rows that say that the change is behind them.
        after: (n,) bool, rows that say that it is not; a row may say nothing.
    """
    if not after.any():
        return None
    cost = np.concatenate([[0], np.cumsum(after)]) + before.sum() - np.concatenate([[0], np.cumsum(before)])
    place = int(cost.argmin())
    return place if place < len(after) and 2 * after[place:].sum() > (before | after)[place:].sum() else None


def _judge_weights(straight: bytes, shifted: bytes) -> int:
    """-1 if the record is right where it should be, 1 if it is right where the shift puts it, 0 if it cannot tell."""
    here, there = (_sums_fit(raw) for raw in (straight, shifted))
    return int(there) - int(here)


def _sums_fit(raw: bytes) -> bool:
    values = np.frombuffer(raw, FILES["weight_maps.bin"].dtype)
    for slot in FILES["weight_maps.bin"].slots:
        weights = values[slot.field.name]
        with np.errstate(invalid="ignore", over="ignore"):
            total = float(weights.sum(dtype=np.float64))
            if not (weights.min() >= 0 and (total == 0 or abs(total - 1) <= SUM_TOLERANCE)):
                return False
    return True


def _judge_edges(straight: bytes, shifted: bytes) -> int:
    """As `_judge_weights`: edges of 64 x 64 must lie where the record's edges of 256 x 256 are."""
    here, there = (_edges_fit(raw) for raw in (straight, shifted))
    return 0 if abs(there - here) < _EDGE_MARGIN else 1 if there > here else -1


def _edges_fit(raw: bytes) -> float:
    """Share of the 64 x 64 edges that have a 256 x 256 one in their cell or beside it; 0.5 where there are too few."""
    record = np.frombuffer(raw, FILES["edge_maps.bin"].dtype)[0]
    coarse = record["edge_64x64"] != 0
    if coarse.sum() < _MIN_EDGES or record["edge_64x64"].max() > 1:
        return 0.5
    near = np.pad(record["edge_256x256"].reshape(64, 4, 64, 4).any(axis=(1, 3)), 1)
    cells = [near[y : y + 64, x : x + 64] for y in range(3) for x in range(3)]
    return float(np.logical_or.reduce(cells)[coarse].mean())


def rows_still_right(path: Path, total: int, num_keys: int, on_row: Callable[[int], None]) -> tuple[int, str]:
    """How many rows, from the first, are whole and right in all files of a torn directory; and why not more.

    1. Rows that are whole in every file.
    2. If a file is misaligned from record r on, records were appended after the tear. A file that lost more than the
       torn record then holds later records in earlier places: of each file only what it had at the tear can be right.
       At the tear the longest file had at least r + 1 records, so at most all above that were appended.
    3. Rows whose boxes agree with their masks or foreground maps, up to where they stop agreeing.

    Args:
        path: the folder.
        total: what config.json counts.
        num_keys: lines of keys.txt; rows that config.json does not count are kept only if they have a key.
        on_row: told each row that step 3 has looked at.
    """
    sizes = sizes_of(path)
    whole = {name: max(0, size) // FILES[name].record_bytes for name, size in sizes.items()}
    name = min(whole, key=lambda stem: whole[stem])
    rows, why = whole[name], f"{name} holds {whole[name]:,} whole records"
    torn = {stem: first_misaligned(path, stem) for stem in ("edge_maps.bin", "weight_maps.bin") if sizes[stem] >= 0}
    tears = {stem: row for stem, row in torn.items() if row is not None}
    if tears:
        tear = min(tears.values())
        appended = max(max(whole.values()), num_keys) - (tear + 1)
        at_tear = {stem: count - appended for stem, count in whole.items()}
        at_tear |= {stem: min(at_tear[stem], tear) for stem in tears}
        name = min(at_tear, key=lambda stem: at_tear[stem])
        rows = max(0, at_tear[name])
        why = f"records were appended behind the torn record {tear}, at which {name} had {rows:,} whole ones"
    if rows > max(total, num_keys):
        rows, why = max(total, num_keys), "rows behind have no key"
    if len(set(whole.values())) > 1:
        cut = _first_disagreement(path, rows, on_row)
        if cut is not None and cut < rows:
            return cut, f"from row {cut} on the boxes belong to other pictures than the masks and maps"
    return rows, why


def _first_disagreement(path: Path, rows: int, on_row: Callable[[int], None]) -> int | None:
    agree, disagree = np.zeros(rows, bool), np.zeros(rows, bool)
    for row in range(rows):
        overlap = _overlap(path, row)
        agree[row] = overlap is not None and overlap >= AGREE
        disagree[row] = overlap is not None and overlap < DISAGREE
        on_row(row)
    place = change_point(agree, disagree)
    # without a row that agrees before it, and two that do not after it, the maps may just mean something else here
    enough = place is not None and agree[:place].any() and disagree[place:].sum() >= 2
    return place if enough else None


def _overlap(path: Path, row: int) -> float | None:
    """Overlap of the row's box, in the better of the two conventions, with its mask or foreground map; None without."""
    metadata, boxes, masks, maps = (
        _record(path / name, row) for name in ("metadata.bin", "bboxes.bin", "masks.bin", "weight_maps.bin")
    )
    height, width = (int(side) for side in metadata["image_shape"][:2])
    if metadata["has_bbox"] != 1 or height <= 0 or width <= 0:
        return None
    for witness in (masks["masks"][0], maps["fg_map_128x128"]):
        with np.errstate(invalid="ignore"):
            tight, has_any = tight_boxes((witness > 0)[None])
        if has_any[0] and not (witness > 0).all():
            side = witness.shape[0]
            scaled = tight * np.array([width, height, width, height]) / side
            box = np.asarray(boxes["bboxes"])
            return float(max(iou(reading_, scaled)[0] for reading_ in (box, xywh_to_xyxy(box))))
    return None


def _record(path: Path, row: int) -> np.void:
    file = FILES[path.name]
    with reading(path) as descriptor:
        raw = os.pread(descriptor, file.record_bytes, row * file.record_bytes)
    record: np.void = np.frombuffer(raw, file.dtype)[0]
    return record
