"""Random numbers of the tracking sampler: pure functions of (seed, step, labels), in whole numbers only.

The generator is splitmix64. Each step has a state, finalise(step * golden + hash of the seed); the number that bears some
labels (purpose, attempt, ...) is finalise(state + hash of the labels). No library's random stream is involved, so a seed
means the same over machines and versions of NumPy.
"""

import numpy as np

from penstock.samplers import mix

_GOLDEN = 0x9E3779B97F4A7C15
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
MAX_BOUND = (1 << 32) - 1
"""The largest range that `below` reduces to."""


def states(seed: int, steps: np.ndarray) -> np.ndarray:
    """The state of each step.

    Args:
        seed: 0..2**64-1.
        steps: (n,) integers, 0 or more.

    Returns:
        (n,) uint64.
    """
    found: np.ndarray = steps.astype(np.uint64) * np.uint64(_GOLDEN)
    found += np.uint64(mix(seed))
    return _finalise(found)


def words(of: np.ndarray, *labels: int) -> np.ndarray:
    """One random number per state.

    Args:
        of: (n,) uint64 from `states`.
        labels: what the number is for; other labels, another number.

    Returns:
        (n,) uint64, uniform.
    """
    return _finalise(of + np.uint64(mix(*labels)))


def below(numbers: np.ndarray, bounds: np.ndarray | int) -> np.ndarray:
    """Numbers reduced to 0..bound-1, by the high half of number * bound: uniform to within bound / 2**64.

    Args:
        numbers: (n,) uint64.
        bounds: (n,) int64, or one for all; 1..2**32-1.

    Returns:
        (n,) int64.
    """
    size = np.asarray(bounds).astype(np.uint64)
    high = (numbers >> _HALF) * size
    high += ((numbers & _LOW) * size) >> _HALF
    high >>= _HALF
    return high.view(np.int64)


def chances(numbers: np.ndarray) -> np.ndarray:
    """Numbers as (n,) float64 in 0..1, 1 excluded: their upper 53 bits."""
    return (numbers >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _finalise(values: np.ndarray) -> np.ndarray:
    """The output function of splitmix64, in place."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values
