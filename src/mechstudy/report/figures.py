"""Figures: drawn in their page from data/*.js, and exported as SVG and PNG into figures/."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from mechstudy.report.data import UnitFiles
from mechstudy.report.formatting import script_json
from mechstudy.report.style import EXPORT_FONT, LIGHT, chart_config, themed

EXPORT_WIDTH = 520  # CSS pixels, 72 to the inch
PNG_PPI = 180  # resolution of the bitmaps: 2.5 pixels to a CSS pixel
_VEGA_LITE = "6.4"  # the schema that altair writes


@dataclass(frozen=True)
class Figure:
    """A chart on a page: ``name`` names its data file and its exports; ``units`` made its numbers."""

    name: str
    title: str
    caption: str
    units: tuple[str, ...]
    height: int


class Figures:
    """Writes figures below a report folder."""

    def __init__(self, out: Path):
        self.out = out
        (out / "figures").mkdir(parents=True, exist_ok=True)

    def add(
        self, name: str, chart: alt.TopLevelMixin | None, title: str, caption: str, units: Iterable[UnitFiles] = ()
    ) -> Figure | None:
        """Write a chart's data and exports; None where there is no chart to draw."""
        if chart is None:
            return None
        spec: dict[str, Any] = chart.to_dict()
        spec.pop("config", None)
        spec.pop("$schema", None)
        write_data(self.out, f"chart-{name}", spec)
        export = themed({**spec, "config": chart_config(EXPORT_FONT), "title": title}, LIGHT)
        export["background"] = "#ffffff"
        if export.get("width") == "container":
            export["width"] = EXPORT_WIDTH
        self.write_svg(name, vl_convert.vegalite_to_svg(export, vl_version=_VEGA_LITE))
        return Figure(name, title, caption, tuple(unit.name for unit in units), int(spec.get("height", 260)))

    def write_svg(self, name: str, svg: str) -> None:
        """Write an SVG and the PNG of it."""
        (self.out / "figures" / f"{name}.svg").write_text(svg, encoding="utf-8")
        png = vl_convert.svg_to_png(svg, ppi=PNG_PPI)
        (self.out / "figures" / f"{name}.png").write_bytes(png)


def write_data(out: Path, name: str, value: Any) -> None:
    """data/<name>.js, a classic script that hands its value to the page's loader."""
    path = out / "data" / f"{name}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"mechstudy.put({script_json(name)},{script_json(value)});\n", encoding="ascii")


def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one classic script, without any network request."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=_VEGA_LITE)
