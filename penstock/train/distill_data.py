"""The data side of distillation: a store, TARs or a folder, split, checked, and given in batches."""

import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from penstock.errors import BadData, SchemaError, SourceNotFound, UsageError
from penstock.loader import Loader
from penstock.models.distill_protocols import Level, level_stride
from penstock.readers.npz import read_npz
from penstock.readers.npz_dir import NpzDir
from penstock.readers.sa1b_tar import Sa1bTar, open_sa1b_tars
from penstock.samplers import Epochs
from penstock.schema import Record, Schema
from penstock.settings import load_settings
from penstock.stages import sa1b_fields
from penstock.stages.convert import Sa1bConvert
from penstock.store import Store, open_store
from penstock.store.box_format import box_format
from penstock.store.v1_schema import MASK_SIZE
from penstock.train.distill_config import DistillConfig
from penstock.train.distill_contract import COUNTS, EDGES, Contract, DistillData
from penstock.train.distill_rows import JPEG, PairRows, StoreRows

__all__ = ["Contract", "DistillBatches", "DistillData", "find_binary", "open_distill_data"]

DEFAULT_DIR = Path("data/sa1b_binary")
"""Where a binary set is looked for last, from the working folder."""
OBJECTS = ("bboxes", "masks", "image_shape")
_PROBES = 64


def open_distill_data(config: DistillConfig) -> DistillData:
    """Opens what the configuration names, and checks that it fits. Reads no picture.

    Raises:
        SourceNotFound: it is not there; for a binary set without a path all places looked at are named.
        SchemaError: a field is missing (the command that makes it is named), or level, channels or sizes do not fit.
        UsageError: no row that can be used, or none for training or validation.
        StoreUnsupported, StoreCorrupt: as `open_store`.
    """
    if config.data_format == "binary":
        path, chosen_by = find_binary(config)
        return _of_store(config, _opened(path, chosen_by), {"path": str(path), "chosen_by": chosen_by})
    return _of_pairs(config, {"path": ", ".join(config.data_path), "chosen_by": "data-path"})


def find_binary(config: DistillConfig) -> tuple[Path, str]:
    """The folder of a binary set, and what named it: the flag, the settings, or the default."""
    if config.binary_data_path is not None:
        return config.binary_data_path, "binary-data-path"
    loaded = load_settings()
    if loaded.settings.binary_data_dir is not None:
        return loaded.settings.binary_data_dir, f"binary_data_dir of {loaded.origins['binary_data_dir']}"
    return DEFAULT_DIR, "default"


