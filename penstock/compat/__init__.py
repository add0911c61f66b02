"""The public names of the seeds' Python interfaces, over penstock's own. Each is imported on first use.

distill.py         BinaryDistillDataset, collate_distill
distill_open.py    its checks when a folder is opened
sequence.py        SequenceSaver; sequence_batches.py takes apart what a DataLoader gives
tracking.py        TimingTrackingSampler; tracking_datasets.py reads datasets of the original interface
tensor_dict.py     TensorDict, what the sampler gives
processing.py      Compose, ToTensor, Normalize, STARKProcessing, TIMProcessing
sequence_scripts.py  save_sequences_from_sampler and the scripts that save sequences
embed.py           COCOPanopticDirectory and the functions of the embedding cache; embed_script.py is its script
refine.py          SAM2MaskMatcher and the programs of mask refinement
dual_loop.py       SAVDatasetWrapper, build_mask_caption_dataset, collate_fn_mask_caption, build_datasets, train_epoch; the script
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.compat.distill import BinaryDistillDataset, collate_distill
    from penstock.compat.dual_loop import (
        SAVDatasetWrapper,
        build_datasets,
        build_mask_caption_dataset,
        collate_fn_mask_caption,
        train_epoch,
    )
    from penstock.compat.embed import (
        COCOPanopticDirectory,
        create_dataloader,
        extract_image_and_segment_ids,
        prep_mask_image,
        save_image_embeddings,
    )
    from penstock.compat.refine import SAM2MaskMatcher
    from penstock.compat.sequence import SequenceSaver
    from penstock.compat.tracking import TimingTrackingSampler

_HOMES = {
    "BinaryDistillDataset": "distill",
    "COCOPanopticDirectory": "embed",
    "collate_distill": "distill",
    "SAM2MaskMatcher": "refine",
    "SAVDatasetWrapper": "dual_loop",
    "SequenceSaver": "sequence",
    "TimingTrackingSampler": "tracking",
    "build_datasets": "dual_loop",
    "build_mask_caption_dataset": "dual_loop",
    "collate_fn_mask_caption": "dual_loop",
    "create_dataloader": "embed",
    "extract_image_and_segment_ids": "embed",
    "prep_mask_image": "embed",
    "save_image_embeddings": "embed",
    "train_epoch": "dual_loop",
}

__all__ = [
    "BinaryDistillDataset",
    "COCOPanopticDirectory",
    "SAM2MaskMatcher",
    "SAVDatasetWrapper",
    "SequenceSaver",
    "TimingTrackingSampler",
    "build_datasets",
    "build_mask_caption_dataset",
    "collate_distill",
    "collate_fn_mask_caption",
    "create_dataloader",
    "extract_image_and_segment_ids",
    "prep_mask_image",
    "save_image_embeddings",
    "train_epoch",
]


def __getattr__(name: str) -> object:
    """Loads a public name's module on first use: `import penstock.compat` itself imports nothing heavy."""
    if name not in _HOMES:
        raise AttributeError(f"module 'penstock.compat' has no attribute {name!r}")
    value = getattr(import_module(f"penstock.compat.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
