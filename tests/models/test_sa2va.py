"""The boundary to a model's own environment: a real process of this interpreter, with a small model of plain NumPy."""

import gc
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from penstock.errors import SourceNotFound, UsageError  # noqa: E402
from penstock.models import sa2va_worker  # noqa: E402
from penstock.models.sa2va import SURE, Sa2va, open_sa2va  # noqa: E402
from penstock.models.sa2va_process import ModelProcessError  # noqa: E402
from penstock.train.dual_loop import DualLoop, DualLoopSettings, evaluate_dual_loop  # noqa: E402
from penstock.train.pieces import require_trainable  # noqa: E402

STAND_IN = '''
"""Names the brightest colour under the mask; finds the pixels of a named colour."""
import os, sys, time
import numpy as np

COLOURS = ("red", "green", "blue")
print("a library that greets on stdout", flush=True)


class Colours:
    def captions(self, images, masks):
        return [COLOURS[int(image[mask > 0].mean(axis=0).argmax())] for image, mask in zip(images, masks)]

    def segment(self, images, captions):
        os.write(1, b"and one that writes to the descriptor")
        found = []
        for image, caption in zip(images, captions):
            known = caption in COLOURS
            found.append(image[..., COLOURS.index(caption)] > 200 if known else None)
        return found


def make(name, device):
    assert name == "weights", name
    return Colours()


class Wrong(Colours):
    def captions(self, images, masks):
        kind = os.environ["STAND_IN"]
        if kind == "raise":
            raise ValueError("a mask it cannot read")
        if kind == "exit":
            sys.exit("the card is gone")
        if kind == "kill":
            os.kill(os.getpid(), 9)
        if kind == "sleep":
            time.sleep(1000)
        if kind == "few":
            return []
        return [7 for _ in images]

    def segment(self, images, captions):
        return [np.zeros((2, 2), bool) for _ in images]


def wrong(name, device):
    return Wrong()


def missing(name, device):
    import a_package_that_is_not_there


def slow(name, device):
    time.sleep(1000)


def broken(name, device):
    raise OSError("no weights at " + name)
'''


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Sa2va]:
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(function: str = "make", python: str | Path = sys.executable, **settings: Any) -> Sa2va:
        return Sa2va("weights", python=Path(python), device="cpu", model=f"stand_in:{function}", **settings)

    return make


def squares(count: int = 2) -> tuple[Any, Any]:
    images, masks = torch.full((count, 3, 20, 24), 0.2), torch.zeros(count, 20, 24)
    for number in range(count):
        images[number, number % 3, 3:9, 4 + number : 12] = 1.0
        masks[number, 3:9, 4 + number : 12] = 1
    return images, masks


def batch() -> Mapping[str, Any]:
    images, masks = squares()
    pixels = (images * 255).byte().permute(0, 2, 3, 1)
    return {
        "image1": pixels, "mask1": masks.byte(), "image2": pixels.flip(2), "mask2": masks.byte().flip(2),
        "is_pair": torch.tensor([True, True]), "caption": ["red", "green"], "seed": torch.arange(2),
    }  # fmt: skip


def test_masks_become_words_and_words_masks(opened: Callable[..., Sa2va]) -> None:
    images, masks = squares(3)
    with opened() as model:
        assert model.captions(images, masks) == ["red", "green", "blue"]
        assert model.captions(images, masks * torch.tensor([1, 0, 1])[:, None, None]) == ["red", "", "blue"]
        assert model.captions(images, masks * 0) == ["", "", ""]
        found = model.segment(images, ["red", "pink", "blue"])
        assert found.has_mask.tolist() == [True, False, True]
        assert found.answer_loss is None
        assert torch.equal(found.logits[0], masks[0] * 2 * SURE - SURE)
        assert (found.logits[1] == -SURE).all()


def test_it_is_evaluated_like_any_model(opened: Callable[..., Sa2va]) -> None:
    with opened() as model:
        scores = evaluate_dual_loop(model, [batch()])
    assert scores["cross"].samples == 2
    assert {name: round(score.giou, 3) for name, score in scores.items()} == {
        "same": 1.0,
        "cross": 1.0,
        "shuffled": 0.0,
        "empty": 0.0,
    }


