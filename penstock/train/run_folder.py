"""What every training run does with its folder and its first weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import orjson
from torch import nn

from penstock.errors import OutputRefused, PartClaimed, RecipeMismatch
from penstock.models.weights_file import differences
from penstock.store.claims import HEARTBEAT_S, STALE_S, Claim
from penstock.store.output import refused_if_unwritable
from penstock.train.checkpoint import latest_step, load_checkpoint
from penstock.train.distributed import Ranks
from penstock.train.logs import TensorBoard, WandB, Writer


def writers_of(folder: Path, ranks: Ranks, *, tensorboard: bool, wandb: str | None) -> list[Writer]:
    """Further places for numbers, on the first rank; none on the others.

    Args:
        folder: of the run; made if it is not there.
        ranks: of the run.
        tensorboard: event files in the folder.
        wandb: a project there.

    Raises:
        OutputRefused: the folder cannot be written.
        MissingExtra: a package is not installed.
    """
    if not ranks.is_first:
        return []
    with refused_if_unwritable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    found: list[Writer] = [TensorBoard(folder, from_step=latest_step(folder))] if tensorboard else []
    return found if wandb is None else [*found, WandB(folder, wandb)]


@contextmanager
def alone_in(folder: Path, ranks: Ranks) -> Iterator[None]:
    """No other training writes in a folder meanwhile: each would remove the checkpoints of the other, and cut its log.

    Args:
        folder: of the run; made if it is not there.
        ranks: of the run. The first one holds the claim; where several hosts share the file system, that of a run that was
            killed is waited for.

    Raises:
        PartClaimed: another run trains there; on every rank.
        OutputRefused: the folder cannot be written.
    """
    claim, said = Claim(folder), ""
    if ranks.is_first:
        with refused_if_unwritable(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                claim.acquire(wait_s=STALE_S + HEARTBEAT_S if claim.shared else 0.0)
            except PartClaimed as error:
                said = str(error)
    said = str(ranks.gathered(said)[0])
    if said:
        raise PartClaimed(said)
    try:
        yield
    finally:
        claim.release()


def require_folder(output: Path) -> None:
    """Refuses what can be no folder, before the data are looked at, which may take long.

    Raises:
        OutputRefused: a file is there, or above it.
    """
    there = next(one for one in (output, *output.absolute().parents) if one.exists())
    if not there.is_dir():
        raise OutputRefused(f"output-dir {output}: expected a folder, or nothing yet; {there} is a file")


def begin_with(model: nn.Module, path: Path, *, means: Mapping[str, object] | None = None) -> None:
    """Takes the weights of a checkpoint; the average, where it has one, for that is what was evaluated.

    Args:
        model: takes them.
        path: the checkpoint.
        means: what of a run's identity says what the weights mean: it must be the same there. Weights of another vocabulary
            can have the same shapes.

    Raises:
        SourceNotFound, StoreCorrupt: as `load_checkpoint`.
        RecipeMismatch: the weights are of another model; how many differ is said, with the first names.
    """
    content = load_checkpoint(path)
    weights = {**content["model"], **content["ema"]}
    given = orjson.loads(content["identity"])["given"]
    others = [
        f"{name}: expected {value!r}, got {given.get(name, 'nothing')!r}"
        for name, value in (means or {}).items()
        if given.get(name) != value
    ]
    if wrong := "; ".join(others) or differences(model.state_dict(), weights):
        raise RecipeMismatch(
            f"{path}: expected weights of the same model, got those of another: {wrong}. Take a checkpoint of this model, or "
            "train the one of that run: the config in its report.json says which"
        )
    model.load_state_dict(weights)
