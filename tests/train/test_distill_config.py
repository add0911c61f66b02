"""Settings of a distillation that cannot work are refused before anything is opened; the field is named."""

from pathlib import Path
from typing import Any

import pytest

from penstock.errors import UsageError
from penstock.train.distill_config import DistillConfig


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
    ],
)
def test_what_cannot_work_is_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DistillConfig(**values)


def test_a_step_of_a_device_is_batches_times_accumulation() -> None:
    assert DistillConfig(batch_size=4, gradient_accumulation_steps=3).share_of_rank == 12
