"""Recipes: functions that return a full, typed configuration. `dataclasses.replace` changes what one wants otherwise."""

from penstock.errors import UsageError
from penstock.recipes.dual_loop import full_dual_loop, quick_dual_loop
from penstock.train.dual_loop_config import DualLoopConfig

__all__ = ["DUAL_LOOP", "dual_loop_recipe", "full_dual_loop", "quick_dual_loop"]

DUAL_LOOP = {"full_dual_loop": full_dual_loop, "quick_dual_loop": quick_dual_loop}
"""Name -> recipe of `penstock train dual-loop`."""


def dual_loop_recipe(name: str) -> DualLoopConfig:
    """The configuration of a recipe by its name.

    Raises:
        UsageError: there is no such recipe; the names are listed.
    """
    if name not in DUAL_LOOP:
        raise UsageError(f"recipe {name!r}: expected one of {', '.join(DUAL_LOOP)}")
    return DUAL_LOOP[name]()
