"""The seed's dataset; see penstock.compat."""

from penstock.compat import BinaryDistillDataset, collate_distill

__all__ = ["BinaryDistillDataset", "collate_distill"]
