"""Figures: one palette and configuration, drawn in pages from data/*.js, exported as SVG and PNG into figures/.

Charts name colours by token (`@effect`); the page's script and the exporter put the theme's colour in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from mechstudy.report.data import UnitFiles
from mechstudy.report.page_data import write_data

LIGHT = {
    "@effect": "#0b6e75", "@control": "#8a8f98", "@compare": "#a8590a", "@pos": "#1f66b8", "@neg": "#c2410c",
    "@pattern": "#7a3fb0",
    "@ink": "#18212b", "@muted": "#5b6672", "@grid": "#e4e7ec", "@axis": "#9aa3ad", "@zero": "#3c4650",
    "@mid": "#f7f7f5", "@seq0": "#14365c", "@seq1": "#178a86", "@seq2": "#c98b12", "@paper": "#ffffff",
}  # fmt: skip
DARK = {
    "@effect": "#4fc3c7", "@control": "#8d97a5", "@compare": "#f0a35e", "@pos": "#6cb0f5", "@neg": "#ff8a5c",
    "@pattern": "#c79bf2",
    "@ink": "#e8ecf1", "@muted": "#a3afbd", "@grid": "#2a333f", "@axis": "#5d6977", "@zero": "#c3ccd6",
    "@mid": "#232b35", "@seq0": "#8ab8ff", "@seq1": "#4fd1b8", "@seq2": "#f6c667", "@paper": "#151b23",
}  # fmt: skip

# The package's own family comes first, so that a figure is the same on every machine. The others are for readers of an
# SVG outside the report.
FONTS = Path(__file__).parent / "fonts"
FONT = "Mechstudy Sans, Inter, Liberation Sans, Arial, Helvetica, sans-serif"


def chart_config(font: str) -> dict[str, Any]:
    """Vega-Lite config with colour tokens in it."""
    return {
        "background": None,
        "font": font,
        "padding": 6,
        "view": {"stroke": None},
        "axis": {
            "labelFont": font, "titleFont": font, "labelFontSize": 11, "titleFontSize": 12,
            "titleFontWeight": 500, "labelColor": "@muted", "titleColor": "@ink", "gridColor": "@grid",
            "domainColor": "@axis", "tickColor": "@axis", "titlePadding": 10, "labelPadding": 4,
            "domain": True, "tickSize": 4, "labelLimit": 260,
        },
        "axisY": {"domain": False, "ticks": False},
        "legend": {
            "labelFont": font, "titleFont": font, "labelFontSize": 11, "titleFontSize": 11,
            "titleFontWeight": 500, "labelColor": "@ink", "titleColor": "@muted", "orient": "top",
            "symbolSize": 70, "labelLimit": 300, "offset": 4, "symbolOpacity": 1,
        },
        "title": {
            "font": font, "color": "@ink", "fontSize": 13, "fontWeight": 600, "anchor": "start",
            "subtitleColor": "@muted", "subtitleFontSize": 11, "subtitleFont": font, "offset": 10,
        },
        "header": {"labelFont": font, "labelColor": "@ink", "titleFont": font, "titleColor": "@muted"},
        "text": {"font": font, "color": "@ink", "fontSize": 11},
        "rule": {"color": "@zero", "aria": False},  # lines have no text: readers of screens skip them
        "line": {"strokeWidth": 1.8},
        "point": {"filled": True, "size": 55},
    }  # fmt: skip


def themed(value: Any, palette: dict[str, str]) -> Any:
    """A copy of a spec with its colour tokens replaced; data stays, so that no prompt can pose as a colour."""
    if isinstance(value, str):
        return palette.get(value, value)
    if isinstance(value, dict):
        return {k: v if k in ("data", "datasets") else themed(v, palette) for k, v in value.items()}
    if isinstance(value, list):
        return [themed(v, palette) for v in value]
    return value


def chart_themes() -> dict[str, Any]:
    """Palettes and configurations for drawing charts in a page, light and dark."""
    config = chart_config(FONT)
    return {
        name: {"palette": palette, "config": themed(config, palette)}
        for name, palette in (("light", LIGHT), ("dark", DARK))
    }


EXPORT_WIDTH = 520  # CSS pixels, 72 to the inch
PNG_PPI = 180  # resolution of the bitmaps: 2.5 pixels to a CSS pixel
_VEGA_LITE = "6.4"  # the schema that altair writes


@dataclass(frozen=True)
class Figure:
    """A chart on a page: ``name`` names its data file and its exports; ``units`` made its numbers."""

    name: str
    title: str
    units: tuple[str, ...]
    height: int


class Figures(dict[str, Figure]):
    """The figures of a report by name, written below its folder."""

    def __init__(self, out: Path):
        super().__init__()
        self.out = out
        _register_fonts()
        (out / "figures").mkdir(parents=True, exist_ok=True)

    def add(self, name: str, chart: alt.TopLevelMixin | None, title: str, *units: UnitFiles) -> None:
        """Write a chart's data and exports, if there is a chart."""
        if chart is None:
            return
        spec: dict[str, Any] = {k: v for k, v in chart.to_dict().items() if k not in ("config", "$schema")}
        write_data(self.out, f"chart-{name}", spec)
        self.write_svg(name, chart_svg(spec, width=EXPORT_WIDTH, title=title))
        self[name] = Figure(name, title, tuple(unit.name for unit in units), spec["height"])

    def write_svg(self, name: str, svg: str) -> None:
        """Write an SVG and the PNG of it."""
        (self.out / "figures" / f"{name}.svg").write_text(svg, encoding="utf-8")
        png = vl_convert.svg_to_png(svg, ppi=PNG_PPI)
        (self.out / "figures" / f"{name}.png").write_bytes(png)


def chart_svg(spec: Mapping[str, Any], **looks: Any) -> str:
    """An SVG of a chart in the light theme, on white.

    Args:
        spec: Vega-Lite, with colour tokens.
        looks: fields of the spec to set, such as ``width`` in CSS pixels.
    """
    _register_fonts()
    drawn = {**spec, "config": chart_config(FONT), "background": "#ffffff", **looks}
    svg: str = vl_convert.vegalite_to_svg(themed(drawn, LIGHT), vl_version=_VEGA_LITE)
    return svg


@cache
def _register_fonts() -> None:
    """Makes the package's fonts known to the renderer, once per process."""
    vl_convert.register_font_directory(str(FONTS))


@cache
def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one classic script, without any network request."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=_VEGA_LITE)
