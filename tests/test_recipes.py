"""Recipes: full configurations, as the seed's two scripts had them."""

from dataclasses import replace
from pathlib import Path

import pytest

from penstock.errors import UsageError
from penstock.recipes import DUAL_LOOP, dual_loop_recipe, full_dual_loop, quick_dual_loop
from penstock.train.dual_loop_config import DualLoopConfig


def test_quick_is_one_times_four_on_500_pictures() -> None:
    quick = quick_dual_loop()
    assert (quick.batch_size, quick.gradient_accumulation_steps, quick.share_of_rank) == (1, 4, 4)
    assert quick.sa1b_max_samples == 500
    assert quick.sav_max_samples is None


def test_full_is_64_on_eight_devices_without_limits() -> None:
    full = full_dual_loop()
    assert full.share_of_rank * 8 == 64
    assert (full.sa1b_max_samples, full.sav_max_samples, full.max_steps) == (None, None, None)


@pytest.mark.parametrize("name", DUAL_LOOP)
def test_a_recipe_is_a_whole_typed_configuration_found_by_its_name(name: str) -> None:
    recipe = dual_loop_recipe(name)
    assert recipe == DUAL_LOOP[name]()
    assert isinstance(recipe, DualLoopConfig)
    assert isinstance(recipe.output_dir, Path)
    assert None not in (recipe.sav_dir, recipe.sa1b_dir, recipe.refcoco_dir, recipe.openimage_dir)
    assert replace(recipe, size=64).size == 64


def test_recipes_write_into_folders_of_their_own() -> None:
    assert len({recipe().output_dir for recipe in DUAL_LOOP.values()}) == len(DUAL_LOOP)


def test_an_unknown_recipe_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(UsageError, match="full_dual_loop, quick_dual_loop"):
        dual_loop_recipe("slow_dual_loop")
