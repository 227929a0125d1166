"""Bokeh figures in the style of the page: training curves, bar charts, the map of chemical space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from mmsa_dist.report.record import Series
from mmsa_dist.report.style import ACCENT, FAINT, FONT, HUES, INK, MUTED, plain_axes

_DRAWN_ANEW = 5000  # most dots that may be redrawn at every pointer move
_SMOOTHED_FROM = 40  # points; shorter curves are shown unsmoothed


@dataclass(frozen=True)
class Line:
    """One curve of a figure."""

    name: str
    series: Series
    reference: bool = False
    """Whether it is a baseline, drawn as a dashed grey line."""


@dataclass(frozen=True)
class Figure:
    """A figure and its text alternative for screen readers."""

    plot: Any
    words: str = ""
    """Empty if the page says it elsewhere."""

    def with_words(self, div: str) -> Markup:
        """Returns the element that holds the figure, labelled with `words`."""
        if not self.words:
            return Markup(div)
        return Markup('<div role="img" aria-label="{}">{}</div>').format(self.words, Markup(div))


def curve(title: str, lines: Sequence[Line], *, height: int = 220, reach: tuple[float, float] | None = None) -> Figure:
    """Plots metrics over steps.

    A curve with many points is drawn twice: as measured, faint, and its moving mean over a twentieth of its length.

    Args:
        title: names the quantity on the vertical axis.
        lines: curves.
        height: px.
        reach: range that the vertical axis always covers; None fits it to the data.
    """
    from bokeh.models import HoverTool, Legend, Range1d
    from bokeh.plotting import figure

    plot = figure(height=height, sizing_mode="stretch_width", tools="", toolbar_location=None, title=title)
    plain_axes(plot)
    plot.x_range.start = 0
    plot.xaxis.axis_label = "step"
    legend = []
    for line in lines:
        steps, values = np.array(line.series.steps), np.array(line.series.values)
        data = {"step": steps, "value": values, "name": [line.name] * len(steps)}
        if line.reference:
            drawn = plot.line("step", "value", source=data, color=MUTED, line_dash=[4, 4], line_width=1.5)
        elif len(steps) < _SMOOTHED_FROM:
            drawn = plot.line("step", "value", source=data, color=ACCENT, line_width=2)
            plot.scatter("step", "value", source=data, color=ACCENT, size=4)
        else:
            plot.line("step", "value", source=data, color=FAINT, line_width=1)
            smooth = data | {"value": _moving_mean(values, len(values) // 20)}
            drawn = plot.line("step", "value", source=smooth, color=ACCENT, line_width=2)
        legend.append((line.name, [drawn]))
        plot.add_tools(
            HoverTool(
                renderers=[drawn],
                mode="vline",
                tooltips=[("step", "@step{0,0}"), (line.name, "@value{0.0000}")],
                visible=False,
            )
        )
    if len(lines) > 1:
        plot.add_layout(
            Legend(
                items=legend,
                location="top_left",
                orientation="horizontal",
                border_line_color=None,
                background_fill_alpha=0,
                label_text_color=INK,
                label_text_font_size="12px",
                label_text_font=FONT,
                spacing=18,
                padding=0,
                margin=0,
            ),
            "above",
        )
    if reach is not None:
        everything = [value for line in lines for value in line.series.values]
        low, high = min(reach[0], *everything), max(reach[1], *everything)
        margin = 0.05 * (high - low)
        plot.y_range = Range1d(low - margin * (low < reach[0]), high + margin)
    return Figure(plot, f"{title}. " + " ".join(_in_words(line) for line in lines))


def bars(title: str, values: NDArray[np.floating], *, label: str, reference: float, height: int = 200) -> Figure:
    """Plots fractions, one bar per entry of `values`.

    Args:
        title: names the quantity on the vertical axis.
        values: (S,) fractions of one.
        label: of the horizontal axis.
        reference: value of a dashed horizontal line.
        height: px.
    """
    from bokeh.models import HoverTool, NumeralTickFormatter, Span
    from bokeh.plotting import figure

    plot = figure(height=height, sizing_mode="stretch_width", tools="", toolbar_location=None, title=title)
    plain_axes(plot)
    data = {"number": np.arange(len(values)), "value": values}
    drawn = plot.vbar("number", top="value", source=data, width=0.75, color=ACCENT, line_color=None)
    plot.add_layout(Span(location=reference, dimension="width", line_color=MUTED, line_dash=[4, 4]))
    tooltips = [("number", "@number"), ("share", "@value{0.00%}")]
    plot.add_tools(HoverTool(renderers=[drawn], tooltips=tooltips, visible=False))
    plot.y_range.start = 0
    plot.x_range.range_padding = 0.02
    plot.xaxis.axis_label = label
    plot.yaxis.formatter = NumeralTickFormatter(format="0.0 %")
    least, most = (100 * float(limit) for limit in (values.min(), values.max()))
    return Figure(plot, f"{title}: {len(values)} bars from {most:.1f} % down to {least:.1f} %.")


def counts(title: str, names: Sequence[str], values: Sequence[int], *, label: str, height: int = 230) -> Figure:
    """Plots counts, one bar per name, in the given order.

    Args:
        title: names the quantity on the vertical axis.
        names: of the bars, without duplicates.
        values: count for each name.
        label: of the horizontal axis.
        height: px.
    """
    from bokeh.models import FactorRange, HoverTool, NumeralTickFormatter
    from bokeh.plotting import figure

    plot = figure(
        height=height,
        sizing_mode="stretch_width",
        tools="",
        toolbar_location=None,
        title=title,
        x_range=FactorRange(factors=list(names)),
    )
    plain_axes(plot)
    data = {"name": list(names), "value": list(values)}
    drawn = plot.vbar("name", top="value", source=data, width=0.8, color=ACCENT, line_color=None)
    tooltips = [(label, "@name"), (title.lower(), "@value{0,0}")]
    plot.add_tools(HoverTool(renderers=[drawn], tooltips=tooltips, visible=False))
    plot.y_range.start = 0
    plot.xaxis.axis_label = label
    plot.yaxis.formatter = NumeralTickFormatter(format="0,0")
    bars_in_words = ", ".join(f"{name}: {value:,}" for name, value in zip(names, values, strict=True))
    return Figure(plot, f"{title}, by {label}. {bars_in_words}.")


def chemical_map(coordinates: NDArray[np.float32], groups: NDArray[np.integer], number: int) -> Figure:
    """Plots the map of n molecules.

    The page's script recolours it and handles its events through the models named ``chart``, ``molecules``,
    ``colours`` and ``bar``.

    Args:
        coordinates: (n, 2).
        groups: (n,) group numbers that colour the dots initially.
        number: number of groups.
    """
    from bokeh.models import ColorBar, ColumnDataSource, HoverTool, LinearColorMapper, WheelZoomTool
    from bokeh.plotting import figure

    many = len(groups) > _DRAWN_ANEW
    source = ColumnDataSource(
        {"x": coordinates[:, 0], "y": coordinates[:, 1], "value": groups.astype(np.float32)}, name="molecules"
    )
    hues = list(HUES[:number])
    mapper = LinearColorMapper(palette=hues, low=-0.5, high=number - 0.5, nan_color="#dde2e4", name="colours")
    plot = figure(
        height=640,
        sizing_mode="stretch_width",
        tools="pan,box_zoom,zoom_in,zoom_out,reset,tap",
        active_drag="pan",
        toolbar_location="above",
        name="chart",
    )
    plain_axes(plot)
    plot.axis.visible = False
    plot.min_border_left = 4
    plot.grid.grid_line_color = None
    plot.toolbar.logo = None
    dots = plot.scatter(
        "x",
        "y",
        source=source,
        size=4 if many else 7,
        fill_color={"field": "value", "transform": mapper},
        fill_alpha=0.85,
        line_color="white",
        line_width=0.5,
        nonselection_fill_alpha=0.85,
        nonselection_line_color="white",
        # Highlighting the dot under the pointer redraws all of them.
        **({} if many else {"hover_line_color": INK, "hover_fill_color": {"field": "value", "transform": mapper}}),
    )
    dots.selection_glyph = dots.glyph.clone(size=13, line_color=INK, line_width=2.5)  # to stand out among thousands
    plot.add_tools(HoverTool(renderers=[dots], tooltips=None, visible=False))
    plot.add_tools(WheelZoomTool(modifiers={"ctrl": True}))  # the wheel alone scrolls the page
    bar = ColorBar(
        color_mapper=mapper,
        name="bar",
        visible=False,
        orientation="horizontal",
        height=8,
        padding=4,
        bar_line_color=None,
        major_tick_line_color=None,
        major_label_text_color=MUTED,
        major_label_text_font=FONT,
        major_label_text_font_size="11px",
        background_fill_alpha=0,
    )
    plot.add_layout(bar, "below")
    return Figure(plot)


def _in_words(line: Line) -> str:
    steps, values = line.series.steps, line.series.values
    if len(steps) == 1:
        return f"{line.name}: {values[0]:.4g} at step {steps[0]:,}."
    between = f"least {min(values):.4g}, most {max(values):.4g}"
    return f"{line.name}: {values[0]:.4g} at step {steps[0]:,}, {values[-1]:.4g} at step {steps[-1]:,}; {between}."


def _moving_mean(values: NDArray[np.floating], width: int) -> NDArray[np.floating]:
    """Returns the mean over about `width` points around each point, fewer at the ends."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    at = np.arange(len(values))
    starts, ends = np.maximum(at - width // 2, 0), np.minimum(at + width // 2 + 1, len(values))
    return (sums[ends] - sums[starts]) / (ends - starts)
