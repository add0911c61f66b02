"""The seed's matcher of one frame."""

from penstock.compat.refine import SAM2MaskMatcher

__all__ = ["SAM2MaskMatcher"]
