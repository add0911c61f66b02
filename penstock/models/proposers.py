"""Opens a proposer by its spec: `sam2`, `classical`, `folder:DIR`, or one of an outside package."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

from penstock import registry
from penstock.errors import UsageError
from penstock.models.sam2 import AutomaticMasks, Sam2Options, Sam2Proposer
from penstock.refining.saved import Caching, SavedProposals
from penstock.refining.types import Proposer


def open_proposer(
    spec: str = "sam2",
    *,
    device: str = "auto",
    model_cfg: str = Sam2Options.model_cfg,
    checkpoint: Path | None = None,
    download: bool = False,
    oom_to_cpu: bool = False,
    points_per_batch: int = Sam2Options.points_per_batch,
    pred_iou_thresh: float = AutomaticMasks.pred_iou_thresh,
    stability_score_thresh: float = AutomaticMasks.stability_score_thresh,
    box_nms_thresh: float = AutomaticMasks.box_nms_thresh,
    min_mask_region_area: int = AutomaticMasks.min_mask_region_area,
    cache: Path | None = None,
) -> Proposer:
    """Opens where masks come from: everything that can be wrong with it is said here, before any work.

    Args:
        spec: `sam2`, or `sam2:MODEL_CFG` (`sam2:random:tiny` needs no weights and means nothing); `classical`;
            `folder:DIR` (see `penstock.refining.saved`); NAME or NAME:TEXT of an outside package.
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1".
        model_cfg: SAM2 only, as the rest: see `Sam2Options` and `AutomaticMasks`.
        cache: a folder that keeps what the proposer answered; where all answers are there the model is not opened.

    Raises:
        UsageError: unknown spec, no such device, arguments that contradict each other, weights of another architecture.
        SourceNotFound: no weights, or no folder; the message says where to put them.
        BadData: the weights are damaged.
        MissingExtra: an optional package is needed.
        OutputRefused: the cache cannot be written to.
    """
    name, colon, text = spec.partition(":")
    known = registry.names("proposers")
    if name not in known:
        raise UsageError(f"proposer {spec!r}: expected one of {', '.join(known)}, for instance classical or folder:DIR")
    if name != "sam2":
        for flag, is_given in (("checkpoint", checkpoint), ("download", download), ("oom_to_cpu", oom_to_cpu)):
            if is_given:
                raise UsageError(f"{flag} is for sam2; proposer {spec!r} takes none")
        make = cast("Callable[[str, str], Proposer]", registry.find("proposers", name))
        proposer = make(text, device)
        return Caching(proposer, cache) if cache else proposer
    if colon and model_cfg not in (text, Sam2Options.model_cfg):
        raise UsageError(f"proposer {spec!r} names another model than model-cfg {model_cfg!r}")
    rule = AutomaticMasks(
        pred_iou_thresh=pred_iou_thresh,
        stability_score_thresh=stability_score_thresh,
        box_nms_thresh=box_nms_thresh,
        min_mask_region_area=min_mask_region_area,
    )
    options = Sam2Options(
        model_cfg=text if colon else model_cfg,
        checkpoint=checkpoint,
        download=download,
        device=device,
        points_per_batch=points_per_batch,
        oom_to_cpu=oom_to_cpu,
        automatic=rule,
    )
    return Caching(Sam2Proposer(options, lazy=True), cache) if cache else Sam2Proposer(options)


def open_sam2(text: str, device: str) -> Proposer:
    """SAM2 or SAM2.1, by transformers; TEXT is the model: `sam2_hiera_l.yaml` without one.

    Args:
        text: see `penstock.models.sam2_weights.open_weights`.
        device: as asked for.

    Raises:
        UsageError, SourceNotFound, BadData, MissingExtra: see there.
    """
    return Sam2Proposer(Sam2Options(model_cfg=text or Sam2Options.model_cfg, device=device))


def open_classical(text: str, device: str) -> Proposer:
    """Edge snapping: needs no weights, and no GPU.

    Args:
        text: empty.
        device: "auto" or "cpu".

    Raises:
        UsageError: something else.
        MissingExtra: OpenCV is not installed.
    """
    from penstock.refining.classical import Classical

    _on_cpu("classical", device)
    if text:
        raise UsageError(f"proposer classical:{text}: expected classical, it takes no more")
    return Classical()


def open_folder(text: str, device: str) -> Proposer:
    """Proposals saved before, `<scene>/<stem>.proposals` in the folder TEXT.

    Args:
        text: the folder.
        device: "auto" or "cpu".

    Raises:
        UsageError: another device, or no folder is named.
        SourceNotFound: there is none, or it holds no proposals.
    """
    _on_cpu("folder", device)
    if not text:
        raise UsageError("proposer folder: expected folder:DIR")
    return SavedProposals(Path(text).expanduser())


def _on_cpu(name: str, device: str) -> None:
    if device not in ("auto", "cpu"):
        raise UsageError(f"proposer {name} runs on the CPU: expected device auto or cpu, got {device!r}")
