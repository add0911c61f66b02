"""The seed's dual-loop training: its datasets as torch sees them, its collate function, its loop, its script. Their command
line, hence their output.

Images are (3, H, W) float32 RGB of 0..1, masks (H, W) float32 of 0 or 1.
"""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

import numpy as np
from cyclopts import App, Parameter

from penstock.cli_train import DualLoopFlags, run_dual_loop
from penstock.compat.script import run_script
from penstock.errors import MissingExtra, NotFinite, UsageError
from penstock.mix_source import Mixed
from penstock.mix_views import Views
from penstock.train.dual_loop_config import DualLoopConfig, DualLoopLines

if TYPE_CHECKING:
    import torch
    from torch import nn

try:
    from torch.utils.data import Dataset
except ImportError as error:
    raise MissingExtra("torch", "train", "the seed's dual loop") from error

_ABOUT = (
    "Dual-loop training on SA-V, SA-1B, RefCOCO and Open Images. The flags are those of `penstock train dual-loop`."
)
_FLAGS = ("sav_dir", "sa1b_dir", "refcoco_dir", "openimage_dir", "sa1b_max_samples", "sav_max_samples", "sav_repeats",
          "refcoco_repeats", "size", "seed")  # fmt: skip
"""Of the arguments, those that say what data there are."""


