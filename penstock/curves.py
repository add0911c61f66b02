"""Curves as one SVG picture, without a library: numbers over steps, or over a dial."""

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor, isfinite, log10

WIDTH, HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 150, 34, 44
_COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#7b4b94", "#b8860b", "#444444")


def curves_svg(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    across: str,
    up: str,
    limits_up: tuple[float, float] | None = None,
) -> str:
    """A picture of up to six curves, each with its name beside its last point.

    Args:
        series: name -> points (x, y), x rising. Points that are not finite are left out.
        title: above it.
        across, up: names of the axes, with units.
        limits_up: lowest and highest y; None: from the numbers.

    Returns:
        A whole SVG document of 640 x 320, readable on white and on dark pages.
    """
    clean = {name: [(x, y) for x, y in points if isfinite(x) and isfinite(y)] for name, points in series.items()}
    points = [point for one in clean.values() for point in one] or [(0.0, 0.0)]
    low_x, high_x = _spread([x for x, _ in points])
    low_y, high_y = limits_up or _spread([y for _, y in points])

    def place(x: float, y: float) -> tuple[float, float]:
        share_x, share_y = (x - low_x) / (high_x - low_x), (y - low_y) / (high_y - low_y)
        return _LEFT + share_x * (WIDTH - _LEFT - _RIGHT), HEIGHT - _BOTTOM - share_y * (HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'role="img" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-size="14" font-weight="bold">{escape(title)}</text>',
    ]
    for x in _ticks(low_x, high_x):
        at, bottom = place(x, low_y)
        parts.append(f'<text x="{at:.1f}" y="{bottom + 16:.1f}" text-anchor="middle" fill="#555">{x:g}</text>')
    for y in _ticks(low_y, high_y):
        left, at = place(low_x, y)
        parts.append(f'<path d="M{left:.1f} {at:.1f}H{WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6:.1f}" y="{at + 4:.1f}" text-anchor="end" fill="#555">{y:g}</text>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle" fill="#555">{escape(across)}</text>')
    turned = f'transform="rotate(-90 14 {HEIGHT / 2:.0f})"'
    parts.append(f'<text x="14" y="{HEIGHT / 2:.0f}" text-anchor="middle" fill="#555" {turned}>{escape(up)}</text>')
    taken: list[float] = []
    for number, (name, one) in enumerate(clean.items()):
        if not one:
            continue
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join("{:.1f},{:.1f}".format(*place(x, min(max(y, low_y), high_y))) for x, y in one)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        at = _free(place(*one[-1])[1] + 4, taken)
        parts.append(f'<text x="{WIDTH - _RIGHT + 6}" y="{at:.1f}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _spread(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = max(0.5, abs(low) * 0.01)  # half of a large number's last digit would be nothing
    return (low, high) if high > low else (low - room, high + room)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between the ends, five or so."""
    rough = (high - low) / 5
    power = 10.0 ** floor(log10(rough))
    step = next(times * power for times in (1, 2, 5, 10) if times * power >= rough)
    return [round(number * step, 10) for number in range(ceil(low / step), floor(high / step) + 1)]


def _free(at: float, taken: list[float]) -> float:
    """The next height where a name does not lie on another's."""
    while any(abs(at - other) < 14 for other in taken):
        at += 14
    taken.append(at)
    return at
