"""report.html of a distillation: one page that opens offline, with numbers beside baselines, curves, and the worst samples."""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isfinite, nan
from pathlib import Path
from statistics import fmean, median
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from penstock.curves import curves_svg
from penstock.errors import BadData, SourceNotFound
from penstock.store.output import replace_file
from penstock.train.distill_sheets import HELD_FOLDER, INDEX
from penstock.train.logs import LOG
from penstock.train.worst import FOLDER

REPORT, NUMBERS = "report.html", "report.json"
_FOLDERS = {HELD_FOLDER: "Worst held-out samples", FOLDER: "Worst samples of a batch trained on"}
_EVAL = "eval/"
_POINTS = 400
"""Of a curve, at most."""
_FAR = 3.0
"""A reference this many times above a curve would flatten it, and is left out of its picture."""
_TIMES = {
    "samples_per_s": "samples a second",
    "data_wait": "waiting for data, share of the time",
    "copy": "copying to the device, share of the time",
    "step_p50_ms": "a step, median, ms",
    "step_p99_ms": "a step, 99th percentile, ms",
}


@dataclass(frozen=True)
class _Metric:
    label: str
    better: int = 1
    """1: more is better; -1: less is; 0: neither."""
    is_share: bool = True
    """Whether it lies in 0..1."""


_METRICS = {
    "miou_student_gt": _Metric("mIoU of the frozen decoder's masks, student's features against the truth"),
    "miou_student_teacher": _Metric("mIoU of the frozen decoder's masks, student's features against the teacher's"),
    "cosine": _Metric("cosine of the features, mean over cells"),
    "cka": _Metric("linear CKA of the features"),
    "mse": _Metric("mean squared error of the features", -1, is_share=False),
    "mae": _Metric("mean absolute error of the features", -1, is_share=False),
    "mean_shift": _Metric("channel means, off by so many of the teacher's standard deviations", -1, is_share=False),
    "std_ratio": _Metric("channel standard deviations, student's over teacher's (1 is best)", 0, is_share=False),
    "edge_f1": _Metric("F1 of edges, exact pixels"),
    "edge_f1_near": _Metric("F1 of edges, one pixel of tolerance"),
    "edge_precision": _Metric("precision of edges"),
    "edge_recall": _Metric("recall of edges"),
}
_CEILING = {"miou_student_gt": "miou_teacher_gt"}
"""What the teacher itself reaches."""
_COUNTS = ("samples", "without_box", "unreadable")
"""Among metrics: no measure of the student."""
_BASELINES = {"untrained": "untrained", "mean_feature": "mean feature"}


def write_report(folder: Path) -> Path:
    """Writes the page of a distillation into its folder, from what lies there: report.json, log.jsonl, pictures with their
    index.json (`penstock.train.distill_pictures`). What is not there is left out, or said.

    Args:
        folder: of the run, finished or not.

    Returns:
        The path of the page.

    Raises:
        SourceNotFound: neither report.json nor log.jsonl is there.
        BadData: report.json, or a list of pictures, is damaged.
        OutputRefused, OutputFull: the page cannot be written.
    """
    numbers, log = folder / NUMBERS, folder / LOG
    if not numbers.is_file() and not log.is_file():
        raise SourceNotFound(
            f"{folder}: expected the folder of a distillation, with {NUMBERS} or {LOG}; neither is there"
        )
    report = _whole(_object(numbers) if numbers.is_file() else {})
    lines = list(_lines(log)) if log.is_file() else []
    environment = Environment(loader=PackageLoader("penstock"), autoescape=select_autoescape(), trim_blocks=True)
    environment.filters |= {"figure": _figure, "plain": _plain}
    steps = [line for line in lines if not any(name.startswith(_EVAL) for name in line)]
    page = environment.get_template("distill_report.html").render(
        report=report, folder=folder.absolute().name, names={part: _name(report.get(part)) for part in ("student", "teacher")},
        tiles=list(_tiles(report, steps)), rows=list(_rows(report)), verdict=_verdict(report),
        baselines={name: words for name, words in _BASELINES.items() if report["baselines"][name]},
        has_ceiling=any(name in report["metrics"] for name in _CEILING.values()),
        losses=list(_loss_charts(steps)), metrics=list(_metric_charts(lines, report)), rates=list(_rate_charts(steps)),
        times=list(_times(steps)), every=ceil(len(steps) / _POINTS),
        pictures=[(words, *_pictures(folder / name)) for name, words in _FOLDERS.items()],
        config=_flat(report["config"]), export=_flat({k: v for k, v in report["export"].items() if k != "files"}),
        files=_files(report["export"]),
        parts=[row for part in ("student", "teacher", "data") for row in _flat(report.get(part), part) if row[1] is not None],
    )  # fmt: skip
    replace_file(folder / REPORT, page.encode("utf-8", "backslashreplace"))
    return folder / REPORT


