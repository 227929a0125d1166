"""Colours and axis style shared by page and figures."""

from __future__ import annotations

from typing import Any

ACCENT, FAINT, INK, MUTED, GRID = "#0f766e", "#a7d3cd", "#1c2326", "#6b7780", "#e8ecee"
HUES = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8833", "#555555")
"""Group colours. The first six are Paul Tol's colour-blind safe "bright" scheme
(https://sronpersonalpages.nl/~pault)."""
FONT = 'Inter, "Segoe UI", system-ui, -apple-system, "Helvetica Neue", Arial, sans-serif'


def plain_axes(plot: Any) -> None:
    """Removes non-data decoration from a Bokeh figure."""
    plot.outline_line_color = None
    plot.background_fill_color = plot.border_fill_color = None
    plot.xgrid.grid_line_color = None
    plot.ygrid.grid_line_color = GRID
    plot.min_border_left, plot.min_border_right = 46, 8  # stacked figures align
    plot.title.text_font = FONT
    plot.title.text_font_size = "13px"
    plot.title.text_font_style = "normal"
    plot.title.text_color = INK
    for axis in plot.axis:
        axis.axis_line_color = None
        axis.major_tick_line_color = axis.minor_tick_line_color = None
        axis.major_label_text_font = FONT
        axis.major_label_text_font_size = "11px"
        axis.major_label_text_color = MUTED
        axis.axis_label_text_font = FONT
        axis.axis_label_text_font_size = "11px"
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_color = MUTED
        axis.axis_label_standoff = 2
    if hasattr(plot.xaxis.formatter, "use_scientific"):  # a categorical axis has none
        plot.xaxis.formatter.use_scientific = False
    plot.yaxis.ticker.desired_num_ticks = 4
