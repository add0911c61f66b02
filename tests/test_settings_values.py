"""Values of a configuration, fitted to types."""

from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import SourceNotFound, UsageError
from penstock.settings.values import fitted, toml_content


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, float, 3.0),
        (3.0, int, 3),
        (0.5, int | float | None, 0.5),
        (2, int | None, 2),
        (None, int | None, None),
        ("a/b", Path, Path("a/b")),
        ("b", Literal["a", "b"], "b"),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([0.1, 1], tuple[float, float], (0.1, 1.0)),
        (float("inf"), float, float("inf")),
    ],
)
def test_what_fits_becomes_of_the_type(value: object, hint: Any, expected: object) -> None:
    found = fitted(value, hint, "x")
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "words"),
    [
        (True, int, "x: expected int, got True"),
        (1, bool, "expected bool"),
        (1.5, int, "expected int"),
        (float("inf"), int, "expected int"),
        (float("nan"), int | float, "expected int or float"),
        (None, int, "expected int"),
        ("c", Literal["a", "b"], "expected a or b"),
        ([1], tuple[float, float], "expected a list of 2 float"),
        ([1, "a"], tuple[int, ...], r"x\[1\]: expected int"),
        (3, str | Path, "expected str or Path"),
    ],
)
def test_what_does_not_fit_is_said(value: object, hint: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        fitted(value, hint, "x")


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())))
def test_any_value_fits_or_is_refused(value: object) -> None:
    for hint in (int, float, bool, str, Path, int | float | None, tuple[int, ...]):
        try:
            fitted(value, hint, "x")
        except UsageError:
            continue


def test_a_file_that_is_no_toml_is_said(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    with pytest.raises(SourceNotFound, match=r"expected a mixture \(TOML\)"):
        toml_content(path, "a mixture")
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="no TOML"):
        toml_content(path, "a mixture")
    path.write_text("a = 1")
    assert toml_content(path, "a mixture") == {"a": 1}
