"""Recipes of distillation."""

from pathlib import Path

from penstock.train.distill_config import DistillConfig


def quick_distill() -> DistillConfig:
    """A look at everything before the long run: one device, two epochs, features and edges from the first epoch on.

    `penstock train distill --recipe quick_distill --binary-data-path DIR`.
    """
    return DistillConfig(
        output_dir=Path("work_dirs/quick_distill"), epochs=2, batch_size=8, edge_task_start_epoch=1, log_interval=10
    )


def full_distill() -> DistillConfig:
    """A student in earnest: 32 pictures a device, bfloat16, an average that is evaluated, masks through the teacher's
    frozen decoder from the third epoch on. SAM 2.1 base plus; its weights where `--decoder` says.

    `torchrun --nproc_per_node 8 -m penstock train distill --recipe full_distill --binary-data-path DIR`.
    """
    return DistillConfig(
        output_dir=Path("work_dirs/full_distill"),
        epochs=10,
        batch_size=32,
        num_workers=8,
        edge_task_start_epoch=1,
        decoder="sam2.1_hiera_b+",
        enable_mask_loss=True,
        mask_task_start_epoch=3,
        precision="bf16",
        ema_decay=0.999,
        export=("state_dict", "onnx", "torchscript"),
    )
