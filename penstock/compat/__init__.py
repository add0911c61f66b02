"""The public names of the seeds' Python interfaces, over penstock's own. Each is imported on first use.

distill.py         BinaryDistillDataset, collate_distill
distill_open.py    its checks when a folder is opened
sequence.py        SequenceSaver; sequence_batches.py takes apart what a DataLoader gives
tracking.py        TimingTrackingSampler; tracking_datasets.py reads datasets of the original interface
tensor_dict.py     TensorDict, what the sampler gives
processing.py      Compose, ToTensor, Normalize, STARKProcessing, TIMProcessing
sequence_scripts.py  save_sequences_from_sampler and the scripts that save sequences
embed.py           COCOPanopticDirectory and the functions of the embedding cache; embed_script.py is its script
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.compat.distill import BinaryDistillDataset, collate_distill
    from penstock.compat.embed import (
        COCOPanopticDirectory,
        create_dataloader,
        extract_image_and_segment_ids,
        prep_mask_image,
        save_image_embeddings,
    )
    from penstock.compat.sequence import SequenceSaver
    from penstock.compat.tracking import TimingTrackingSampler

_HOMES = {
    "BinaryDistillDataset": "distill",
    "COCOPanopticDirectory": "embed",
    "collate_distill": "distill",
    "SequenceSaver": "sequence",
    "TimingTrackingSampler": "tracking",
    "create_dataloader": "embed",
    "extract_image_and_segment_ids": "embed",
    "prep_mask_image": "embed",
    "save_image_embeddings": "embed",
}

__all__ = [
    "BinaryDistillDataset",
    "COCOPanopticDirectory",
    "SequenceSaver",
    "TimingTrackingSampler",
    "collate_distill",
    "create_dataloader",
    "extract_image_and_segment_ids",
    "prep_mask_image",
    "save_image_embeddings",
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
