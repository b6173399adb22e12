"""Pages of one HTML file: styles, scripts and data inside, and nothing fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from mechstudy.report.formatting import script_json

# Vega uses its expression interpreter, so that no script is made from a string either.
CSP = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
# In place of the report's loader of files: what the page itself holds. And a page in a notebook's cell must not write
# its state into the address of the notebook.
_HELD = """
(() => {
  const held = new Map();
  mechstudy.put = (name, value) => { held.set(name, value); };
  mechstudy.load = (name) => held.has(name)
    ? Promise.resolve(held.get(name)) : Promise.reject(new Error(name + " is not in this page"));
  history.replaceState = () => {};
})();
"""


def standalone(
    title: str,
    main: str,
    *,
    styles: Sequence[str],
    scripts: Sequence[str],
    data: Mapping[str, Any],
    body_class: str = "",
) -> str:
    """The text of a page.

    Args:
        title: plain text.
        main: HTML of the page's content, escaped by whoever made it.
        styles: texts of style sheets, after ``report.css``.
        scripts: texts of scripts, after ``report.js`` and the data.
        data: what the scripts load, by name; any JSON.
        body_class: a class of the body.
    """
    puts = "\n".join(f"mechstudy.put({script_json(name)},{script_json(value)});" for name, value in data.items())
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{CSP}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(title)}</title>",
            *(f"<style>{style}</style>" for style in (asset("report.css"), *styles)),
            f'</head><body class="{escape(body_class)}"><main>{main}</main>',
            *(f"<script>{script}</script>" for script in (asset("report.js"), _HELD, puts, *scripts)),
            "</body></html>",
        ]
    )


def is_page(path: str | Path) -> bool:
    """Whether a file of this name is a page."""
    return Path(path).suffix == ".html"


def write_page(path: str | Path, text: str) -> Path:
    """Write a page to a place that a user names, in a folder that is made if there is none; the path."""
    place = Path(path).expanduser()
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text, encoding="utf-8")
    return place


@cache
def asset(name: str) -> str:
    """The text of a style sheet or script of the report."""
    text = resources.files("mechstudy.report").joinpath("assets", name).read_text(encoding="utf-8")
    assert "</script" not in text and "</style" not in text, name
    return text


def rendered(template: str, **context: Any) -> str:
    """A template of the report; every value is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mechstudy.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**context)