class MixedDataset(Dataset[dict[str, Any]]):
    """A mixture as a map-style dataset. An index is a position of its shuffled epoch; a bad sample is replaced by another of
    its source, the same one every time.

    Args:
        mixed: the mixture.
    """

    def __init__(self, mixed: Mixed) -> None:
        self.mixed = mixed

    def __len__(self) -> int:
        return len(self.mixed)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """image1, mask1: tensors; image2, mask2: tensors, or None where there is no second frame; has_paired_frame: bool;
        dataset_type: "sav", "sa1b", "openimage" or "refcoco"; caption: the human sentence, or None.

        Raises:
            IndexError: outside.
            BadData: this sample and what would stand in for it are bad.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        sample = self.mixed[index % len(self)]
        is_pair = bool(sample["is_pair"])
        views: dict[str, Any] = {}
        for view in "12":
            there = view == "1" or is_pair
            views[f"image{view}"] = _picture(np.asarray(sample[f"image{view}"])) if there else None
            views[f"mask{view}"] = _mask(np.asarray(sample[f"mask{view}"])) if there else None
        return {
            **views,
            "has_paired_frame": is_pair,
            "dataset_type": str(sample["source"]),
            "caption": str(sample["caption"]) or None,
        }


class SAVDatasetWrapper(MixedDataset):
    """Pairs of frames from masklet files.

    Args:
        npz_dir: folder of the files, at any depth.
        target_size: (height, width) of pictures and masks, which are equal.
        prefix: "masklet_data".
        shuffle: the order is shuffled either way: True shuffles it by another seed.
        max_samples: only the first so many files.

    Raises:
        SourceNotFound: there are none.
        UsageError: sizes that differ, or another prefix.
    """

    def __init__(
        self,
        npz_dir: str,
        target_size: tuple[int, int] = (1024, 1024),
        prefix: str = "masklet_data",
        shuffle: bool = False,
        max_samples: int | None = None,
    ) -> None:
        if prefix != "masklet_data":
            raise UsageError(f"SAVDatasetWrapper: prefix: expected masklet_data, got {prefix!r}")
        config = DualLoopConfig(
            sav_dir=f"masklets:{npz_dir}", sav_max_samples=max_samples, size=_side(target_size), seed=int(shuffle),
            eval_share=0,
        )  # fmt: skip
        super().__init__(_mixed(config, quiet=True))


def build_mask_caption_dataset(
    sav_dir: str | None = None,
    sa1b_dir: str | None = None,
    openimage_config: Mapping[str, str] | None = None,
    refcoco_config: Mapping[str, str] | None = None,
    target_size: tuple[int, int] = (1024, 1024),
    *,
    sa1b_max_samples: int | None = None,
    sav_max_samples: int | None = None,
    sav_repeats: int = 1,
    refcoco_repeats: int = 1,
) -> MixedDataset:
    """All datasets, one after another, each row once (times its repeats), shuffled. Prints the seed's lines.

    Args:
        sav_dir, sa1b_dir: folders.
        openimage_config: with `annotation_csv`, in the folder of the dataset; the other keys follow from the layout.
        refcoco_config: with `data_root`, and `dataset_name` and `split` if they are not refcoco and train.
        target_size: (height, width), which are equal.
        sa1b_max_samples: pictures.
        sav_max_samples: samples.
        sav_repeats, refcoco_repeats: how often each row comes.

    Raises:
        SourceNotFound: a dataset is not there (Open Images may be missing).
        UsageError: a value is out of range, or a key is lacking.
    """
    image_dir = None if openimage_config is None else str(Path(_key(openimage_config, "annotation_csv")).parent)
    refcoco = None
    if refcoco_config is not None:
        name = refcoco_config.get("dataset_name", "refcoco")
        options = {
            "dataset": name, "split_by": "umd" if name == "refcocog" else "unc",
            "split": refcoco_config.get("split", "train"),
        }  # fmt: skip
        refcoco = f"refcoco:{_key(refcoco_config, 'data_root')}?{urlencode(options)}"
    config = DualLoopConfig(
        sav_dir=sav_dir, sa1b_dir=sa1b_dir, refcoco_dir=refcoco, openimage_dir=image_dir, size=_side(target_size),
        sa1b_max_samples=sa1b_max_samples, sav_max_samples=sav_max_samples, sav_repeats=sav_repeats,
        refcoco_repeats=refcoco_repeats, eval_share=0,
    )  # fmt: skip
    return MixedDataset(_mixed(config))


def build_datasets(args: object) -> MixedDataset:
    """The datasets that the script's arguments name; Open Images may be missing. Prints the seed's lines.

    Args:
        args: an object with attributes of the flags' names, as argparse gives; those that it lacks are not set.

    Raises:
        SourceNotFound, UsageError: as `build_mask_caption_dataset`.
    """
    given = {name: value for name in _FLAGS if (value := getattr(args, name, None)) is not None}
    return MixedDataset(_mixed(DualLoopConfig(**given, eval_share=0)))


def collate_fn_mask_caption(samples: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """A batch of the datasets' samples.

    Args:
        samples: B of them; None is left out.

    Returns:
        image1, image2 (B, 3, H, W); mask1, mask2 (B, H, W): view 2 is view 1 for a sample without a second frame, and image2
        and mask2 are None where no sample has one. has_paired_frame (B,) bool; captions, dataset_types: lists. None if
        nothing is left.
    """
    import torch

    kept = [one for one in samples if one is not None]
    if not kept:
        return None
    paired = [bool(one["has_paired_frame"]) for one in kept]
    batch: dict[str, Any] = {name: torch.stack([one[name] for one in kept]) for name in ("image1", "mask1")}
    for name in ("image", "mask"):
        views = [one[f"{name}2"] if is_pair else one[f"{name}1"] for one, is_pair in zip(kept, paired, strict=True)]
        batch[f"{name}2"] = torch.stack(views) if any(paired) else None
    return {
        **batch,
        "has_paired_frame": torch.tensor(paired),
        "captions": [one["caption"] for one in kept],
        "dataset_types": [one["dataset_type"] for one in kept],
    }


def train_epoch(
    model: "nn.Module",
    dataloader: Iterable[Mapping[str, Any] | None],
    optimizer: "torch.optim.Optimizer",
    *,
    gradient_accumulation_steps: int = 4,
    max_grad_norm: float = 1.0,
) -> dict[str, float]:
    """One epoch of the seed's plain loop: both frames are used, and what is left at the end is a smaller step.

    Args:
        model: captioner and segmenter, on its device.
        dataloader: batches of `collate_fn_mask_caption`.
        optimizer: of the model.
        gradient_accumulation_steps: batches of a step.
        max_grad_norm: of clipping.

    Returns:
        Means over the batches: loss, mask_loss, dice_loss, llm_loss.

    Raises:
        UsageError: there was no batch.
        BudgetExceeded: too many captions were empty.
        NotFinite: a gradient is NaN or infinite; the weights are those before the step.
    """
    import torch

    from penstock.train.dual_loop import DualLoop, DualLoopSettings

    loop = DualLoop(DualLoopSettings()).use(model.train())
    device = next(model.parameters()).device
    totals: dict[str, float] = {}
    count = 0
    kept = iter(batch for batch in dataloader if batch is not None)
    while batches := list(islice(kept, gradient_accumulation_steps)):
        for batch in batches:
            found = loop.dual_loop_step(*(one.to(device) for one in _views(batch)))
            (found["loss"] / len(batches)).backward()  # type: ignore[no-untyped-call]  # of torch
            for name, value in found.items():
                totals[name] = totals.get(name, 0.0) + float(value.detach())
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm))
        if not math.isfinite(norm):
            raise NotFinite(
                f"train_epoch: batch {count + len(batches)}: the gradient of it or of the {len(batches) - 1} before is {norm}; "
                "the weights are as before them"
            )
        optimizer.step()
        optimizer.zero_grad()
        count += len(batches)
    if not count:
        raise UsageError("train_epoch: the loader gives no batch")
    return {
        "loss": totals["loss"] / count,
        "mask_loss": totals["bce"] / count,
        "dice_loss": totals["dice"] / count,
        "llm_loss": (totals["language"] + totals["answer"]) / count,
    }


def main(argv: Sequence[str]) -> int:
    """Runs the script and gives its exit code: 0 done, 1 a fault or too much bad data, 2 misuse."""
    app = App(name="train_dual_loop", help=_ABOUT, result_action="return_value", version_flags=())

    @app.default
    def default(flags: Annotated[DualLoopFlags, Parameter(name="*")] = DualLoopFlags()) -> int:  # noqa: B008  frozen
        return run_dual_loop(flags.to_config(), lines())

    return run_script(app, argv)


def lines() -> DualLoopLines:
    """The seed's words."""
    text = (files("penstock.compat") / "dual_loop_lines.json").read_text(encoding="utf-8")
    return DualLoopLines(**json.loads(text))


def _mixed(config: DualLoopConfig, *, quiet: bool = False) -> Mixed:
    from penstock.train.dual_loop_data import open_data

    data = open_data(config, lines=lines(), say=None if quiet else _say)
    return Mixed(data.train, seed=config.seed, views=Views(size=config.size))


def _views(batch: Mapping[str, Any]) -> tuple["torch.Tensor", ...]:
    second = "2" if batch["image2"] is not None else "1"
    return batch["image1"], batch["mask1"], batch[f"image{second}"], batch[f"mask{second}"]


def _picture(image: np.ndarray) -> "torch.Tensor":
    import torch

    return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32) / 255)


def _mask(mask: np.ndarray) -> "torch.Tensor":
    import torch

    return torch.from_numpy(mask.astype(np.float32))


def _side(size: tuple[int, int]) -> int:
    height, width = size
    if height != width:
        raise UsageError(f"target_size: expected height and width that are equal, got {size}")
    return height


def _key(config: Mapping[str, str], name: str) -> str:
    if name not in config:
        raise UsageError(f"expected a configuration with {name}, got {', '.join(config) or 'an empty one'}")
    return config[name]


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
