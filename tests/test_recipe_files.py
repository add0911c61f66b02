"""Recipes of training: by name, or from a TOML file of the configuration's fields."""

from pathlib import Path

import pytest

from penstock.errors import SourceNotFound, UsageError
from penstock.recipes import DISTILL, DUAL_LOOP, distill_recipe, dual_loop_recipe
from penstock.train.distill_config import DistillConfig
from penstock.train.dual_loop_config import DualLoopConfig


def test_names_give_their_configurations() -> None:
    for name in DISTILL:
        assert isinstance(distill_recipe(name), DistillConfig)
    for name in DUAL_LOOP:
        assert isinstance(dual_loop_recipe(name), DualLoopConfig)
    assert dual_loop_recipe("full_dual_loop").share_of_rank * 8 == 64


def test_a_file_gives_its_fields_and_the_defaults_for_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('loss_type = "fgd"\nepochs = 3\nlr = 1\nexport = ["onnx"]\nbinary_data_path = "data"\n')
    found = distill_recipe(str(path))
    assert found == DistillConfig(loss_type="fgd", epochs=3, lr=1.0, export=("onnx",), binary_data_path=Path("data"))
    path.write_text('sa1b_dir = "sa1b:here"\nmax_steps = 5\n')
    assert dual_loop_recipe(str(path)) == DualLoopConfig(sa1b_dir="sa1b:here", max_steps=5)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("epoch = 3", "no field epoch"),
        ("epochs = 2.5", "epochs: expected int"),
        ('loss_type = "l1"', "mse or cosine or fgd or fsdlike"),
        ("epochs = 0", "epochs: expected 1 or more"),
        ("epochs = ", "no TOML"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(UsageError, match=said) as caught:
        distill_recipe(str(path))
    assert str(path) in str(caught.value)


def test_an_unknown_name_and_a_missing_file_are_said() -> None:
    with pytest.raises(UsageError, match="expected one of full_distill, quick_distill"):
        distill_recipe("quick")
    with pytest.raises(SourceNotFound, match=r"nowhere\.toml"):
        dual_loop_recipe("nowhere.toml")
