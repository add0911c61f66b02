"""Recipes: functions that return a full, typed configuration. `dataclasses.replace` changes what one wants otherwise."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TypeVar, get_type_hints

from penstock.errors import UsageError
from penstock.recipes.distill import full_distill, quick_distill
from penstock.recipes.dual_loop import full_dual_loop, quick_dual_loop
from penstock.settings.values import fitted, toml_content
from penstock.train.distill_config import DistillConfig
from penstock.train.dual_loop_config import DualLoopConfig

__all__ = [
    "DISTILL",
    "DUAL_LOOP",
    "distill_recipe",
    "dual_loop_recipe",
    "full_distill",
    "full_dual_loop",
    "quick_distill",
    "quick_dual_loop",
]

DISTILL = {"full_distill": full_distill, "quick_distill": quick_distill}
"""Name -> recipe of `penstock train distill`."""
DUAL_LOOP = {"full_dual_loop": full_dual_loop, "quick_dual_loop": quick_dual_loop}
"""Name -> recipe of `penstock train dual-loop`."""

_Config = TypeVar("_Config", DistillConfig, DualLoopConfig)


def distill_recipe(name: str) -> DistillConfig:
    """The configuration of a recipe by its name, or of a TOML file whose keys are the fields of `DistillConfig`.

    Raises:
        UsageError: no such recipe, or the file does not fit; what would is said.
        SourceNotFound: no such file.
    """
    return _recipe(name, DISTILL, DistillConfig)


def dual_loop_recipe(name: str) -> DualLoopConfig:
    """The configuration of a recipe by its name, or of a TOML file whose keys are the fields of `DualLoopConfig`.

    Raises:
        UsageError, SourceNotFound: as `distill_recipe`.
    """
    return _recipe(name, DUAL_LOOP, DualLoopConfig)


def _recipe(name: str, known: dict[str, Callable[[], _Config]], kind: type[_Config]) -> _Config:
    if name in known:
        return known[name]()
    if not name.endswith(".toml"):
        raise UsageError(f"recipe {name!r}: expected one of {', '.join(known)}, or a file FILE.toml")
    hints = get_type_hints(kind)
    allowed = [field.name for field in fields(kind)]
    content = toml_content(Path(name), "a recipe")
    if unknown := sorted(content.keys() - set(allowed)):
        raise UsageError(f"{name}: no field {', '.join(unknown)}; there are {', '.join(allowed)}")
    values = {key: fitted(value, hints[key], f"{name}: {key}") for key, value in content.items()}
    try:
        return kind(**values)  # type: ignore[arg-type]  # fitted to its fields
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error
