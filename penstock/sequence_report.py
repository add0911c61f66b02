"""report.html of a folder of saved sequences: one page that opens offline, by itself or against a second folder."""

import base64
import io
from collections.abc import Iterable
from math import isfinite
from pathlib import Path

from jinja2 import Environment, PackageLoader, select_autoescape
from PIL import Image

from penstock.errors import BadData, PenstockError, UsageError
from penstock.sequence_charts import HEIGHT, WIDTH, Chart, heat_map, histogram
from penstock.sequence_drift import ALPHA, differences, drift
from penstock.sequence_folder import require_sequences
from penstock.sequence_overlay import overlay as overlay
from penstock.sequence_sheet import contact_sheet as contact_sheet
from penstock.sequence_sheet import load_shown
from penstock.sequence_statistics import HEAT_MAPS, SequenceStatistics
from penstock.sequence_statistics import statistics as statistics
from penstock.store.output import replace_file

REPORT = "report.html"
_CLASSES, _REASONS = 20, 20
_QUALITY = 80
_SECTIONS = {
    "boxes": ("search size", "template size", "search aspect", "template aspect", "crop size", "outside"),
    "motion": ("speed", "scale change"),
    "draws": ("growth", "attempts"),
}


def write_report(
    saved_dir: Path | str, output: Path | str | None = None, *, compare: Path | str | None = None, sheets: int = 24
) -> Path:
    """Writes the report of a folder of saved sequences.

    Args:
        saved_dir: the folder.
        output: the page; `report.html` in the folder by default. Put in its place atomically.
        compare: a second folder; the page then shows both, and where they drift apart.
        sheets: how many sequences of the folder to show, spread evenly over it.

    Returns:
        The path of the page.

    Raises:
        SourceNotFound: a folder holds no saved sequence.
        StoreCorrupt: a folder's own records in `.penstock` are damaged. A damaged sequence is listed in the page.
        BadData: no sequence of a folder could be read.
        UsageError: `sheets` is negative.
        OutputRefused: the page cannot be written there.
    """
    if sheets < 0:
        raise UsageError(f"sheets: expected 0 or more, got {sheets}")
    path = Path(saved_dir)
    first = _read(path)
    second = None if compare is None else _read(Path(compare))
    environment = Environment(loader=PackageLoader("penstock"), autoescape=select_autoescape(), trim_blocks=True)
    environment.filters["percent"] = lambda value: f"{value:.1%}"
    environment.filters["number"] = lambda value: f"{value:,}"
    page = environment.get_template("sequence_report.html").render(
        **_numbers(first, second), sheets=list(_sheets(path, sheets)), size=(WIDTH, HEIGHT)
    )
    target = path / REPORT if output is None else Path(output)
    replace_file(target, page.encode("utf-8", "backslashreplace"))
    return target


def _read(path: Path) -> SequenceStatistics:
    found = statistics(path)
    if not found.read:
        raise BadData(
            f"{path}: none of {found.folders} saved sequences could be read; the first: {found.problems[0].message}"
        )
    return found


def _numbers(first: SequenceStatistics, second: SequenceStatistics | None) -> dict[str, object]:
    """What the template shows."""
    sets = [first] if second is None else [first, second]
    return {
        "sets": sets,
        "first": first,
        "second": second,
        "alpha": ALPHA,
        "drift": [] if second is None else drift(first, second),
        "differences": [] if second is None else _settings(first, second),
        "gaps": [_gap_chart(first, second, place) for place in sorted(first.gaps)],
        "charts": {section: _charts(first, second, names) for section, names in _SECTIONS.items()},
        "heat": [
            (one, heat_map(one.heat[name], title))
            for name, title in HEAT_MAPS.items()
            for one in sets
            if one.heat[name].any()
        ],
        "sources": _sources(first, second),
        "classes": _classes(first, second),
        "shares": _share_rows(sets),
        "reasons": {
            "rejected": [one.rejections.most_common(_REASONS) for one in sets],
            "failed": [one.failures.most_common(_REASONS) for one in sets],
        },
    }


def _settings(first: SequenceStatistics, second: SequenceStatistics) -> list[tuple[str, str, str]]:
    return differences(*((one.manifest or {}).get("identity", {}) for one in (first, second)))