def test_training_it_is_refused(opened: Callable[..., Sa2va]) -> None:
    images, masks = squares()
    with opened() as model:
        with pytest.raises(UsageError, match="does not learn"):
            DualLoop(DualLoopSettings(captions="truth"))(model, batch())
        for refused in (
            lambda: model.segment(images, ["red", "green"], masks),
            lambda: model.segment(images, torch.zeros(2, 3, 4)),
            lambda: model.caption_loss(images, masks, ["red", "green"]),
            lambda: open_sa2va("weights", (), 0),
        ):
            with pytest.raises(UsageError, match="train model florence2:NAME or cycle"):
                refused()
        with pytest.raises(UsageError, match="no parameter that is trained"):
            require_trainable(model)
        with pytest.raises(UsageError, match="expected 2 captions, got 1"):
            model.segment(images, ["red"])
        assert model._process._process is None, "nothing was started for any of this"


def test_what_the_environment_can_lack(opened: Callable[..., Sa2va], tmp_path: Path) -> None:
    images, masks = squares()
    with pytest.raises(SourceNotFound, match=r"no/such/python: cannot be run \(No such file"):
        opened(python="/no/such/python").captions(images, masks)
    plain = tmp_path / "plain"
    plain.write_text("")
    with pytest.raises(SourceNotFound, match="Permission denied"):
        opened(python=plain).captions(images, masks)
    with pytest.raises(UsageError, match=r"lacks a package .*a_package_that_is_not_there"):
        opened("missing").captions(images, masks)
    with pytest.raises(UsageError, match=r"lacks a package .*no_such_module"):
        Sa2va("weights", python=Path(sys.executable), model="no_such_module:make").captions(images, masks)
    with pytest.raises(
        ModelProcessError, match=r"(?s)died over the start \(exit status 1\).*OSError: no weights at weights"
    ):
        opened("broken").captions(images, masks)
    with pytest.raises(UsageError, match="seconds above 0"):
        opened(answer_s=0)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("raise", "failed over captions: ValueError: a mask it cannot read"),
        ("exit", r"died over captions \(exit status 1\); it said last: .*the card is gone"),
        ("kill", r"died over captions \(killed by SIGKILL\)"),
        ("few", r"expected 2 captions, got \[\]"),
        ("numbers", r"expected 2 captions, got \[7, 7\]"),
    ],
)
def test_a_wrong_answer_is_a_typed_error_and_the_next_question_is_answered(
    kind: str, message: str, opened: Callable[..., Sa2va], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, masks = squares()
    monkeypatch.setenv("STAND_IN", kind)
    with opened("wrong") as model:
        with pytest.raises(ModelProcessError, match=f"(?s){message}"):
            model.captions(images, masks)
        with pytest.raises(ModelProcessError, match=r"expected masks of \(2, 20, 24\), got \(2, 2, 2\)"):
            model.segment(images, ["red", "green"])


def test_who_is_late_is_ended(opened: Callable[..., Sa2va], monkeypatch: pytest.MonkeyPatch) -> None:
    images, masks = squares()
    monkeypatch.setenv("STAND_IN", "sleep")
    begin = time.monotonic()
    with opened("wrong", answer_s=0.5) as model:
        with pytest.raises(ModelProcessError, match="no answer to captions in time"):
            model.captions(images, masks)
        assert model._process._process is None
    with opened("slow", start_s=0.5) as model, pytest.raises(ModelProcessError, match="no answer to the start in time"):
        model.captions(images, masks)
    assert time.monotonic() - begin < 500


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo activating the environment", r"expected an answer to the start, got b'activating the e'"),
        ("printf PENSTOCK; exec sleep 1000", "no answer to the start in time"),
        (r"printf 'PENSTOCK\377\0\0\0\0\0\0\0'; exec sleep 1000", "cannot be read: expected a frame"),
        (r"printf 'PENSTOCK\0\0\0\0\0\0\0\011\0\0\0\005hello'; exec sleep 1000", "cannot be read"),
        ("exec >&-; exec sleep 1000", r"died over the start \(closed its pipes\)"),
    ],
)
def test_garbage_on_stdout_is_no_answer(
    script: str, message: str, tmp_path: Path, opened: Callable[..., Sa2va], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a wrapper around an interpreter can say before, or instead of, the worker."""
    monkeypatch.setattr("penstock.models.sa2va_process._GRACE_S", 0.2)
    wrapper = tmp_path / "python"
    wrapper.write_text(f"#!/bin/sh\n{script}\n")
    wrapper.chmod(0o755)
    images, masks = squares()
    start_s = 3.0 if "in time" in message else 300.0
    with opened(python=wrapper, start_s=start_s) as model, pytest.raises(ModelProcessError, match=message):
        model.captions(images, masks)


def test_the_process_goes_with_its_owner(opened: Callable[..., Sa2va]) -> None:
    images, masks = squares()

    def is_alive(pid: int) -> bool:
        return Path(f"/proc/{pid}").exists() if sys.platform == "linux" else os.system(f"kill -0 {pid}") == 0

    model = opened()
    model.captions(images, masks)
    pids = [model._process._process.pid]  # type: ignore[union-attr]
    model.close()
    assert not is_alive(pids[0])
    model.captions(images, masks)
    pids.append(model._process._process.pid)  # type: ignore[union-attr]
    assert pids[0] != pids[1]
    del model
    gc.collect()
    assert not is_alive(pids[1])


class Network:
    """With the signature of Sa2VA's remote code."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def predict_forward(
        self, image: Any = None, text: str = "", mask_prompts: Any = None, tokenizer: Any = None
    ) -> Any:
        self.heard.append((image.size, text, mask_prompts, tokenizer))
        if mask_prompts is not None:
            return {"prediction": "<p> A red\n square </p> [SEG].<|im_end|>", "prediction_masks": []}
        masks = [np.eye(20, 24, dtype=bool)[None], np.eye(20, 24, 2, dtype=bool)[None]]
        return {"prediction": "Sure, [SEG].", "prediction_masks": [] if "nothing" in text else masks}


