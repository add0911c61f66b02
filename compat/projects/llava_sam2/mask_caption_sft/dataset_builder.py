"""The seed's datasets of dual-loop training; see penstock.compat."""

from penstock.compat import SAVDatasetWrapper, build_mask_caption_dataset, collate_fn_mask_caption

__all__ = ["SAVDatasetWrapper", "build_mask_caption_dataset", "collate_fn_mask_caption"]
