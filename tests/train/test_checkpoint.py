"""Checkpoints on a full disk, after killed runs; digests."""

import errno
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from penstock.errors import OutputFull, PartClaimed, StoreCorrupt  # noqa: E402
from penstock.train import checkpoint  # noqa: E402
from penstock.train.checkpoint import digest_of, load_checkpoint, remove_old, save_checkpoint, step_path  # noqa: E402
from penstock.train.distributed import Ranks  # noqa: E402
from penstock.train.run_folder import alone_in  # noqa: E402


class Full(io.FileIO):
    """A file on a disk that has room for 64 KiB."""

    def write(self, content: Any) -> int:
        if self.tell() + len(content) > 1 << 16:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(content)


def test_a_full_disk_is_said_and_leaves_the_checkpoints_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(step_path(tmp_path, 1), {"step": 1})
    monkeypatch.setattr(Path, "open", lambda self, mode: Full(self, "w"))
    with pytest.raises(OutputFull, match="no room left; the checkpoints before this one are whole"):
        save_checkpoint(step_path(tmp_path, 2), {"step": 2, "model": torch.zeros(1 << 18)})
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == [step_path(tmp_path, 1).name]
    assert load_checkpoint(step_path(tmp_path, 1))["step"] == 1


def test_another_fault_of_writing_is_not_called_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(content: object, file: object) -> None:
        raise RuntimeError("of torch")

    monkeypatch.setattr(checkpoint.torch, "save", fail)
    with pytest.raises(RuntimeError, match="of torch"):
        save_checkpoint(step_path(tmp_path, 1), {"step": 1})


def test_a_checkpoint_that_another_training_removed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def removed(descriptor: int) -> None:
        remove_old(tmp_path, 1)

    monkeypatch.setattr(checkpoint.os, "fsync", removed)
    with pytest.raises(PartClaimed, match="another training writes in this folder"):
        save_checkpoint(step_path(tmp_path, 1), {"step": 1})


def test_one_training_writes_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    refused = pytest.raises(PartClaimed, match="is being written by process")
    with alone_in(folder, Ranks()), refused, alone_in(folder, Ranks()):
        pass
    with alone_in(folder, Ranks()):
        pass
    assert not list(folder.iterdir())


def test_what_killed_runs_left_is_removed_with_the_old_ones(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(step_path(tmp_path, step), {"step": step})
    left = [tmp_path / "step_000000002.77.tmp", tmp_path / "best.78.tmp"]
    for path in left:
        path.write_bytes(b"half")
    (tmp_path / "mine.tmp").write_bytes(b"")
    remove_old(tmp_path, 2)
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["mine.tmp", step_path(tmp_path, 2).name, step_path(tmp_path, 3).name]


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_bit_is_never_taken_for_weights(seed: int, tmp_path: Path) -> None:
    """torch alone takes nearly any of them: it does not look at the checksums that it writes."""
    rng = np.random.default_rng(seed)
    path, weights = step_path(tmp_path, 1), torch.from_numpy(rng.random(4096))
    save_checkpoint(path, {"step": 1, "model": {"weights": weights}})
    whole, refused = path.read_bytes(), 0
    for at in rng.integers(0, len(whole), 40).tolist():
        torn = bytearray(whole)
        torn[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(torn)
        try:
            found = load_checkpoint(path)
        except StoreCorrupt:
            refused += 1
        else:
            assert torch.equal(found["model"]["weights"], weights)  # in the padding between tensors
    assert refused > 30


def test_a_file_of_something_else_is_no_checkpoint(tmp_path: Path) -> None:
    path = step_path(tmp_path, 1)
    for content in (torch.zeros(3), [1], {"step": 1}):
        torch.save(content, path)
        with pytest.raises(StoreCorrupt, match="got a file that is none"):
            load_checkpoint(path)


def test_a_digest_depends_on_names_and_values_also_of_single_numbers() -> None:
    one = {"count": torch.tensor(3), "weight": torch.ones(2, 2)}
    assert digest_of(one) == digest_of(dict(reversed(one.items())))
    assert digest_of(one) != digest_of({**one, "count": torch.tensor(4)})
    assert digest_of(one) != digest_of({"counts": one["count"], "weight": one["weight"]})
