"""Runs and positions, against NumPy."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from penstock.refining.runs import positions, run_starts, runs


@given(hnp.arrays(bool, st.integers(0, 70)) | hnp.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_positions_are_those_of_flatnonzero(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(positions(mask), np.flatnonzero(mask), strict=True)


@given(hnp.arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 1, 300])))
def test_runs_repeated_are_the_map_and_none_goes_on(labels: np.ndarray) -> None:
    values, lengths = runs(labels)
    np.testing.assert_array_equal(np.repeat(values, lengths).reshape(labels.shape), labels, strict=True)
    assert (values[1:] != values[:-1]).all()
    starts = run_starts(labels.reshape(-1), np.s_[:: labels.shape[1]])
    wanted = [at for at in range(labels.size) if at % labels.shape[1] == 0 or labels.flat[at] != labels.flat[at - 1]]
    assert starts.tolist() == wanted
