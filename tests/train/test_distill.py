"""The objective of distillation: which losses count when, what they look at, where gradients go."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch import nn  # noqa: E402

from penstock.models.decoders import open_decoder, trainable_copy  # noqa: E402
from penstock.models.distill_protocols import EDGE, MaskDecoder  # noqa: E402
from penstock.train.distill import Distill, DistillModel  # noqa: E402
from penstock.train.distill_config import DistillConfig  # noqa: E402
from penstock.train.distill_losses import GlobalContext, feature_cosine, feature_mse, fgd  # noqa: E402
from tests.train.ranks_of_eval import LEVEL, Student  # noqa: E402


@pytest.fixture(scope="module")
def decoder() -> MaskDecoder:
    return open_decoder("random:tiny", device="cpu")


def batch_of(count: int = 4) -> dict[str, Any]:
    """The second picture has no box."""
    rng = np.random.default_rng(0)
    fg = (rng.random((count, 8, 8)) > 0.6).astype(np.float32)
    box = np.tile(np.array([20, 30, 70, 90], np.float32), (count, 1))
    mask = np.zeros((count, 256, 256), np.uint8)
    mask[:, 60:180, 40:140] = 1
    arrays = {
        "image": rng.integers(0, 256, (count, 3, 128, 128), np.uint8),
        LEVEL: rng.normal(size=(count, 128, 8, 8)).astype(np.float16),
        "edge_256x256": rng.integers(0, 2, (count, 256, 256), np.uint8),
        "fg_map": fg / fg.sum(axis=(1, 2), keepdims=True),
        "bg_map": (1 - fg) / (1 - fg).sum(axis=(1, 2), keepdims=True),
        "box": box,
        "mask": mask,
        "has_box": np.array([number != 1 for number in range(count)]),
    }
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


def config_of(**values: Any) -> DistillConfig:
    return DistillConfig(**{"decoder": "random:tiny", "enable_mask_loss": True, "epochs": 20, **values})


def test_losses_begin_in_their_epochs_and_feat_weight_counts(decoder: MaskDecoder) -> None:
    config = config_of(
        feat_weight=0.5, edge_weight=2.0, mask_weight=3.0, edge_task_start_epoch=2, mask_task_start_epoch=3
    )
    objective = Distill(config, steps_per_epoch=10, decoder=decoder)
    seen = []
    for step in (0, 9, 10, 19, 20, 25):
        objective.begin(step)
        seen.append((objective.weights["feature"], objective.weights[EDGE], objective.weights["mask"]))
    assert seen == [(0.5, 0, 0), (0.5, 0, 0), (0.5, 2, 0), (0.5, 2, 0), (0.5, 2, 3), (0.5, 2, 3)]
    assert Distill(config, steps_per_epoch=10, decoder=decoder).weights == {"feature": 0.5, EDGE: 2.0, "mask": 3.0}


def test_a_loss_that_never_counts_is_said(caplog: pytest.LogCaptureFixture) -> None:
    Distill(DistillConfig(epochs=4), steps_per_epoch=1)
    assert "edge_task_start_epoch is 5 and there are 4 epochs" in caplog.text
    caplog.clear()
    Distill(config_of(epochs=10, edge_mask_start_epoch=11, enable_edge_mask_progressive=True), steps_per_epoch=1)
    assert "edge_mask_start_epoch is 11 and there are 10 epochs" in caplog.text
    assert caplog.text.count("what it begins never comes") == 1
    caplog.clear()
    Distill(DistillConfig(epochs=4, edge_weight=0), steps_per_epoch=1)
    Distill(config_of(epochs=10), steps_per_epoch=1)
    assert not caplog.text


def test_counts_and_sums_of_a_batch(decoder: MaskDecoder) -> None:
    batch, model = batch_of(), DistillModel(Student())
    objective = Distill(config_of(), steps_per_epoch=1, decoder=decoder)
    assert objective.counts(batch) == {"feature": 4, EDGE: 4, "mask": 3}
    losses = objective(model, batch)
    each = feature_mse(model(batch["image"])[LEVEL], batch[LEVEL])
    torch.testing.assert_close(losses.sums["feature"], each.sum())
    assert losses.per_sample is not None
    assert losses.per_sample.shape == (4,)
    assert float(losses.sums["mask"].detach()) > 0
    alone = objective(model, {name: value[1:2] for name, value in batch.items()})
    assert float(alone.sums["mask"].detach()) == 0
    alone.sums["mask"].backward()
    assert all(value.grad is not None and not value.grad.any() for value in model.student.parameters())


def test_the_mask_loss_reaches_the_student_and_no_weight_of_the_frozen_decoder(decoder: MaskDecoder) -> None:
    model = DistillModel(Student())
    objective = Distill(config_of(), steps_per_epoch=1, decoder=decoder)
    objective(model, batch_of()).sums["mask"].backward()
    assert isinstance(decoder, nn.Module)
    assert any(value.grad is not None and value.grad.any() for value in model.student.parameters())
    assert all(value.grad is None for value in decoder.parameters())


def test_boxes_go_to_the_decoders_square(decoder: MaskDecoder) -> None:
    """A set of smaller pictures of the same frame has the same mask loss."""
    batch, model = batch_of(), DistillModel(Student())
    objective = Distill(config_of(), steps_per_epoch=1, decoder=decoder)
    found = model(batch["image"])
    small = {**batch, "image": batch["image"][..., ::2, ::2], "box": batch["box"] / 2}
    torch.testing.assert_close(objective._mask(model, found, small), objective._mask(model, found, batch))


def test_the_decoder_learns_from_its_epoch_on(decoder: MaskDecoder) -> None:
    copied = trainable_copy(decoder)
    model = DistillModel(Student(), decoder=copied)
    config = config_of(mask_head_unfreeze_epoch=12)
    objective = Distill(config, steps_per_epoch=1, decoder=decoder)
    for step, learns in ((10, False), (11, True)):
        objective.begin(step)
        copied.zero_grad()
        objective(model, batch_of()).sums["mask"].backward()
        assert any(value.grad is not None and value.grad.any() for value in copied.parameters()) is learns


def test_objects_only_looks_at_cells_with_an_object() -> None:
    batch, model = batch_of(), DistillModel(Student())
    for kind in ("mse", "cosine"):
        config = DistillConfig(loss_type=kind, feat_mask="objects", edge_weight=0)  # type: ignore[arg-type]
        before = Distill(config, steps_per_epoch=1)(model, batch).sums["feature"].detach()
        spoiled = torch.where(batch["fg_map"][:, None] > 0, batch[LEVEL], torch.tensor(7.0, dtype=torch.float16))
        after = Distill(config, steps_per_epoch=1)(model, {**batch, LEVEL: spoiled}).sums["feature"]
        torch.testing.assert_close(before, after)
    everywhere = Distill(DistillConfig(loss_type="cosine", edge_weight=0), steps_per_epoch=1)(model, batch)
    expected = feature_cosine(model(batch["image"])[LEVEL], batch[LEVEL]).sum()
    torch.testing.assert_close(everywhere.sums["feature"], expected)


def test_fgd_with_its_relation_term_learns_the_context() -> None:
    batch = batch_of()
    context = GlobalContext(128)
    model = DistillModel(Student(has_edges=False), context=context)
    config = DistillConfig(loss_type="fgd", fgd_lambda_rela=0.1, edge_weight=0)
    losses = Distill(config, steps_per_epoch=1)(model, batch)
    losses.sums["feature"].backward()
    assert any(value.grad is not None and value.grad.any() for value in context.parameters())
    plain = fgd(
        model(batch["image"])[LEVEL], batch[LEVEL], batch["fg_map"], batch["bg_map"], alpha_fg=0.001, beta_bg=0.0005
    )
    assert float(losses.sums["feature"].detach()) > float(plain.sum().detach())


@pytest.mark.parametrize("kind", ["fgd", "fsdlike"])
def test_edge_boost_weighs_cells_with_edges(kind: str) -> None:
    batch, model = batch_of(), DistillModel(Student())
    values = [
        float(
            Distill(
                DistillConfig(loss_type=kind, edge_weight=0, enable_edge_boost=boost),  # type: ignore[arg-type]
                steps_per_epoch=1,
            )(model, batch)
            .sums["feature"]
            .detach()
        )
        for boost in (False, True)
    ]
    assert values[1] > values[0] > 0


def test_edges_are_looked_at_near_edges_from_their_epoch_on() -> None:
    batch, model = batch_of(), DistillModel(Student())
    batch["edge_256x256"] = torch.zeros_like(batch["edge_256x256"])
    batch["edge_256x256"][:, 100, :] = 1
    config = DistillConfig(
        feat_weight=0,
        enable_edge_mask_progressive=True,
        edge_mask_start_epoch=3,
        edge_task_start_epoch=1,
        use_pos_weight=True,
    )
    objective = Distill(config, steps_per_epoch=1)
    values = []
    for step in (1, 2):
        objective.begin(step)
        values.append(float(objective(model, batch).sums[EDGE].detach()))
    assert values[0] != values[1]
