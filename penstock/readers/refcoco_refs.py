"""The references of `refs(...).p`: checked, those of one split taken, in row order."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from penstock.errors import BadData
from penstock.readers.base import some
from penstock.readers.files import Files

_DATASETS = ("refcoco", "refcoco+", "refcocog", "refclef")


class SentenceRow(NamedTuple):
    """One sentence of one reference."""

    numbers: tuple[int, int, int, int, int]
    """Ids of picture, reference, sentence, annotation, category."""
    split: str
    sentence: str
    raw: str


@dataclass
class SplitCounts:
    """What a split of the file holds."""

    references: int = 0
    sentences: int = 0
    images: set[int] = field(default_factory=set)

    @property
    def counts(self) -> tuple[int, int, int]:
        """References, sentences, pictures."""
        return self.references, self.sentences, len(self.images)


@dataclass
class Sentences:
    """What the file holds."""

    rows: list[SentenceRow] = field(default_factory=list)
    """Of the split asked for, by picture, reference, and place in the reference."""
    splits: dict[str, SplitCounts] = field(default_factory=dict)
    """All splits of the file."""
    broken: list[str] = field(default_factory=list)
    """Entries that have no row, and why."""


def reference_files(files: Files) -> list[tuple[str, str]]:
    """Datasets under a root that have references, each with who split it: ("refcoco", "unc") for `refs(unc).p`."""
    found = []
    for dataset in _DATASETS:
        names = [name for name in files.names(dataset) if name.startswith("refs(") and name.endswith(").p")]
        found += [(dataset, name[len("refs(") : -len(").p")]) for name in names]
    return found


def read_references(value: object, split: str, where: str) -> Sentences:
    """Checks the unpickled file and takes the sentences of a split.

    Args:
        value: what was unpickled.
        split: as `in_split`.
        where: the file, for messages.

    Raises:
        BadData: it is no list; two references have one id, or two sentences of a reference.
    """
    if not isinstance(value, list):
        raise BadData(f"{where}: expected a list of references, got {type(value).__name__}")
    found, taken, seen = Sentences(), [], set()
    for place, entry in enumerate(value):
        reason = _fault(entry)
        if reason:
            found.broken.append(f"entry {place}: {reason}")
            continue
        ref_id = entry["ref_id"]
        if ref_id in seen:
            raise BadData(f"{where}: expected every reference to have its own ref_id, got {ref_id} twice")
        seen.add(ref_id)
        sentences = _sentences(entry, found.broken)
        ids = [sentence["sent_id"] for sentence in sentences]
        if len(set(ids)) != len(ids):
            raise BadData(f"{where}: ref_id {ref_id}: expected every sentence to have its own sent_id, got {some(ids)}")
        counts = found.splits.setdefault(entry["split"], SplitCounts())
        counts.references += 1
        counts.sentences += len(sentences)
        counts.images.add(entry["image_id"])
        if in_split(entry["split"], split):
            taken.append((entry, sentences))
    taken.sort(key=lambda pair: (pair[0]["image_id"], pair[0]["ref_id"]))
    for entry, sentences in taken:
        for sentence in sentences:
            numbers = (entry["image_id"], entry["ref_id"], sentence["sent_id"], entry["ann_id"], entry["category_id"])
            found.rows.append(SentenceRow(numbers, entry["split"], sentence["sent"], sentence["raw"]))
    return found


def in_split(split: str, wanted: str) -> bool:
    """Whether a reference of a split is in the one wanted, by the rule of the REFER API: "test" is every split with
    "test" in its name, "testA" every one with "A" (there is "testAB"), others are equal; and "all" is every one."""
    if wanted in ("testA", "testB", "testC"):
        return wanted[-1] in split
    if wanted == "test":
        return "test" in split
    return wanted in (split, "all")


def is_id(value: object) -> bool:
    """Whether a value is a whole number that fits an id."""
    return type(value) is int and 0 <= value < 1 << 62


def _fault(entry: Any) -> str:
    """Why an entry is no reference; empty if it is one."""
    if not isinstance(entry, dict):
        return f"expected a dict, got {type(entry).__name__}"
    for name in ("ref_id", "ann_id", "image_id", "category_id"):
        if not is_id(entry.get(name)):
            return f"expected {name} to be a whole number, got {_named(entry, name)}"
    if not _is_text(entry.get("split")):
        return f"ref_id {entry['ref_id']}: expected split to be a text, got {_named(entry, 'split')}"
    if not isinstance(entry.get("sentences"), list) or not entry["sentences"]:
        return f"ref_id {entry['ref_id']}: expected sentences, got {_named(entry, 'sentences')}"
    return ""


def _sentences(entry: dict[str, Any], broken: list[str]) -> list[dict[str, Any]]:
    kept = []
    for place, sentence in enumerate(entry["sentences"]):
        is_whole = isinstance(sentence, dict) and is_id(sentence.get("sent_id"))
        if is_whole and _is_text(sentence.get("sent")) and _is_text(sentence.get("raw")):
            kept.append(sentence)
        else:
            broken.append(f"ref_id {entry['ref_id']}, sentence {place}: expected sent_id, sent and raw")
    return kept


def _is_text(value: object) -> bool:
    """Whether it is a text that can be written as UTF-8 (a pickle can hold halves of surrogate pairs)."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _named(entry: dict[str, Any], name: str) -> str:
    value = entry.get(name)
    if value is None or value == []:
        return "none"
    return f"{value!r:.40}" if isinstance(value, str | float) else type(value).__name__
