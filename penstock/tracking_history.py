"""Histories: which frames before the search frame, and which from it on, a tracking sample tells of."""

import numpy as np

from penstock.errors import UsageError


def history_ids(
    first: np.ndarray, search: np.ndarray, length: np.ndarray, *, steps: int, future: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Frames of trajectories, `gt_frame_ids_backward` and `gt_frame_ids_forward` of the trackers that use them.

    Backward is first..search-1. If these are `steps` or more, `steps` of them at even distances, first and last included,
    rounded down. If fewer, the last `steps` frames before the search frame; where the video has not so many, the first one
    is repeated on the left. A search frame that is the video's first has none: all steps are that frame, padded.
    Forward is search, search + 1, ...; past the end of the video its last frame is repeated.

    Args:
        first: (n,) int64 earliest template frame, from 0.
        search: (n,) int64 latest search frame; it may lie before `first`.
        length: (n,) int64 frames in the video.
        steps: T, 1 or more.
        future: F, 1 or more.

    Returns:
        backward (n, T) int64 frames; (n, T) bool, which of them are padded; forward (n, F) int64; (n, F) bool.

    Raises:
        UsageError: `steps` or `future` is below 1.
    """
    if steps < 1 or future < 1:
        raise UsageError(f"history_ids: expected steps and future to be 1 or more, got {steps} and {future}")
    first, search, length = (np.asarray(values, np.int64)[:, None] for values in (first, search, length))
    number = np.arange(steps)
    start = np.maximum(search - steps, 0)
    missing = steps - (search - start)
    is_long = search - first >= steps
    spread = first + number * (search - 1 - first) // max(steps - 1, 1)
    backward = np.where(is_long, spread, start + np.maximum(number - missing, 0))
    forward = search + np.arange(future)
    last = length - 1
    return backward, ~is_long & (number < missing), np.minimum(forward, last), forward > last
