"""Draws of a tracking sampler as columns, for many steps at once."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Draws of n consecutive steps, as columns; see `Draw` for their meaning. Histories: `Tracking.histories`."""

    step: np.ndarray
    """(n,) int64."""
    seed: np.ndarray
    """(n,) uint64."""
    source: np.ndarray
    """(n,) int64."""
    sequence: np.ndarray
    """(n,) int64."""
    template_rows: np.ndarray
    """(n, templates) int64 rows of the table `source`."""
    search_source: np.ndarray
    """(n,) int64."""
    search_sequence: np.ndarray
    """(n,) int64."""
    search_rows: np.ndarray
    """(n, num_search) int64 rows of the table `search_source`."""
    history_search: np.ndarray
    """(n,) int64 row of the table `source` that histories take as the search frame: the latest search row; of a negative
    from another sequence, the search row that a positive would have had."""
    positive: np.ndarray
    """(n,) bool."""
    gap: np.ndarray
    """(n,) int64."""
    attempts: np.ndarray
    """(n,) int64."""

    def __len__(self) -> int:
        return len(self.step)


@dataclass(frozen=True, kw_only=True)
class Histories:
    """Histories of n draws: rows of the table `source` of each."""

    backward: np.ndarray
    """(n, min_interval) int64."""
    backward_padded: np.ndarray
    """(n, min_interval) bool."""
    forward: np.ndarray
    """(n, future_steps) int64."""
    forward_padded: np.ndarray
    """(n, future_steps) bool."""
