"""Settings out of range are refused by name."""

import pytest

from penstock.errors import UsageError
from penstock.refining.settings import RefineSettings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("matcher", "hungarian"),
        ("profile", "sam"),
        ("points_per_side", 0),
        ("points_per_side", 1.5),
        ("min_pixels", 0),
        ("poles", True),
        ("negatives", -1),
        ("iou_threshold", 1.1),
        ("band_share", -0.1),
        ("min_core_recall", float("nan")),
        ("residual_limit_share", 2.0),
    ],
)
def test_a_value_out_of_range_is_refused(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name):
        RefineSettings(**{name: value})  # type: ignore[arg-type]


def test_the_seed_profile_needs_automatic_masks_and_has_no_gate() -> None:
    with pytest.raises(UsageError, match="overlap"):
        RefineSettings(profile="seed")
    assert not RefineSettings(profile="seed", matcher="overlap").uses_gate
    assert RefineSettings().uses_gate
    assert not RefineSettings(gate=False).uses_gate
