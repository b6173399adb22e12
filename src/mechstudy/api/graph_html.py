"""A graph as one HTML page that holds everything it needs, and as a cell of a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from html import escape
from importlib import resources
from typing import Any

import jinja2

from mechstudy.report.formatting import plain, script_json

_STYLES = ("report.css", "graph.css")
_SCRIPTS = ("report.js", "features.js", "graph-layout.js", "graph-draw.js", "graph-detail.js", "graph.js")
_KEY = "this"
_CELL_HEIGHT = 820  # CSS pixels

# The page may fetch nothing; and it must not write its state into the address of the notebook around it.
_CSP = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
_NO_ADDRESS = "history.replaceState = () => {};"
_OWN_STYLE = """
body { display: block; min-height: 0; }
body.wide main { padding: .6rem .8rem 1rem; }
.toolbar .grow, #g-detail a[href^="features.html"] { display: none; }
.canvas-box { height: 440px; }
.stage { grid-template-columns: minmax(0, 1fr) minmax(240px, 30%); }
.detail { border-left: 1px solid var(--line); border-top: 0; height: 565px; }
.below { margin-top: 1rem; } .below h2 { font-size: 1.05rem; }
@media (max-width: 700px) { .stage { grid-template-columns: 1fr; } .detail { height: auto; } }
"""


def page(view: Mapping[str, Any], features: Mapping[int, Mapping[str, Any]] | None = None) -> str:
    """The whole page of one graph.

    Args:
        view: of `report.viewer.prompt_view` or `aggregate_view`.
        features: layer -> feature number (as text) -> its record, of `report.viewer.feature_record`.
    """
    title = plain(str(view.get("prompt") or view.get("slug") or "graph"))
    layers = {layer for layer in view["nodes"]["layer"] if layer is not None}
    data = {f"graphs-{_KEY}": {"graphs": [{"data": "graph", "slug": view["slug"], "label": title}]}, "graph": view}
    data |= {f"features-L{layer}": (features or {}).get(layer, {}) for layer in sorted(layers)}
    puts = "\n".join(f"mechstudy.put({script_json(name)},{script_json(value)});" for name, value in data.items())
    shared, *viewer = [_asset(name) for name in _SCRIPTS]
    scripts = [_NO_ADDRESS, shared, puts, *viewer]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_CSP}">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(title)}</title>",
            *(f"<style>{style}</style>" for style in (*map(_asset, _STYLES), _OWN_STYLE)),
            f'</head><body class="wide"><main>{_viewer()}</main>',
            *(f"<script>{script}</script>" for script in scripts),
            "</body></html>",
        ]
    )


def cell(html: str) -> str:
    """A page inside an iframe that holds it whole, for a notebook's output."""
    return (
        f'<iframe srcdoc="{escape(html)}" sandbox="allow-scripts" title="Attribution graph" '
        f'style="width:100%;height:{_CELL_HEIGHT}px;border:0"></iframe>'
    )


@cache
def _asset(name: str) -> str:
    text = resources.files("mechstudy.report").joinpath("assets", name).read_text(encoding="utf-8")
    assert "</script" not in text and "</style" not in text, name
    return text


@cache
def _viewer() -> str:
    environment = jinja2.Environment(loader=jinja2.PackageLoader("mechstudy.report", "templates"), autoescape=True)
    return environment.get_template("graph_viewer.html.j2").render(key=_KEY)