def _whole(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with what it leaves out, or gives as null, empty."""
    parts = {name: report.get(name) or {} for name in ("metrics", "baselines", "config", "export")}
    baselines = {name: parts["baselines"].get(name) or {} for name in _BASELINES}
    return {**report, **parts, "baselines": baselines}


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise BadData(f"{path}: expected JSON, got what cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise BadData(f"{path}: expected a JSON object, got a {type(found).__name__}")
    return found


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines; the last may be torn where a run was killed."""
    for line in path.read_bytes().splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and _is_number(found.get("step")):
            yield found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(value: object) -> float:
    """NaN for what is no number."""
    return float(value) if isinstance(value, int | float) and isfinite(value) else nan


def _figure(value: object) -> str:
    """Four figures; words for what is no finite number."""
    if value is None or (isinstance(value, float) and not isfinite(value)):
        return "not finite"
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if _is_number(value) else str(value)


def _plain(value: object) -> str:
    """As it was given: a setting is read to be used again."""
    if isinstance(value, list):
        return ", ".join(_plain(one) for one in value) or "none"
    return "none" if value is None else str(value)


def _name(part: object) -> str:
    """Of a student or a teacher, whether the report gives a word or an object."""
    if isinstance(part, Mapping):
        return str(next((part[key] for key in ("name", "student", "model_type") if key in part), "not recorded"))
    return "not recorded" if part is None else str(part)


def _flat(values: object, above: str = "") -> list[tuple[str, object]]:
    """Nested objects as rows of (name.name, value)."""
    if isinstance(values, list) and any(isinstance(value, Mapping) for value in values):
        values = dict(enumerate(values))
    if not isinstance(values, Mapping):
        return [(above, values)]
    return [row for name, value in values.items() for row in _flat(value, f"{above}.{name}" if above else str(name))]


def _files(export: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list[object]]]]:
    """The columns and the rows of a table of exported files."""
    files = export.get("files")
    listed = files if isinstance(files, Mapping) else {}
    known = {name: one for name, one in listed.items() if isinstance(one, Mapping)}
    columns = list(dict.fromkeys(column for one in known.values() for column in one))
    return columns, [(name, [one.get(column, "") for column in columns]) for name, one in known.items()]


def _beats(metric: str, report: Mapping[str, Any]) -> dict[str, bool]:
    """Baseline -> whether the student is better by this metric; those of which both numbers are known."""
    kind = _METRICS.get(metric)
    found = {}
    for name in _BASELINES:
        own, other = (_finite(one.get(metric)) for one in (report["metrics"], report["baselines"][name]))
        if kind is not None and kind.better and isfinite(own) and isfinite(other):
            found[name] = (own - other) * kind.better > 0
    return found


