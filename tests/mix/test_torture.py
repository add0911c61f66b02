"""Real files, one in ten damaged in eight ways, a whole contiguous shard among them: nothing stops, nothing else changes."""

import errno
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from penstock import fill
from penstock.mix_loader import MixLoader
from penstock.mix_rows import MixPart
from penstock.mix_source import Mixed
from penstock.mix_tally import added
from penstock.mix_views import Views
from penstock.readers.masklets import Masklets
from penstock.schema import Record
from tests.mix.data import Pictures, batch_bytes, sample_bytes

FILES, RANKS, BATCH = 400, 4, 16
EACH = 5


def arrays(seed: int) -> dict[str, np.ndarray]:
    """A pair as in the wild: float32, 0..255."""
    rng = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}
    for view in (1, 2):
        made[f"frame{view}"] = rng.integers(0, 256, (9, 8, 3)).astype(np.float32)
        made[f"mask{view}"] = np.zeros((9, 8), np.float32)
        made[f"mask{view}"][view : view + 3, 2:5] = 255
    return made


def cut(path: Path) -> None:
    """The second half is gone."""
    os.truncate(path, path.stat().st_size // 2)


def zeroed(path: Path) -> None:
    """As long as before, all zero."""
    path.write_bytes(bytes(path.stat().st_size))


def flipped(path: Path) -> None:
    """One bit in the middle of the first frame."""
    content = bytearray(path.read_bytes())
    content[400] ^= 0x10
    path.write_bytes(content)


def rewritten(path: Path, name: str, values: np.ndarray) -> None:
    """A whole file whose content is wrong."""
    with path.open("wb") as file:
        np.savez(file, **{**arrays(0), name: values})  # type: ignore[arg-type]  # NumPy's stub takes a flag there


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": cut,
    "zeroed": zeroed,
    "bit flipped": flipped,
    "deleted": os.unlink,
    "wrong shape": partial(rewritten, name="mask2", values=np.zeros((9, 9), np.float32)),
    "NaN": partial(rewritten, name="frame1", values=np.full((9, 8, 3), np.nan, np.float32)),
    "empty mask": partial(rewritten, name="mask1", values=np.zeros((9, 8), np.float32)),
}


class Shaky(Masklets):
    """A disk that fails with EIO the first time that some files are read, and then recovers."""

    shaky: set[int]

    def read(self, index: int, fields: Sequence[str] | None) -> Record:
        """A record, or EIO once."""
        try:
            self.shaky.remove(index // 2)  # in one step: both rows of a file may be read at once
        except KeyError:
            return super().read(index, fields)
        raise OSError(errno.EIO, "planted")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """400 pairs in 20 folders."""
    for number in range(FILES):
        path = tmp_path / "sav" / f"shard_{number // 20:02d}" / f"masklet_data_{number:05d}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            np.savez(file, **arrays(number))  # type: ignore[arg-type]  # NumPy's stub takes a flag there
    return tmp_path / "sav"


def damage(root: Path) -> dict[str, list[int]]:
    """One file in ten: 35 damaged, a contiguous shard of five of each kind first, and five that fail once."""
    paths = sorted(root.rglob("*.npz"))
    planted: dict[str, list[int]] = {}
    for place, (kind, spoil) in enumerate(DAMAGE.items()):
        planted[kind] = (
            [100 + place * EACH + n for n in range(EACH)] if place < 4 else [200 + 25 * n + place for n in range(EACH)]
        )
        for number in planted[kind]:
            spoil(paths[number])
    planted["EIO"] = [3, 57, 58, 59, 390]
    return planted


def mixture(root: Path) -> Mixed:
    """The files, and a clean source in memory."""
    source = Shaky(root)
    source.shaky = set()
    parts = [MixPart(name="sav", source=source), MixPart(name="clean", source=Pictures("clean", 100))]
    return Mixed(parts, views=Views(size=4, grid=2), seed=11)


def test_damage_costs_its_rows_alone(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fill, "RETRY_WAITS_S", (0.001, 0.001, 0.001))
    clean = mixture(root)
    names = list(clean.schema)
    before = [sample_bytes(clean[position], names) for position in range(len(clean) + BATCH)]
    damaged = mixture(root)  # opened before: a file deleted later is a bad row, one that was never there is none
    planted = damage(root)
    damaged.parts[0].source.shaky.update(planted["EIO"])  # type: ignore[attr-defined]  # of Shaky
    bad = {number for kind, numbers in planted.items() if kind != "EIO" for number in numbers}
    assert (len(bad), len(planted["EIO"])) == (35, 5)

    loaders = [
        MixLoader(
            damaged, batch_size=BATCH, rank=rank, world_size=RANKS, threads=3, budget=None, quarantine=tmp_path / "bad"
        )
        for rank in range(RANKS)
    ]
    shares = [[batch_bytes(batch, names) for batch in loader] for loader in loaders]
    steps, reports = [len(share) for share in shares], [loader.report() for loader in loaders]
    assert steps == [32] * RANKS
    total = added(reports)

    expected: Counter[str] = Counter()
    after = [sample for step in range(32) for rank in range(RANKS) for sample in shares[rank][step]]
    for position, sample in enumerate(after):
        drawn = damaged.plan.draw(position, position + 1)
        number, row = int(drawn.parts[0]), int(drawn.rows[0])
        if number or row not in bad:
            assert sample == before[position]
            continue
        assert sample != before[position]
        tries = [row, *(damaged.plan.stand_in(0, position, attempt) for attempt in range(1, 8))]
        expected["failed"] += next(n for n, one in enumerate(tries) if one not in bad)
        expected["substituted"] += 1
    assert total["sav"]["substituted"] == expected["substituted"] >= 35
    assert total["sav"]["failed"] == {"BadData": expected["failed"]}
    assert total["sav"]["retried"] == 5
    assert (total["clean"]["substituted"], total["clean"]["failed"]) == (0, {})
    assert [one["drawn"] for one in total.values()] == damaged.plan.counts(0, 32 * BATCH)
    listed = [json.loads(line) for path in (tmp_path / "bad").iterdir() for line in path.read_text().splitlines()]
    assert {int(one["key"].split("_")[-1].split("/")[0]) for one in listed} == bad


def test_the_list_of_bad_rows_changes_nothing_but_what_is_read(root: Path, tmp_path: Path) -> None:
    damage(root)
    runs = []
    for _ in range(2):
        source = mixture(root)
        loader = MixLoader(source, batch_size=BATCH, budget=None, quarantine=tmp_path / "bad")
        runs.append([sample for batch in loader for sample in batch_bytes(batch, list(source.schema))])
    assert runs[0] == runs[1]
    assert set(loader.report()["sav"]["failed"]) == {"known bad"}
