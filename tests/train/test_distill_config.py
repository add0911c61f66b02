"""Settings of a distillation that cannot work are refused before anything is opened; the field is named."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import UsageError
from penstock.recipes import full_distill
from penstock.train.distill_config import DistillConfig, without_effect


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected 1 or more, got 0"),
        ({"max_steps": 0}, "max_steps: expected 1 or more"),
        ({"feat_weight": float("nan")}, "feat_weight: expected 0 or more, got nan"),
        ({"fgd_alpha_fg": float("inf")}, "fgd_alpha_fg"),
        ({"lr": 0.0}, "lr: expected above 0"),
        ({"seed": -1}, "seed"),
        ({"val_share": 1.0}, "val_share"),
        ({"max_bad": 1.1}, "max_bad"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"edge_mask_kernel_size": 4}, "edge_mask_kernel_size: expected an odd number of pixels, 1 or more, got 4"),
        ({"edge_mask_kernel_size": -1}, "edge_mask_kernel_size"),
        ({"loss_type": "kl"}, "loss_type: expected mse or cosine or fgd or fsdlike, got 'kl'"),
        ({"export": ("tflite",)}, "export"),
        ({"data_path": ("a.tar",)}, "data_path: expected none with data_format=binary"),
        ({"data_format": "npz_dir"}, "data_path: expected a path with data_format=npz_dir"),
        ({"data_format": "tar_shard", "data_path": ("a.tar",), "binary_data_path": Path("a")}, "binary_data_path"),
        ({"enable_mask_loss": True}, "decoder: expected one with enable_mask_loss"),
        ({"feat_weight": 0.0, "edge_weight": 0.0}, "feat_weight: expected a loss at least"),
        ({"export_from": "first"}, "export_from: expected best or last, got 'first'"),
        ({"export_from": "best", "val_share": 0.0}, "export_from: expected last with val_share=0, got 'best'"),
    ],
)
def test_what_cannot_work_is_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DistillConfig(**values)


def test_a_step_of_a_device_is_batches_times_accumulation() -> None:
    assert DistillConfig(batch_size=4, gradient_accumulation_steps=3).share_of_rank == 12


@pytest.mark.parametrize(
    ("values", "other"),
    [
        ({"feat_mask": "objects", "loss_type": "fgd"}, "loss_type='fgd'"),
        ({"fgd_alpha_fg": 0.1}, "loss_type='mse'"),
        ({"fgd_lambda_rela": 1e-6, "loss_type": "cosine"}, "loss_type='cosine'"),
        ({"fsd_weight_bg": 0.1, "loss_type": "fgd"}, "loss_type='fgd'"),
        ({"enable_edge_boost": True}, "loss_type='mse'"),
        ({"fgd_alpha_edge": 0.1, "loss_type": "fgd"}, "enable_edge_boost=False"),
        ({"loss_type": "fgd", "feat_weight": 0.0}, "feat_weight=0.0"),
        ({"use_pos_weight": True, "edge_weight": 0.0}, "edge_weight=0.0"),
        ({"edge_task_start_epoch": 1, "edge_weight": 0.0}, "edge_weight=0.0"),
        ({"edge_mask_kernel_size": 5}, "enable_edge_mask_progressive=False"),
        ({"mask_dice_weight": 2.0, "decoder": "stand-in"}, "enable_mask_loss=False"),
        ({"mask_head_unfreeze_epoch": 1}, "enable_mask_loss=False"),
        ({"val_samples": 8, "val_share": 0.0}, "val_share=0.0"),
        ({"export_from": "last", "export": ()}, r"export=\(\)"),
        ({"backbone_weights": Path("a"), "pretrained_pth": Path("b")}, "pretrained_pth="),
    ],
)
def test_what_has_no_effect_is_refused_with_what_is_in_its_way(values: dict[str, Any], other: str) -> None:
    name, value = next(iter(values.items()))
    with pytest.raises(UsageError, match=f"^distill: {name}: .*no effect with {other}.*; got .*leave it out") as caught:
        DistillConfig(**values)
    assert repr(value) in str(caught.value)


def test_what_has_an_effect_is_taken() -> None:
    boosted = {"loss_type": "fgd", "enable_edge_boost": True, "fgd_alpha_edge": 0.1, "feat_mask": "all"}
    near = {"enable_edge_mask_progressive": True, "edge_mask_kernel_size": 5, "use_pos_weight": True}
    masks = {"enable_mask_loss": True, "decoder": "stand-in", "mask_weight": 2.0, "mask_head_unfreeze_epoch": 1}
    found = DistillConfig(**boosted, **near, **masks, export_from="best")
    assert without_effect(vars(found)) == {}
    assert DistillConfig(loss_type="fsdlike", enable_edge_boost=True, fsd_weight_bg=0.1).fsd_weight_bg == 0.1
    assert DistillConfig(loss_type="cosine", feat_mask="objects", edge_weight=0.0).feat_mask == "objects"


def test_a_recipe_s_values_give_way_to_given_ones_and_given_ones_do_not() -> None:
    recipe = replace(full_distill(), edge_task_start_epoch=1)
    found = recipe.changed({"edge_weight": 0.0, "export": ()})
    assert (found.edge_weight, found.edge_task_start_epoch, found.epochs) == (0.0, 5, recipe.epochs)
    with pytest.raises(UsageError, match=r"edge_task_start_epoch: .* no effect with edge_weight=0\.0"):
        recipe.changed({"edge_weight": 0.0, "edge_task_start_epoch": 1})
