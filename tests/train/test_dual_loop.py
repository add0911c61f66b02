"""The dual loop sees both views. That is tested on gradients, in seconds, and not on a number that looks better without."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

import torch

from penstock.errors import BudgetExceeded, UsageError
from penstock.mix_loader import MixLoader
from penstock.mix_rows import MixPart
from penstock.mix_source import Mixed
from penstock.mix_views import Views
from penstock.models.cycle import CycleModel
from penstock.source import Subset
from penstock.testing_pairs import WORDS, MovingDigits
from penstock.train.dual_loop import DualLoop, DualLoopSettings, as_pictures, evaluate_dual_loop


class OneView(Subset):
    """The digits' first views, which are no pairs."""

    def __init__(self, source: MovingDigits) -> None:
        super().__init__(source, np.arange(0, len(source), 2))
        self.schema = source.schema.select(["image", "mask", "sentence"])


def batch_of(pairs: bool = True, size: int = 8) -> dict[str, Any]:
    source = MovingDigits(64) if pairs else OneView(MovingDigits(64))
    mixed = Mixed([MixPart(name="digits", source=source)], views=Views(size=32))
    (batch, *_) = MixLoader(mixed, batch_size=size, output="torch")
    return dict(batch.copy())


def model() -> CycleModel:
    torch.manual_seed(0)
    return CycleModel(WORDS)


def loss_of(net: CycleModel, batch: Mapping[str, Any], **settings: Any) -> torch.Tensor:
    loop = DualLoop(DualLoopSettings(**settings))
    losses = loop(net, batch)
    return torch.stack([loop.weights[name] * value for name, value in losses.sums.items()]).sum()


def test_the_mask_loss_depends_on_the_second_picture_and_the_second_mask() -> None:
    """The original's fault, training on (image1, mask1) twice, fails each of these."""
    batch, net = batch_of(), model()
    images2 = as_pictures(batch["image2"]).requires_grad_()
    loop = DualLoop(DualLoopSettings(language=0.0)).use(net)
    losses = loop.dual_loop_step(as_pictures(batch["image1"]), batch["mask1"].float(), images2, batch["mask2"].float())
    (gradient,) = torch.autograd.grad(losses["loss"], images2)
    assert (gradient.abs().flatten(1).max(dim=1).values > 0).all()
    before = loss_of(net, batch, language=0.0)
    turned = {**batch, "image2": batch["image2"].roll(1, 0)}
    masked = {**batch, "mask2": batch["mask2"].roll(1, 0)}
    assert abs((loss_of(net, turned, language=0.0) - before).item()) > 1e-4
    assert abs((loss_of(net, masked, language=0.0) - before).item()) > 1e-3
    wrong = loss_of(net, turned, language=0.0, same_picture=True)
    assert torch.equal(wrong, loss_of(net, batch, language=0.0, same_picture=True))  # so the test can fail


def test_without_a_pair_view_two_is_view_one_bit_for_bit() -> None:
    batch = batch_of(pairs=False)
    assert not batch["is_pair"].any()
    assert torch.equal(batch["image1"], batch["image2"])
    assert torch.equal(batch["mask1"], batch["mask2"])
    assert batch_of()["is_pair"].all()


def test_pseudo_captions_carry_no_gradient_and_soft_ones_do() -> None:
    batch, net = {**batch_of(), "caption": [""] * 8}, model()
    for mode, reached in (("pseudo", False), ("soft", True)):
        net.zero_grad(set_to_none=True)
        loss_of(net, batch, captions=mode, language=0.0).backward()
        found = net.choose.weight.grad
        assert (found is not None and bool(found.abs().max() > 0)) is reached, mode
    words = net.soft_captions(as_pictures(batch["image1"]), batch["mask1"])
    numbers = words.argmax(dim=2)
    assert torch.allclose(words, torch.nn.functional.one_hot(numbers, words.shape[2]).float(), atol=1e-6)
    assert [net._text(row) for row in numbers.tolist()] == net.captions(as_pictures(batch["image1"]), batch["mask1"])


def listened(net: CycleModel) -> list[Any]:
    """What the segmenter hears from now on."""
    heard: list[Any] = []
    segment = net.segment

    def listen(images: torch.Tensor, captions: Any, masks: Any = None) -> Any:
        heard.append(captions)
        return segment(images, captions, masks)

    net.segment = listen  # type: ignore[method-assign]
    return heard


def test_captions_of_humans_are_used_and_cached_ones_found_by_key() -> None:
    batch, net = batch_of(), model()
    heard = listened(net)
    loss_of(net, batch, captions="truth")
    assert heard[-1] == batch["caption"]
    DualLoop(DualLoopSettings(captions="cached"), cache=lambda key: "red one")(net, batch)
    assert heard[-1] == ["red one"] * 8
    with pytest.raises(UsageError, match="cache"):
        DualLoop(DualLoopSettings(captions="cached"))
    with pytest.raises(UsageError, match="cache"):
        DualLoop(DualLoopSettings(), cache=str)