def cells(mask: np.ndarray) -> Any:
    """What its remote code makes of a mask."""
    return torch.nn.functional.interpolate(torch.from_numpy(mask[None, None].astype("float32")), (16, 16))[0, 0]


@pytest.mark.parametrize("size", [(480, 640), (1024, 1024), (77, 33), (20, 100)])
def test_a_small_region_has_a_cell_that_sa2va_sees(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    blind = 0
    for _ in range(50):
        mask = np.zeros(size, np.uint8)
        y, x = (int(rng.integers(0, side)) for side in size)
        mask[y : y + 3, x : x + 4] = 1
        seen = sa2va_worker.on_grid(mask)
        before, after = cells(mask), cells(seen)
        if before.any():
            assert seen is mask
            continue
        blind += 1
        assert after.sum() == 1
        row, column = np.argwhere(after.numpy())[0].tolist()
        inside = np.zeros(size, bool)
        inside[-(-row * size[0] // 16) : -(-(row + 1) * size[0] // 16),
               -(-column * size[1] // 16) : -(-(column + 1) * size[1] // 16)] = True  # fmt: skip
        assert (mask.astype(bool) & inside).sum() * 4 >= mask.sum(), "the cell that holds the most of it"
    assert blind
    assert not sa2va_worker.on_grid(np.zeros(size, np.uint8)).any()


def test_sa2va_is_asked_by_its_own_method() -> None:
    network = Network()
    talk = sa2va_worker.Conversation(network, "tokenizer")
    images, masks = np.zeros((2, 20, 24, 3), np.uint8), np.ones((2, 20, 24), np.uint8)
    assert talk.captions(images, masks) == ["A red square ."] * 2
    size, text, prompts, tokenizer = network.heard[0]
    assert (size, tokenizer) == ((24, 20), "tokenizer")
    assert text.startswith("<image>")
    assert [(prompt.shape, prompt.dtype) for prompt in prompts] == [((1, 20, 24), np.float32)]
    dot = np.zeros((1, 20, 24), np.uint8)
    dot[0, 4, 4] = 1
    talk.captions(images[:1], dot)
    assert cells(dot[0]).sum() == 0
    assert cells(network.heard.pop()[2][0][0]).sum() == 1
    union, none = talk.segment(images, ["The red square. ", "nothing"])
    np.testing.assert_array_equal(union, np.eye(20, 24, dtype=bool) | np.eye(20, 24, 2, dtype=bool))
    assert none is None
    assert network.heard[2][1:3] == ("<image>Please segment The red square in this image.", None)