def _rows(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Of the table of metrics: those that are known in their order, then others."""
    metrics = report["metrics"]
    names = [name for name in _METRICS if name in metrics]
    names += [name for name in metrics if name not in (*_METRICS, *_CEILING.values(), *_COUNTS)]
    for name in names:
        kind = _METRICS.get(name, _Metric(name, 0))
        beats = _beats(name, report)
        lost = [_BASELINES[one] for one, won in beats.items() if not won]
        words = "" if not beats else f"not better than {' and '.join(lost)}" if lost else "better"
        others = {one: report["baselines"][one].get(name, "") for one in _BASELINES}
        yield {
            "name": name, "label": kind.label, "way": {1: "more", -1: "less", 0: ""}[kind.better], "student": metrics[name],
            "teacher": metrics.get(_CEILING.get(name, ""), ""), "words": words, "lost": bool(lost), **others,
        }  # fmt: skip


def _verdict(report: Mapping[str, Any]) -> list[tuple[bool, str]]:
    """Sentences on what counts, each with whether it is good news."""
    selves = {"untrained": "its untrained self", "mean_feature": "the mean feature"}
    found = []
    for metric, what in (
        ("miou_student_gt", "the masks of the frozen decoder"),
        ("cosine", "the cosine of the features"),
    ):
        beats = _beats(metric, report)
        for is_good, verb in ((True, "beats"), (False, "does not beat")):
            others = " or ".join(selves[name] for name, won in beats.items() if won == is_good)
            if others:
                words = others.replace(" or ", " and ") if is_good else others
                found.append((is_good, f"By {what} the student {verb} {words}."))
    return found


def _tiles(report: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, str]]:
    """The few numbers to look at first."""
    metrics = report["metrics"]
    for name, label in (("miou_student_gt", "mIoU of the decoder"), ("cosine", "cosine"), ("edge_f1", "F1 of edges")):
        if isfinite(_finite(metrics.get(name))):
            parts = [
                f"{words} {_figure(_finite(one[name]))}"
                for key, words in _BASELINES.items()
                if name in (one := report["baselines"][key])
            ]
            ceiling = _finite(metrics.get(_CEILING.get(name, "")))
            if isfinite(ceiling):
                share = _finite(metrics[name]) / ceiling if ceiling else nan
                parts.insert(0, f"teacher {_figure(ceiling)}" + (f" ({share:.0%} of it)" if isfinite(share) else ""))
            yield {"label": label, "value": _figure(_finite(metrics[name])), "below": ", ".join(parts)}
    times = {row["name"]: row for row in _times(steps)}
    if "samples_per_s" in times:
        wait = times.get("data_wait", {}).get("median", nan)
        below = f"{wait:.1%} of the time waiting for data" if isfinite(wait) else ""
        yield {"label": "samples a second", "value": _figure(times["samples_per_s"]["median"]), "below": below}


def _times(steps: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Median, least, most and last of what a line says of time."""
    for name, label in _TIMES.items():
        values = [value for line in steps if isfinite(value := _finite(line.get(name)))]
        if values:
            yield {"name": name, "label": label, "is_share": name in ("data_wait", "copy"), "median": median(values),
                   "least": min(values), "most": max(values), "last": values[-1]}  # fmt: skip


def _points(lines: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """(step, value) of the lines that have it, at most `_POINTS`: means of neighbouring lines. One alone comes twice: a line
    of no length is drawn as a dot."""
    found = [(float(line["step"]), value) for line in lines if isfinite(value := _finite(line.get(name)))]
    size = max(1, ceil(len(found) / _POINTS))
    cut = [found[start : start + size] for start in range(0, len(found), size)]
    means = [(fmean(x for x, _ in one), fmean(y for _, y in one)) for one in cut]
    return means * 2 if len(means) == 1 else means


def _chart(series: Mapping[str, Sequence[tuple[float, float]]], title: str, up: str = "") -> str:
    values = [y for points in series.values() for _, y in points]
    low, high = min(values), max(values)
    is_flat = high and high - low <= 1e-9 * abs(high)  # an axis of its own range would have no length
    limits = (min(0.0, 2 * high), max(0.0, 2 * high)) if is_flat else None
    return curves_svg(series, title=title, across="step", up=up, limits_up=limits)


def _loss_charts(steps: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The total, each loss, the learning rate, the norm of the gradient."""
    names = dict.fromkeys(name for line in steps for name, value in line.items() if _is_number(value))
    kept = [name for name in names if name not in _TIMES and name != "step"]
    kept.sort(key=lambda name: (name in ("learning_rate", "gradient_norm"), name != "loss"))
    for name in kept:
        if points := _points(steps, name):
            yield _chart({f"last {points[-1][1]:.3g}": points}, name.replace("_", " "))


def _metric_charts(lines: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A curve of each metric with what it is to be compared with, and words on what is not in the picture."""
    evals = [line for line in lines if any(name.startswith(_EVAL) for name in line)]
    names = dict.fromkeys(name for line in evals for name in line if name.startswith(_EVAL))
    for name in sorted(names, key=lambda name: [*_METRICS, name[len(_EVAL) :]].index(name[len(_EVAL) :])):
        metric = name[len(_EVAL) :]
        points = _points(evals, name)
        if not points or metric in (*_CEILING.values(), *_COUNTS):
            continue
        series, far = {"student": points}, []
        highest = max(abs(y) for _, y in points)
        for label, value in _references(metric, report, evals):
            is_far = not _METRICS.get(metric, _Metric("")).is_share and abs(value) > _FAR * highest
            series |= {} if is_far else {label: [(points[0][0], value), (points[-1][0], value)]}
            far += [f"{label}: {_figure(value)}, beyond the picture"] if is_far else []
        title = _METRICS[metric].label.partition(",")[0] if metric in _METRICS else metric
        yield _chart(series, f"{metric}: {title}"), "; ".join(far)


def _references(
    metric: str, report: Mapping[str, Any], evals: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, float]]:
    for key, label in _BASELINES.items():
        if isfinite(value := _finite(report["baselines"][key].get(metric))):
            yield label, value
    ceiling = _CEILING.get(metric, "")
    known = [value for line in evals if isfinite(value := _finite(line.get(_EVAL + ceiling)))]
    if known:
        yield "teacher", known[-1]


def _rate_charts(steps: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Samples a second; shares of the time; times of a step."""
    charts = (
        ("samples a second", "", {"samples_per_s": "all devices"}),
        ("share of the time", "", {"data_wait": "waiting for data", "copy": "copying"}),
        ("time of a step", "ms", {"step_p50_ms": "median", "step_p99_ms": "99th percentile"}),
    )
    for title, up, names in charts:
        series = {label: points for name, label in names.items() if (points := _points(steps, name))}
        if series:
            yield _chart(series, title, up)


def _pictures(folder: Path) -> tuple[object, list[dict[str, str]]]:
    """The step that pictures were made at, and key, words, data URI of each; what is gone is said in its place."""
    if not (folder / INDEX).is_file():
        return None, []
    listed = _object(folder / INDEX)
    found = []
    for one in listed.get("samples", []):
        path = folder / Path(str(one["file"])).name
        uri = f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}" if path.is_file() else ""
        found.append({"key": str(one["key"]), "words": str(one.get("words", "")), "uri": uri,
                      "error": "" if uri else f"{path.name} is not in {folder.name} any more"})  # fmt: skip
    return listed.get("step"), found
