"""Stacked bars as SVG within the page: drawn by pygal, coloured by our own style sheet.

pygal's styles and scripts are taken out, since pages allow nothing inline; each series is
filled with a pattern of its own, so that a chart reads without colour, and each bar says
what it is. A chart never stands alone: a table with the same numbers is beside it.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from functools import cache
from typing import Any
from xml.etree import ElementTree

import pygal
from markupsafe import Markup
from pygal.style import Style

# pygal leaves behind a finder for its maps, of a kind that Python 3.12 knows no longer and 3.11 warns of.
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "pygal"]

MAX_SERIES = 6
"""So many patterns there are."""
_WIDTH, _HEIGHT, _LABEL_SIZE = 760, 250, 12
_MAX_LABELS = 8
_MAX_TICKS = 5
# What is drawn over a series' colour, in a tile of 8 x 8: nothing, lines of four directions, dots.
_HATCHES = ("", "M0 8 8 0", "M0 0 8 8", "M0 4H8", "M4 0V8", "M3 4h2")
_NOISE = ("style", "desc", "script", "title")


@dataclass(frozen=True, slots=True)
class Series:
    """What is stacked: a name, and a value for each bar."""

    name: str
    values: Sequence[Decimal]


def stacked_bars(
    labels: Sequence[str], series: Sequence[Series], title: str, written: Callable[[Decimal], str]
) -> Markup:
    """The chart as an ``<svg>`` that is one picture to a screen reader, named ``title``.

    Args:
        labels: Of the bars, in order.
        series: Bottom first, at most ``MAX_SERIES``; each with a value for every label.
        title: What it shows.
        written: Writes a value, for axis and bars.
    """
    assert len(series) <= MAX_SERIES
    chart = _Bars(
        width=_WIDTH,
        height=_HEIGHT,
        style=Style(label_font_size=_LABEL_SIZE, major_label_font_size=_LABEL_SIZE),
        js=[],
        no_prefix=True,
        show_legend=False,
        explicit_size=False,
        margin=4,
        x_labels=list(labels),
        x_labels_major_every=-(-len(labels) // _MAX_LABELS),
        show_minor_x_labels=False,
        truncate_label=-1,
        # Places on the picture only: amounts are written from what they are.
        y_labels=[float(mark) for mark in ticks(_top(series))],
        value_formatter=lambda value: written(Decimal(str(value))),
    )
    for one in series:
        chart.add(one.name, list(one.values), formatter=_unwritten)
    root = chart.render_tree()
    _strip(root)
    _name_bars(root, labels, series, written)
    root.attrib.update(
        {"viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "role": "img", "aria-label": title, "class": "bars-chart"}
    )
    root.attrib.pop("id", None)
    root.insert(0, ElementTree.fromstring(_patterns()))  # noqa: S314 - our own text
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704 - escaped by ElementTree


def ticks(top: Decimal) -> list[Decimal]:
    """Marks of an axis from 0 to ``top`` or beyond: three to six, at steps of 1, 2 or 5 times a power of ten.

    Args:
        top: Above 0.
    """
    power = Decimal(1).scaleb(top.adjusted() - 1)
    step = next(power * factor for factor in (1, 2, 5, 10, 20, 50) if power * factor * _MAX_TICKS >= top)
    return [step * count for count in range(int((top / step).to_integral_value(ROUND_CEILING)) + 1)]


def swatch(index: int) -> Markup:
    """A sample of the fill of series ``index``, for a key; on a page with a chart."""
    return Markup(
        '<svg class="swatch" viewBox="0 0 16 16" width="16" height="16" aria-hidden="true">'
        '<rect width="16" height="16" rx="3" fill="url(#fill-{})"/></svg>'
    ).format(index)


class _Bars(pygal.StackedBar):  # type: ignore[misc]  # pygal has no types
    """pygal's, without the tips that its script would show: a third of the work, to be taken out again."""

    def _tooltip_and_print_values(self, *_: object) -> None:
        pass


@cache
def _patterns() -> str:
    tiles = "".join(
        f'<pattern id="fill-{index}" class="fill-{index}" width="8" height="8" patternUnits="userSpaceOnUse">'
        f'<rect width="8" height="8"/><path d="{hatch}"/></pattern>'
        for index, hatch in enumerate(_HATCHES)
    )
    return f"<defs>{tiles}</defs>"


def _top(series: Sequence[Series]) -> Decimal:
    """The height of the highest stack."""
    stacks = zip(*(one.values for one in series), strict=True)
    return max(sum(stack, Decimal(0)) for stack in stacks)


def _unwritten(_: object) -> str:
    """Pygal would write every value for tips that are taken out."""
    return ""


def _strip(root: Any) -> None:  # noqa: ANN401 - an element of ElementTree or lxml
    for parent in list(root.iter()):
        parent.attrib.pop("style", None)
        for child in list(parent):
            is_comment = not isinstance(child.tag, str)
            if is_comment or _tag(child) in _NOISE or "tooltip" in child.get("class", "").split():
                parent.remove(child)


def _name_bars(
    root: Any,  # noqa: ANN401
    labels: Sequence[str],
    series: Sequence[Series],
    written: Callable[[Decimal], str],
) -> None:
    """Fills each bar with its series' pattern and says in a tip what it is."""
    groups = [element for element in root.iter() if element.get("class") == "bars"]
    for index, (group, one) in enumerate(zip(groups, series, strict=True)):
        for bar, label, value in zip(list(group), labels, one.values, strict=True):
            if not value:
                group.remove(bar)
                continue
            for box in bar:
                place = {name: f"{float(box.get(name)):.1f}" for name in ("x", "y", "width", "height")}
                box.attrib.clear()
                box.attrib.update(place, fill=f"url(#fill-{index})")
            ElementTree.SubElement(bar, "title").text = f"{label} · {one.name}: {written(value)}"


def _tag(element: Any) -> str:  # noqa: ANN401
    return str(element.tag).rpartition("}")[2]
