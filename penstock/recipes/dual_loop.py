"""Recipes of the dual loop, after the seed's two scripts."""

from pathlib import Path

from penstock.train.dual_loop_config import DualLoopConfig


def quick_dual_loop() -> DualLoopConfig:
    """A look at everything before the long run: one device, batch 1 x accumulation 4 = 4, 500 pictures of SA-1B, all of
    the rest.

    `penstock train dual-loop --recipe quick_dual_loop --sav-dir NPZ --sa1b-dir SA1B`, or `bash test_dual_loop.sh`.
    """
    return DualLoopConfig(
        output_dir=Path("work_dirs/quick_dual_loop"),
        sav_dir="masklets:",
        sa1b_dir="sa1b:",
        refcoco_dir="./data/ref_seg",
        openimage_dir="./data/openimages",
        sa1b_max_samples=500,
        batch_size=1,
        gradient_accumulation_steps=4,
    )


def full_dual_loop() -> DualLoopConfig:
    """Everything, no limits: 8 devices, 2 x 4 x 8 = 64 samples a step, computed in bfloat16, with an average that is
    evaluated.

    `torchrun --nproc_per_node 8 -m penstock train dual-loop --recipe full_dual_loop --sav-dir NPZ --sa1b-dir SA1B`, or
    `bash run_dual_loop_full.sh`.
    """
    return DualLoopConfig(
        output_dir=Path("work_dirs/full_dual_loop"),
        sav_dir="masklets:",
        sa1b_dir="sa1b:",
        refcoco_dir="./data/ref_seg",
        openimage_dir="./data/openimages",
        batch_size=2,
        gradient_accumulation_steps=4,
        ema_decay=0.999,
        precision="bf16",
    )
