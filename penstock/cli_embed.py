"""The command line of the embedding system: embed, search, dedup, zero-shot, map."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from penstock.cli_common import FAULT, OK, Flag, Json
from penstock.cli_job import run_job
from penstock.report import dump_json

if TYPE_CHECKING:
    from penstock.embed_verify import Verified
    from penstock.models.protocols import Embedder
    from penstock.report import Report
    from penstock.source import Source
    from penstock.store import Store


def embed(
    *,
    cache_dir: Path,
    data_path: Path | None = None,
    source: str | None = None,
    split: str | None = None,
    embedder_spec: str = "openclip:timm/ViT-B-16-SigLIP",
    batch_size: int = 8,
    num_workers: int = -1,
    device: str = "auto",
    devices: int = 1,
    bg_alpha: float = 0.3,
    pad_ratio: float = 0.1,
    recipe: Literal["native", "legacy-640"] = "native",
    path: Literal["fast", "reference"] = "fast",
    format: Literal["store", "npy", "npz"] = "store",  # noqa: A002  # the seed's word
    amp: bool | None = None,
    amp_bf16: Flag = False,
    compile: Flag = False,  # noqa: A002  # the seed's word
    max_segments: int | None = None,
    max_failures: str | None = None,
    retry_failed: Flag = False,
    on_change: Literal["refuse", "recompute"] = "refuse",
    verify_sample: int = 0,
    launcher: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    dry_run: Flag = False,
    quiet: Flag = False,
    json: Json = False,
) -> int:
    """Turn every segment of a dataset into a unit vector: cropped from its picture, the rest greyed, embedded.

    Run it again and it does only what is missing, or whose mask or picture changed.

    Parameters
    ----------
    cache_dir
        A new or empty folder, or the output of an earlier run.
    data_path
        A folder of COCO panoptic; or else `--source`.
    source
        Any dataset with masks or id maps: `sa1b:DIR`, `scenes:ROOT`.
    split
        Of `--data-path`: train, val or all; by default the only one there is.
    embedder_spec
        The model, `TYPE:NAME`; `penstock list models` lists the types.
    batch_size
        Pictures per batch.
    num_workers
        Worker processes, each with the model; 0 works in this process, -1 takes one per core, or four per GPU.
    device
        `auto`, `cpu`, `cuda` or `cuda:1`.
    devices
        GPUs to share the work, from `--device` on.
    bg_alpha
        Share of the picture that is left outside the mask; the rest is mid-grey.
    pad_ratio
        Padding of the box on each side, as a share of its height and width.
    recipe
        `native` cuts from the picture at its own size, `legacy-640` stretches it to 640 x 640 before.
    path
        `fast` crops with tensors on the device, `reference` with Pillow and the model's own transform.
    format
        `store`: one packed matrix. `npy`: a file per segment and inst2feat.tsv. `npz`: a file per picture and
        image_index.tsv. The store that npy and npz are made from lies in CACHE_DIR/.penstock/store.
    amp
        Mixed precision; by default on a GPU only.
    amp_bf16
        Mixed precision in bf16.
    compile
        torch.compile.
    max_segments
        Take only the first so many segments.
    max_failures
        Failures that are still a success: `12`, or `0.5%` of the segments.
    retry_failed
        Try segments again that failed before from the same input.
    on_change
        Where the output was made with another model or recipe: refuse, or compute all anew.
    verify_sample
        Afterwards compute so many rows again by the reference path and compare; exit 1 if one differs.
    launcher
        `ray` works on the machines of a Ray cluster that share the disk: docs/ray.md.
    ray_address
        Of the cluster; by default one on this machine.
    dry_run
        Say what would be done and why; write nothing.
    quiet
        No progress on stderr.
    """
    from penstock.embed import EmbedConfig, open_segments
    from penstock.embed_as import embed_as, plan_embed_as
    from penstock.embed_verify import verify_sample as verify_sample_of
    from penstock.errors import UsageError
    from penstock.launch.workers import launcher_of

    if verify_sample < 0:
        raise UsageError(f"--verify-sample {verify_sample}: expected a number of rows, or 0 for none")
    config = EmbedConfig(
        cache_dir=cache_dir, data_path=data_path, source=source, split=split, embedder_spec=embedder_spec,
        batch_size=batch_size, num_workers=num_workers, device=device, devices=devices, bg_alpha=bg_alpha,
        pad_ratio=pad_ratio, recipe=recipe, path=path, amp=amp, amp_bf16=amp_bf16, compile=compile,
        max_segments=max_segments, max_failures=max_failures, retry_failed=retry_failed, on_change=on_change,
    )  # fmt: skip
    if dry_run:
        plan = plan_embed_as(config, format)
        print(dump_json(plan) if json else f"{cache_dir}: {plan['rows']}, {plan['reasons']}, {plan['bytes_to_write']} bytes, "
              f"about {plan['seconds_estimate']} s on {plan['workers']} workers")  # fmt: skip
        return OK
    workers = launcher_of(
        launcher, ray_address, num_workers=config.num_workers, devices=config.devices, timeout_s=config.timeout_s
    )
    checks: list[Verified] = []

    def run(progress: "Callable[[Report], None]", stop: "Callable[[], str]") -> "Report":
        report = embed_as(config, format, on_progress=progress, stop=stop, launcher=workers)
        if verify_sample and report.done and not report.interrupted:
            checks.append(verify_sample_of(_store(cache_dir), open_segments(config).source, verify_sample))
            report.notes["verified"] = checks[0].to_json()
        return report

    code = run_job(run, cache_dir, quiet=quiet, json=json)
    for check in checks:
        print(f"{len(check.keys)} rows computed again: cosine {check.least:.6f} at least, {check.median:.6f} in the median",
              file=sys.stderr)  # fmt: skip
    return code or (OK if all(check.is_good for check in checks) else FAULT)


def search(
    path: Path,
    *,
    like: str,
    top: int = 10,
    source: str | None = None,
    embedder_spec: str | None = None,
    device: str = "auto",
    output: Path | None = None,
    json: Json = False,
) -> int:
    """Find the segments whose vectors are nearest to a segment, a picture or words. Exact.

    Parameters
    ----------
    path
        A store of vectors: the output of `penstock embed`.
    like
        A key of the store, a picture file (with `,x,y,w,h` for a box in it), or words.
    top
        How many.
    source
        The dataset that was embedded, for a page with pictures.
    embedder_spec
        The model for a picture or words; by default the one that made the store.
    device
        Of the model.
    output
        An HTML page of crops (needs `--source`).
    """
    from penstock.search import neighbours
    from penstock.search_page import Page, Section, write_search_page
    from penstock.search_query import hits, query_vector, read_query
    from penstock.search_vectors import Vectors

    store = _store(path)
    vectors, query = Vectors(store), read_query(store, like)
    embedder = None
    if query.kind != "key":
        embedder = _embedder_of(store, embedder_spec, device)
    rows, scores = neighbours(vectors, query_vector(vectors, query, embedder)[None], top=top)
    found = hits(store, rows[0], scores[0])
    page = None
    if output is not None:
        page = write_search_page(
            Page(title=f"like {like}", sections=[Section(title=like, hits=found)]), output, _opened(source)
        )
    if json:
        print(
            dump_json({"command": "search", "status": "ok", "like": like, "hits": found, "output": page and str(page)})
        )
        return OK
    for hit in found:
        print(f"{hit['score']:.4f}  {hit['key']}  {hit.get('category', '')}")
    return OK


def dedup(
    path: Path, *, threshold: float = 0.98, max_rows: int = 200_000, source: str | None = None,
    output: Path | None = None, json: Json = False,
) -> int:  # fmt: skip
    """Find groups of segments that look the same.

    Parameters
    ----------
    path
        A store of vectors.
    threshold
        Cosine from which two are the same.
    max_rows
        Refuse a larger store, with an estimate of the time; every pair is compared.
    source
        The dataset that was embedded, for a page with pictures.
    output
        An HTML page of the largest groups (needs `--source`).
    """
    import numpy as np

    from penstock.search_duplicates import duplicates
    from penstock.search_page import Page, Section, write_search_page
    from penstock.search_query import hits

    store = _store(path)
    found = duplicates(store, threshold, max_rows=max_rows)
    content = found.to_json(store)
    if output is not None:
        groups = sorted(found.groups, key=len, reverse=True)[:50]
        sections = [
            Section(title=f"{len(group)} alike", hits=hits(store, group, np.ones(len(group), np.float32)))
            for group in groups
        ]
        write_search_page(Page(title="duplicates", sections=sections), output, _opened(source))
    if json:
        print(dump_json({"command": "dedup", "status": "ok", **content}))
        return OK
    print(
        f"{path}: {len(found.groups)} groups, {len(found.surplus)} segments beyond the first of each, of {found.rows}"
    )
    for group in found.groups[:20]:
        print("  " + ", ".join(store.keys[row] for row in group[:6].tolist()) + (" ..." if len(group) > 6 else ""))
    return OK


def zero_shot(path: Path, *, json: Json = False) -> int:
    """Say how often a segment's nearest class mean, computed without it, is its own class: a sanity number.

    Parameters
    ----------
    path
        A store of vectors with categories.
    """
    from penstock.search_zero_shot import zero_shot as run

    found = run(_store(path))
    if json:
        print(dump_json({"command": "zero-shot", "status": "ok", **found.to_json()}))
        return OK
    print(f"{path}: top-1 {found.top1:.3f}, mean over categories {found.mean_top1:.3f} ({found.method})")
    for one in found.categories:
        print(f"  {one.category:30} {one.top1:.3f} of {one.rows}")
    return OK


def embedding_map(
    path: Path, *, output: Path, method: Literal["pca", "tsne"] = "pca", max_rows: int = 5000, seed: int = 0,
    json: Json = False,
) -> int:  # fmt: skip
    """Draw the vectors in two dimensions, coloured by category, as a PNG.

    Parameters
    ----------
    path
        A store of vectors.
    output
        The picture.
    method
        `pca` or `tsne`; needs the extra `search`.
    max_rows
        Draw at most so many, chosen at random.
    seed
        Of the choice and the method.
    """
    from penstock.search_map import map_picture, projection
    from penstock.search_zero_shot import categories_of

    store = _store(path)
    shown = projection(store, method, max_rows=max_rows, seed=seed)
    labels = None
    if "category" in store.schema:
        names, places = categories_of(store, shown.rows)
        labels = [names[place] for place in places.tolist()]
    map_picture(shown, labels).save(output)
    print(
        dump_json({"command": "map", "status": "ok", "output": str(output), "rows": len(shown.rows)})
        if json
        else output
    )
    return OK


def _embedder_of(store: "Store", spec: str | None, device: str) -> "Embedder":
    """The model that made a store, or the one of a spec: it must be the same, or scores mean nothing.

    Raises:
        UsageError: the store does not say what made it, and neither does the spec; or as `open_embedder`.
        RecipeMismatch: it is another model.
    """
    from penstock.embed_verify import refuse_other_model
    from penstock.errors import UsageError
    from penstock.models.embedders import open_embedder

    known = spec or str(store.attributes.get("spec", ""))
    if not known:
        raise UsageError(f"{store.path}: does not say which model made it; say --embedder-spec")
    embedder = open_embedder(known, device=device)
    refuse_other_model(store, embedder)
    return embedder


def _store(path: Path) -> "Store":
    """The store of vectors: the folder itself, or the one that its npy or npz files are made from."""
    from penstock.exporters.embedding_rows import store_of
    from penstock.store import open_store

    beside = store_of(path)
    return open_store(beside if beside.exists() else path)


def _opened(source: str | None) -> "Source | None":
    from penstock.registry import open_source

    return None if source is None else open_source(source)
