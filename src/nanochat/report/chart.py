"""Line charts as inline SVG: no script, no library, colours from the page's style sheet. A chart is
as wide as its column. Its units are the pixels of a phone, so labels stay readable there.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from nanochat.callbacks.report import SMOOTHING
from nanochat.report.chapter import Curve

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 8, 24  # room for the labels of the axes
MOST_POINTS = 300  # guess: more than the pixels of a phone's chart cannot be seen


@dataclass(frozen=True)
class Stroke:
    """`faint` is drawn thin, behind the others; `dots` marks each point."""

    name: str
    curve: Curve
    faint: bool = False
    dots: bool = False


def smoothed(curve: Curve) -> Curve:
    """Running mean over a window that starts short.

    >>> [(step, round(value, 3)) for step, value in smoothed([(1, 4.0), (2, 2.0)])]
    [(1, 4.0), (2, 2.947)]
    """
    mean, weight, found = 0.0, 0.0, []
    for step, value in curve:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + 1 - SMOOTHING
        found.append((step, mean / weight))
    return found


def thinned(curve: Curve, most: int = MOST_POINTS) -> Curve:
    """At most `most` points: means of neighbouring points, and the last point unchanged.

    >>> thinned([(1, 1.0), (2, 3.0), (3, 5.0), (4, 7.0)], 2)
    [(2, 2.0), (4, 7.0)]
    """
    if len(curve) <= most:
        return curve
    size = -(-len(curve) // most)
    parts = [curve[i : i + size] for i in range(0, len(curve), size)]
    return [(p[-1][0], sum(value for _, value in p) / len(p)) for p in parts[:-1]] + [curve[-1]]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them.

    >>> ticks(0, 244), ticks(3.4, 6.6)
    ([0, 100, 200], [4.0, 5.0, 6.0])
    """
    if high <= low:
        return [low]
    rough = (high - low) / count
    size = 10 ** math.floor(math.log10(rough))
    step = size * next(m for m in (1, 2, 2.5, 5, 10) if m * size >= rough * 0.99)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """
    >>> short(0.5), short(1500.0), short(2_000_000)
    ('0.5', '1.5k', '2M')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def draw(title: str, lines: Sequence[Stroke], marks: Mapping[str, float] | None = None) -> Markup:
    """An SVG of the lines over their steps; every line needs a point. `marks` are reference values,
    drawn as horizontal lines."""
    drawn = [Stroke(one.name, thinned(one.curve), one.faint, one.dots) for one in lines]
    steps = [step for one in drawn for step, _ in one.curve]
    values = sorted(value for one in drawn for _, value in one.curve)
    first, last = min(steps), max(max(steps), min(steps) + 1)
    edge = len(values) // 100  # a first step or a spike would flatten the rest
    low, high = values[edge], values[-1 - edge]
    marks = marks or {}
    low, high = min([low, *marks.values()]), max([high, *marks.values()])
    margin = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    low, high = low - margin, high + margin

    def x(step: float) -> float:
        return LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_said(title, lines)}">']
    for value in ticks(low, high):
        at = f"{y(value):.1f}"
        parts.append(
            f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>'
            f'<text x="{LEFT - 6}" y="{at}" dy="0.32em" text-anchor="end">{short(value)}</text>'
        )
    for step in ticks(first, last):
        if step == int(step):
            parts.append(
                f'<text x="{x(step):.1f}" y="{HEIGHT - 7}" '
                f'text-anchor="middle">{short(step)}</text>'
            )
    for name, value in marks.items():
        at = f"{y(value):.1f}"
        parts.append(
            f'<line class="mark" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>'
            f'<text x="{WIDTH - RIGHT}" y="{at}" dy="-0.3em" '
            f'text-anchor="end">{escape(name)}</text>'
        )
    number = -1
    for one in drawn:
        number += not one.faint
        places = [(x(step), y(value)) for step, value in one.curve]
        colour = f"line l{max(number, 0)}" + (" faint" if one.faint else "")
        if len(places) > 1:
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
            parts.append(f'<polyline class="{colour}" points="{path}"/>')
        if one.dots or len(places) == 1:
            parts += [
                f'<circle class="{colour}" cx="{a:.1f}" cy="{b:.1f}" r="3">'
                f"<title>{escape(one.name)}: {value:.4g} at step {step:,}</title></circle>"
                for (a, b), (step, value) in zip(places, one.curve, strict=True)
            ]
    return Markup("".join([*parts, "</svg>"]))


def _said(title: str, lines: Sequence[Stroke]) -> Markup:
    """A text alternative for screen readers."""
    kept = [one for one in lines if not one.faint]
    said = [
        (
            f"{one.name} from {one.curve[0][1]:.4g} at step {one.curve[0][0]:,} to "
            f"{one.curve[-1][1]:.4g} at step {one.curve[-1][0]:,}"
        )
        for one in kept
    ]
    return escape(f"{title}: {'; '.join(said)}")