def _gap_chart(first: SequenceStatistics, second: SequenceStatistics | None, place: int) -> Chart:
    limits = first.gap_range(place)
    other = None if second is None else second.gaps.get(place)
    marks = [] if limits is None else [(limits[0], "least"), (limits[1], "greatest")]
    chart = histogram(first.gaps[place], other, limits=marks, whole=True)
    if limits is None:
        chart.note = "No recipe was saved, so nothing says which gaps the mode allows."
    elif not isfinite(limits[1]):
        chart.note = f"Mode {first.draw['mode']} draws this template anywhere in the video: max_gap does not bound it."
    else:
        chart.note = (
            f"Mode {first.draw['mode']} with max_gap {first.draw['max_gap']} draws {limits[0]:+.0f} to {limits[1]:+.0f}; "
            f"{first.beyond(place)} of {first.gaps[place].count} lie beyond, {first.grown} sequences had to widen max_gap."
        )
    return chart


def _charts(first: SequenceStatistics, second: SequenceStatistics | None, names: Iterable[str]) -> list[Chart]:
    """A chart of each quantity that there is and that is not one number throughout."""
    found = []
    for name in names:
        one, other = first.numbers[name], None if second is None else second.numbers[name]
        plain = all(len(each.bins()[0]) <= 1 for each in (one, other) if each is not None)
        if one.count and not (plain and name in _SECTIONS["draws"]):
            found.append(histogram(one, other))
    return found


def _sources(first: SequenceStatistics, second: SequenceStatistics | None) -> list[dict[str, object]]:
    names = list(dict.fromkeys([*first.requested, *first.sources, *(second.sources if second else [])]))
    rows: list[dict[str, object]] = []
    for name in names:
        videos = {video: count for (source, video), count in first.videos.items() if source == name}
        most = max(videos, key=lambda video: videos[video], default="")
        rows.append(
            {
                "name": name,
                "requested": first.requested.get(name, 0.0) if first.requested else None,
                "drawn": first.sources[name] / first.read,
                "compared": None if second is None else second.sources[name] / second.read,
                "sequences": first.sources[name],
                "videos": len(videos),
                "available": first.available.get(name),
                "most": f"{most} ({videos[most]} times)" if most else "",
            }
        )
    return rows


def _classes(first: SequenceStatistics, second: SequenceStatistics | None) -> dict[str, object]:
    rows = [
        {
            "source": source,
            "name": name or "none",
            "count": count,
            "drawn": count / first.read,
            "compared": None if second is None else second.classes[source, name] / second.read,
        }
        for (source, name), count in first.classes.most_common(_CLASSES)
    ]
    only = len(set(second.classes) - set(first.classes)) if second else 0
    return {"rows": rows, "count": len(first.classes), "more": len(first.classes) - len(rows), "only_second": only}


def _share_rows(sets: list[SequenceStatistics]) -> list[dict[str, object]]:
    """Name, and (share, part, total) of each set, or None where it has none."""
    names = list(dict.fromkeys(name for one in sets for name in one.shares))
    found: list[dict[str, object]] = []
    for name in names:
        pairs = [one.shares.get(name, (0, 0)) for one in sets]
        values = [(part / total, part, total) if total else None for part, total in pairs]
        found.append({"name": name, "values": values})
    counts = {
        "sequences of single pictures": "pictures",
        "negative sequences": "negatives",
        "sequences whose max_gap grew": "grown",
        "sequences with a template that is also a search frame": "same_frame",
        "sequences drawn again after a rejection": "retried",
    }
    for name, attribute in counts.items():
        values = [(getattr(one, attribute) / one.read, getattr(one, attribute), one.read) for one in sets]
        found.append({"name": name, "values": values})
    return found


def _sheets(path: Path, count: int) -> Iterable[dict[str, str]]:
    """Contact sheets as JPEG data URIs; what cannot be drawn is said in its place."""
    names = require_sequences(path)
    count = min(count, len(names))
    shown = [place * (len(names) - 1) // max(1, count - 1) for place in range(count)]
    for number in shown:
        folder = path / names[number]
        try:
            stream = io.BytesIO()
            Image.fromarray(contact_sheet(folder)).save(stream, "JPEG", quality=_QUALITY)
            uri = "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
            yield {"name": names[number], "uri": uri, "text": load_shown(folder).heading, "error": ""}
        except PenstockError as error:
            yield {"name": names[number], "uri": "", "text": "", "error": f"{type(error).__name__}: {error}"}