class DistillBatches:
    """Batches of `Contract` for training, shuffled, without end; the same whatever the number of threads.

    Args:
        data: opened.
        config: `share_of_rank` samples for each rank and step, seed, threads, prefetch, budget of bad rows.
        rank: this process.
        world_size: processes; the ranks' batches together are the batch of one process with `world_size` times the share.

    Attributes:
        loader: what reads.
        contract: what makes the batches, and counts boxes that are none.

    Raises:
        UsageError: fewer rows than a step takes.
    """

    def __init__(self, data: DistillData, config: DistillConfig, *, rank: int = 0, world_size: int = 1) -> None:
        batch_size, rows = config.share_of_rank * world_size, len(data.train)
        if rows < batch_size:
            raise UsageError(
                f"distill: batch_size: {rows} rows to train on, a step takes {batch_size} (batch_size x "
                f"gradient_accumulation_steps x {world_size} devices); lower it, or give more data"
            )
        self.contract = Contract(data, config.seed)
        self.loader = Loader(
            data.train,
            batch_size=batch_size,
            sampler=Epochs(rows, seed=config.seed),
            epochs=None,
            pin=_has_cuda(),
            threads=config.num_workers,
            prefetch=config.prefetch_factor,
            rank=rank,
            world_size=world_size,
            errors="substitute",
            max_failures=f"{config.max_bad * 100:.6f}%",
            keys=True,
        )

    def __len__(self) -> int:
        """Steps of an epoch."""
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """This rank's share of each step's batch, from the first not yet taken, without end.

        Raises:
            BudgetExceeded: more rows were bad than `max_bad` allows.
        """
        return map(self.contract, self.loader)

    def state_dict(self) -> dict[str, int | str | bool]:
        """Where the consumer stands; fits JSON."""
        return self.loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there.

        Raises:
            StateMismatch: the state is of other data or of another order.
        """
        self.loader.load_state_dict(state)

    def report(self) -> dict[str, object]:
        """That of the loader (`Loader.report`), and `dropped` boxes by reason."""
        return {**self.loader.report(), "dropped": dict(self.contract.dropped)}


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _of_store(config: DistillConfig, store: Store, facts: Mapping[str, object]) -> DistillData:
    where = str(store.path)
    level = _level(config, store.schema, where)
    names = _wanted(config, level)
    is_v1 = "bboxes" in names and "bboxes" in store.schema and not store.schema["bboxes"].is_variable
    names += COUNTS if is_v1 else ()
    _require_fields(["image" if JPEG not in store.schema else JPEG, *names], store.schema, where)
    if "masks" in names and store.schema["masks"].shape[1:] != (MASK_SIZE, MASK_SIZE):
        raise SchemaError(f"{where}: masks: expected {MASK_SIZE} x {MASK_SIZE}, got {store.schema['masks'].shape}")
    side = store.attributes.get("image_size") if JPEG in store.schema else store.schema["image"].shape[0]
    size = _image_size(level, side, where)
    done = store.done_rows()
    rows = np.arange(len(store)) if done is None else done
    train, held = _split(config, rows, where)
    known = ("model_type", "teacher")
    recorded: dict[str, object] = {name: store.attributes[name] for name in known if name in store.attributes}
    more = {"format": "v1" if is_v1 or store.attributes.get("layout") == "v1" else "store", "rows": len(rows)}
    return DistillData(
        train=StoreRows(store, train, names, size),
        held=None if held is None else StoreRows(store, held, names, size),
        level=level,
        image_size=size,
        boxes=box_format(store) if "bboxes" in names else "xyxy",
        teacher={**facts, **more, "left_out": len(store) - len(rows), **_dtype_of(store.schema, level), **recorded},
    )


def _of_pairs(config: DistillConfig, facts: Mapping[str, object]) -> DistillData:
    where = ", ".join(config.data_path)
    source = _pairs(config)
    if not len(source):
        problems = "; ".join(problem.message for problem in source.problems[:3])
        raise SourceNotFound(f"{where}: expected pictures with NPZ files, got no pair of them {problems}".rstrip())
    found = _plan(source, 1024)
    level = _level(config, found.schema, where)
    names = _wanted(config, level)
    _require_fields(names, found.schema, where)
    size = level.side * level_stride(level.name)
    arrays = _first_arrays(source, level.name)
    stored = arrays[sa1b_fields.npz_name(level.name, arrays)].dtype.name
    stage = _plan(source, size, dtype="float16" if stored == "float16" else "float32", names=["image", *names])
    stage.setup("cpu")
    train, held = _split(config, np.arange(len(source)), where)
    failed = sum(bool(one.failure) for one in source.candidates())
    known = {"model_type": str(arrays["model_type"])} if "model_type" in arrays else {}
    more = {"format": config.data_format, "rows": len(source), "left_out": failed}
    return DistillData(
        train=PairRows(source, train, stage),
        held=None if held is None else PairRows(source, held, stage),
        level=level,
        image_size=size,
        boxes="xyxy",
        teacher={**facts, **more, **_dtype_of(stage.schema, level), **known},
    )


def _opened(path: Path, chosen_by: str) -> Store:
    try:
        return open_store(path)
    except SourceNotFound as error:
        if chosen_by != "default":
            raise
        raise SourceNotFound(
            f"no binary set: --binary-data-path is not given, binary_data_dir is not set (PENSTOCK_BINARY_DATA_DIR, or "
            f"penstock.toml), and the default is none: {error}; penstock teacher makes one"
        ) from error


def _pairs(config: DistillConfig) -> Sa1bTar | NpzDir:
    if config.data_format == "npz_dir":
        if len(config.data_path) > 1:
            raise UsageError(f"data-path: expected one folder with data_format=npz_dir, got {len(config.data_path)}")
        return NpzDir(config.data_path[0])
    paths: list[str] = []
    for path in config.data_path:
        named = sorted(map(str, Path(path).glob("*.tar"))) if Path(path).is_dir() else sorted(glob.glob(path))
        if not named:
            raise SourceNotFound(f"{path}: expected a TAR, a folder of *.tar, or a pattern that matches some; got none")
        paths += named
    source = open_sa1b_tars(paths)
    if not isinstance(source, Sa1bTar):
        raise UsageError(
            f"{', '.join(paths)}: training needs random access, which compressed TARs do not have; unpack them, or run "
            "penstock convert sa1b-tar and train on the store"
        )
    return source


def _first_records(source: Sa1bTar | NpzDir) -> Iterator[Record]:
    """Of the first rows, those whose files can be read."""
    for row in range(min(_PROBES, len(source))):
        try:
            yield source[row]
        except BadData:
            continue  # met again, replaced and counted, when the loader comes to it


def _plan(
    source: Sa1bTar | NpzDir, image_size: int, *, dtype: str = "float32", names: Sequence[str] | None = None
) -> Sa1bConvert:
    stage = Sa1bConvert.plan(
        _first_records(source),
        layout="store",
        feature_dtype="float16" if dtype == "float16" else "float32",
        image_size=image_size,
    )
    return stage if names is None else replace(stage, schema=stage.schema.select(list(names)))


def _first_arrays(source: Sa1bTar | NpzDir, level: str) -> dict[str, np.ndarray]:
    """The level, and what is said of the teacher, of the first pair that has them.

    Raises:
        BadData: none of the first has.
    """
    failure: BadData | None = None
    for record in _first_records(source):
        try:
            arrays = read_npz(np.asarray(record["npz"]), names=[*sa1b_fields.wanted_names([level]), "model_type"])
        except BadData as error:
            failure = failure or error
            continue  # as above
        if sa1b_fields.npz_name(level, arrays) in arrays:
            return arrays
    raise BadData(f"{level}: none of the first {_PROBES} NPZs has it") from failure


def _level(config: DistillConfig, schema: Schema, where: str) -> Level:
    """The level that is learned, as the data have it.

    Raises:
        SchemaError: the data lack it, or it has other channels than asked for, or no square side.
        UsageError: `level` is no name of one.
    """
    stride = level_stride(config.level)
    _require_fields([config.level], schema, where)
    shape = schema[config.level].shape
    if len(shape) != 3 or None in shape or shape[1] != shape[2]:
        raise SchemaError(f"{where}: {config.level}: expected features of shape (C, n, n), got {shape}")
    channels, side = int(shape[0] or 0), int(shape[1] or 0)
    if config.teacher_channels not in (None, channels):
        raise SchemaError(
            f"{where}: {config.level}: expected {config.teacher_channels} channels (teacher_channels), got {channels}: these "
            "are features of another teacher; leave teacher_channels out, or give that teacher's data"
        )
    return Level(name=config.level, stride=stride, channels=channels, side=side)


def _wanted(config: DistillConfig, level: Level) -> list[str]:
    """Fields that this configuration looks at, beside the picture."""
    names = [level.name]
    if config.edge_weight > 0 or config.enable_edge_boost:
        names.append(EDGES)
    if config.feat_weight > 0 and (config.loss_type in ("fgd", "fsdlike") or config.feat_mask == "objects"):
        names += [f"{kind}_map_{level.side}x{level.side}" for kind in ("fg", "bg")]
    return [*names, *OBJECTS] if config.decoder is not None else names


def _require_fields(names: Sequence[str], schema: Schema, where: str) -> None:
    """Raises:
    SchemaError: a field is not there; says which command makes it.
    """
    missing = [name for name in names if name not in schema]
    if not missing:
        return
    words = dict.fromkeys(_word(name) for name in missing)
    have = dict.fromkeys(_word(name) for name in schema)
    fields = ",".join(word for word in {**have, **words} if word)
    raise SchemaError(
        f"{where}: no field {', '.join(missing)}, which this configuration needs; there are {', '.join(schema)}. "
        f"Make them: penstock teacher --source ... --output ... --fields {fields}"
    )


def _word(name: str) -> str:
    """The word of `penstock teacher --fields` that stands for a field; none for those that are always there."""
    if name.startswith("edge_"):
        return "edges"
    if name.startswith(("fg_map", "bg_map")):
        return "weights"
    return {"bboxes": "bbox", "masks": "mask"}.get(name, name if sa1b_fields.FEATURES.fullmatch(name) else "")


def _image_size(level: Level, side: object, where: str) -> int:
    """Side of the pictures.

    Raises:
        SchemaError: it is not that of the teacher's input.
    """
    size = level.side * level.stride
    if side != size:
        raise SchemaError(
            f"{where}: {level.name} of {level.side} x {level.side} comes from pictures of {size} x {size}, the pictures here "
            f"have {side}: a student would see them at another scale than the teacher; convert with --image-size {size}"
        )
    return size


def _dtype_of(schema: Schema, level: Level) -> dict[str, object]:
    return {"feature_dtype": schema[level.name].dtype}


def _split(config: DistillConfig, rows: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows to train on, and the last ones, to evaluate on.

    Raises:
        UsageError: none for either.
    """
    rows = rows[: config.max_samples].astype(np.int64)
    if not len(rows):
        raise UsageError(f"{where}: no row is done; run the command that makes them to its end (penstock info {where})")
    if not config.val_share:
        return rows, None
    count = max(1, round(len(rows) * config.val_share))
    if count >= len(rows):
        raise UsageError(
            f"{where}: val_share {config.val_share} of {len(rows)} rows leaves none for "
            f"{'validation' if len(rows) == 1 else 'training'}: give more rows, or val_share 0, which evaluates nothing"
        )
    return rows[:-count], rows[-count:]
