"""The seed's processing of samples; see penstock.compat.processing."""

from penstock.compat.processing import Compose, Normalize, STARKProcessing, TIMProcessing, ToTensor

__all__ = ["Compose", "Normalize", "STARKProcessing", "TIMProcessing", "ToTensor"]
