"""Samplers: pure functions of position. They see no pixels and hold no state."""

from penstock.samplers.epochs import CHUNK_ROWS, Epochs, Sampler
from penstock.samplers.mixture import Mix, Part
from penstock.samplers.permutation import mix, permute

__all__ = ["CHUNK_ROWS", "Epochs", "Mix", "Part", "Sampler", "mix", "permute"]
