"""`penstock embed --format npy|npz`: the job writes its store into `.penstock/store` of the folder, files are made from it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from penstock.embed import EmbedConfig, embed, plan_embed
from penstock.errors import BadData, OutputRefused, UsageError
from penstock.exporters.embedding_rows import VectorRows, named, open_rows, store_of
from penstock.exporters.embeddings import put_vectors, require_free
from penstock.jobs import Launcher
from penstock.report import Report
from penstock.store.disk import Disk
from penstock.store.manifest import NAME
from penstock.store.output import refused_if_unwritable

Format = Literal["store", "npy", "npz"]
FORMATS = get_args(Format)


def embed_as(
    config: EmbedConfig,
    format: Format = "store",  # noqa: A002  # the name of the flag
    *,
    on_progress: Callable[[Report], None] = lambda report: None,
    stop: Callable[[], str] = lambda: "",
    launcher: Launcher | None = None,
    disk: Disk | None = None,
) -> Report:
    """As `embed`, with `cache_dir` in one of three formats.

    "store": the store itself. "npy", "npz": files as `export_vectors` writes them, and the store they are made from in
    `.penstock/store`. The store is what is resumed and checked; when all its rows are computed, the files that are missing
    or other than before are written, each at once, the index last. So a run that was stopped has vectors but no files; the
    same call goes on, and ends with the bytes of a run that was not.

    Raises:
        OutputRefused: `cache_dir` holds files of another format or another program; nothing was touched.
        UsageError: two pictures have one image id, or a segment id does not fit, see `export_vectors`; nothing was touched.
        UsageError, MissingExtra, SourceNotFound, RecipeMismatch, BudgetExceeded, OutputFull: as `embed`.
    """
    if format not in FORMATS:
        raise UsageError(f"format: expected {', '.join(FORMATS)}, got {format!r}")
    if format == "store":
        return embed(config, on_progress=on_progress, stop=stop, launcher=launcher, disk=disk)
    inner = _inner(config, format)
    report = embed(
        inner, on_progress=on_progress, stop=stop, check=lambda keys: _refuse_names(keys, config, format),
        launcher=launcher, disk=disk,
    )  # fmt: skip
    report.output = str(config.cache_dir)
    report.notes |= {"format": format, "store": str(inner.cache_dir)}
    if report.interrupted or report.missing:
        report.notes["files"] = "not written: not every row was computed; the same call goes on"
        return report
    with refused_if_unwritable(config.cache_dir):
        put = put_vectors(open_rows(inner.cache_dir, layout="store"), config.cache_dir, format, disk=disk)
    report.notes["files"] = vars(put)
    report.bytes_written += put.bytes_written
    return report


def plan_embed_as(config: EmbedConfig, format: Format = "store") -> dict[str, object]:  # noqa: A002  # as `embed_as`
    """What `embed_as` would do, and why; writes nothing. Values as of `plan_embed`, and `format`.

    Raises:
        As `embed_as`.
    """
    if format not in FORMATS:
        raise UsageError(f"format: expected {', '.join(FORMATS)}, got {format!r}")
    if format == "store":
        return {**plan_embed(config), "format": format}
    plan = plan_embed(_inner(config, format), check=lambda keys: _refuse_names(keys, config, format))
    return {**plan, "output": str(config.cache_dir), "format": format}


def _refuse_names(keys: Sequence[str], config: EmbedConfig, layout: Format) -> None:
    """Raises:
    UsageError: these rows cannot lie in files of this layout.
    """
    where = Path(config.source or str(config.data_path))
    try:
        named(VectorRows(where=where, layout="store", keys=list(keys), labels=np.zeros(0, np.int32)), layout)
    except BadData as error:
        raise UsageError(f"format {layout}: {error}; the format store takes any keys") from error


def _inner(config: EmbedConfig, layout: str) -> EmbedConfig:
    """The same job, with its store inside the folder.

    Raises:
        OutputRefused: the folder holds something else.
    """
    place = config.cache_dir
    if (place / NAME).exists():
        raise OutputRefused(f"{place}: is a store; expected a new or an empty folder for {layout}; see penstock export")
    require_free(place, layout)
    return replace(config, cache_dir=store_of(place))
