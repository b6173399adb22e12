"""The frame of every page: navigation, provenance chips, templates."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from . import formatting
from .numbers import Address
from .source import Source
from .summary import model_name

# No page may talk to anything: scripts and pictures come from the report's own folder, and nothing is fetched.
# Vega runs through its expression interpreter, so that no script may be made from a string either.
CSP = (
    "default-src 'none'; script-src 'self' file:; style-src 'self' file: 'unsafe-inline'; "
    "img-src 'self' file: data:; base-uri 'none'; form-action 'none'"
)

ASSETS = ("report.css", "graph.css", "report.js", "features.js", "graph-layout.js", "graph-draw.js", "graph-detail.js",
          "graph.js")  # fmt: skip


@dataclass(frozen=True)
class Page:
    """A page of the site."""

    file: str
    label: str
    group: str
    ready: bool = True


class Site:
    """Renders templates into `out` with what all pages share."""

    def __init__(self, source: Source, out: Path, pages: list[Page]):
        self.source, self.out, self.pages = source, out, pages
        self.environment = jinja2.Environment(
            loader=jinja2.PackageLoader("mechstudy.report", "templates"),
            autoescape=True,
            undefined=jinja2.ChainableUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        filters: dict[str, Callable[..., Any]] = {
            "visible": formatting.visible, "plain": formatting.plain, "title_": formatting.title,
            "num": formatting.number,
            "fixed": formatting.fixed,
            "int_": formatting.integer, "pct": formatting.percent, "ci": formatting.interval, "p": formatting.p_value,
            "decimals": formatting.decimals, "duration": formatting.duration, "size": formatting.size,
            "slug": formatting.slug,
            "tokens": token_markup,
        }  # fmt: skip
        self.environment.filters.update({name: _tolerant(f) for name, f in filters.items()})
        model = source.json("model", "model.json") or {}
        self.environment.globals.update(
            study_name=formatting.plain(str(source.study.get("name") or "study")),
            model=model,
            model_name=formatting.plain(str(model.get("name") or model_name(source.study))),
            chip=self.chip,
            number=self.number,
            csp=CSP,
            navigation=self._groups(),
        )

    def _groups(self) -> dict[str, list[Page]]:
        groups: dict[str, list[Page]] = {}
        for page in self.pages:
            groups.setdefault(page.group, []).append(page)
        return groups

    def render(self, template: str, file: str, **context: Any) -> None:
        """Write a page; lone surrogates cannot be written and become U+FFFD."""
        html = self.environment.get_template(template).render(file=file, **context)
        (self.out / file).write_bytes(html.encode("utf-8", "replace"))

    def chip(self, unit: str) -> Markup:
        """A link from a number to the unit that made it."""
        record = self.source.unit(unit)
        short = str((record or {}).get("id") or "")[:8]
        label = f"{unit} · {short}" if short else unit
        return Markup(
            '<a class="chip" href="compute.html#{}" title="The artifact, config and command behind this">{}</a>'
        ).format(f"unit-{formatting.slug(unit)}", formatting.plain(label))

    def number(self, unit: str, file: str, *keys: str | int) -> Markup:
        """The handle of a number, or of a row of them."""
        address = Address(unit, file).below(*keys)
        return Markup('<code class="handle" title="mechstudy reproduce STUDY {} ({})">{}</code>').format(
            address.handle, formatting.plain(str(address)), address.handle
        )

    def write_assets(self, vega: str) -> None:
        """Copy css and js, and write the Vega bundle."""
        folder = self.out / "assets"
        folder.mkdir(parents=True, exist_ok=True)
        for name in ASSETS:
            content = resources.files("mechstudy.report").joinpath("assets", name).read_text(encoding="utf-8")
            (folder / name).write_text(content, encoding="utf-8")
        (folder / "vega.js").write_text(vega, encoding="utf-8")


def _tolerant(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that takes a field an artifact does not have as None."""

    def wrapped(value: Any, *args: Any) -> Any:
        return function(None if isinstance(value, jinja2.Undefined) else value, *args)

    return wrapped


def token_markup(tokens: list[str], marks: Mapping[int, str] | None = None, changed: set[int] | None = None) -> Markup:
    """Tokens as chips with whitespace visible; named positions carry their name, changed ones are marked."""
    marks, changed = marks or {}, changed or set()
    parts = []
    for i, token in enumerate(tokens):
        classes = "tok" + (" tok-named" if i in marks else "") + (" tok-changed" if i in changed else "")
        shown = escape(formatting.visible(token))
        name = Markup("<sub>{}</sub>").format(formatting.plain(marks[i])) if i in marks else ""
        parts.append(Markup('<span class="{}" title="token {}">{}{}</span>').format(classes, i, shown, name))
    return Markup('<span class="toks">{}</span>').format(Markup("").join(parts))


def command(unit: Mapping[str, Any]) -> str:
    """The command line that made an artifact, where it was recorded."""
    provenance = unit.get("provenance") or {}
    argv = provenance.get("argv")
    if isinstance(argv, (list, tuple)) and argv:
        return formatting.plain(shlex.join(str(a) for a in [Path(str(argv[0])).name, *argv[1:]]))
    return formatting.plain(str(provenance.get("command") or argv or ""))