def test_empty_captions_have_no_mask_loss_are_counted_and_end_the_training() -> None:
    batch, net = batch_of(), model()
    loop = DualLoop(DualLoopSettings(captions="cached", window=16, max_empty=0.4), cache=lambda key: "")
    losses = loop(net, {**batch, "caption": [""] * 8})
    assert losses.metrics["empty_captions"] == 8
    assert all(float(value.detach()) == 0 for value in losses.sums.values())
    sum(losses.sums.values()).backward()  # type: ignore[union-attr]  # connected all the same
    with pytest.raises(BudgetExceeded, match="100% of the last 16 captions were empty"):
        loop(net, batch)


def test_what_is_logged_is_the_mean_over_the_samples_that_were_heard() -> None:
    batch, net = batch_of(), model()
    spoken = set(batch["key1"][:2])
    loop = DualLoop(DualLoopSettings(captions="cached"), cache=lambda key: "red one" if key in spoken else "  ")
    losses = loop(net, {**batch, "caption": ["red one", *["  "] * 7]})
    assert losses.having == {"bce": 2, "dice": 2, "answer": 0}  # this model has no answer in words
    assert losses.metrics["empty_captions"] == 6
    assert loop.counts({**batch, "caption": ["red one", *["  "] * 7]})["language"] == 1
    assert (loop.heard, loop.empty) == (8, 6)


def test_too_many_empty_captions_of_a_cache_point_at_its_keys() -> None:
    loop = DualLoop(DualLoopSettings(captions="cached", window=8), cache=lambda key: "")
    with pytest.raises(BudgetExceeded, match="the cache has none for these samples: look at its keys"):
        loop(model(), batch_of())


def test_points_of_a_step_without_seeds_are_drawn_anew_by_torchs_generator() -> None:
    batch, loop = batch_of(), DualLoop(DualLoopSettings(points=16)).use(model())
    images, masks = as_pictures(batch["image1"]), batch["mask1"].float()

    def step() -> float:
        losses, _ = loop.compute_segmentation_loss(images, ["red one"] * 8, masks)
        return float(losses["bce"].sum().detach())

    torch.manual_seed(1)
    first, second = step(), step()
    torch.manual_seed(1)
    assert step() == first != second


def test_captions_of_a_cache_are_what_is_evaluated_where_it_is_given() -> None:
    batch, net = batch_of(), model().eval()
    sentences = dict(zip(batch["key1"], batch["caption"], strict=True))
    heard = listened(net)
    scores = evaluate_dual_loop(net, [batch], cache=sentences.__getitem__)
    assert heard[:2] == [batch["caption"]] * 2
    assert scores["cross"].samples == 8


def test_at_debug_the_step_says_what_the_original_document_checks(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "penstock.train.dual_loop"):
        loss_of(model(), batch_of())
        loss_of(model(), batch_of(pairs=False))
    said = [record.message for record in caplog.records if "Same image?" in record.message]
    assert said == ["Same image? False", "Same image? True"]
    assert "images1.shape=(8, 3, 32, 32), images2.shape=(8, 3, 32, 32)" in caplog.text


def test_controls_are_scored_on_pairs_alone() -> None:
    net = model().eval()
    scores = evaluate_dual_loop(net, [batch_of(), batch_of(pairs=False)])
    assert {name: score.samples for name, score in scores.items()} == {
        "same": 16,
        "cross": 8,
        "shuffled": 8,
        "empty": 8,
    }


def test_digits_are_what_their_captions_say() -> None:
    source = MovingDigits(50, seed=4)
    for pair in range(50):
        one, two = source[2 * pair], source[2 * pair + 1]
        first, second = str(one["sentence"]).split(), str(two["sentence"]).split()
        assert first[:2] == second[:2]
        assert first[2:] != second[2:]
        for record, words in ((one, first), (two, second)):
            rows, columns = np.nonzero(record["mask"])
            assert ("top", "middle", "bottom")[int(rows.mean() - 1) // 10] == words[2]
            assert ("left", "centre", "right")[int(columns.mean() - 1) // 10] == words[3]
    assert (MovingDigits(50, seed=4)[7]["image"] == source[7]["image"]).all()
    assert (MovingDigits(50, seed=4, test=True)[7]["image"] != source[7]["image"]).any()


@pytest.mark.parametrize("wrong", [{"captions": "mock"}, {"bce": -1}, {"points": 0}, {"max_empty": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        DualLoopSettings(**wrong)


def test_words_that_are_not_known_are_refused() -> None:
    net = model()
    with pytest.raises(UsageError, match="'pink'"):
        net.segment(torch.zeros(1, 3, 32, 32), ["pink one"])
    with pytest.raises(UsageError, match="each once"):
        CycleModel(["a", "a"])
    with pytest.raises(UsageError, match="use"):
        DualLoop(DualLoopSettings()).generate_caption_from_mask(torch.zeros(1, 3, 8, 8), torch.ones(1, 8, 8))
