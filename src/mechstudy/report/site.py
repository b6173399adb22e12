"""The frame that all pages share: navigation, provenance chips, number handles, templates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from mechstudy.report import formatting
from mechstudy.report.claims import VERDICT_WORDS
from mechstudy.report.data import ReportData
from mechstudy.report.numbers import Address

# Scripts and pictures come from the report's own folder, and nothing is fetched. Vega uses its expression interpreter,
# so that no script is made from a string either.
CSP = (
    "default-src 'none'; script-src 'self' file:; style-src 'self' file: 'unsafe-inline'; "
    "img-src 'self' file: data:; base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Page:
    """A page of the site."""

    file: str
    label: str
    group: str
    ready: bool = True


class Site:
    """Renders templates into `out` with what all pages share."""

    def __init__(self, data: ReportData, out: Path, pages: list[Page]):
        self.out = out
        self.ids = {unit.name: str(unit.record.get("id") or "") for unit in data.units}
        self.environment = jinja2.Environment(
            loader=jinja2.PackageLoader("mechstudy.report", "templates"),
            autoescape=True,
            undefined=jinja2.ChainableUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        filters: dict[str, Callable[..., Any]] = {
            "visible": formatting.visible, "plain": formatting.plain, "title_": formatting.title,
            "num": formatting.number, "beside": formatting.beside, "int_": formatting.integer,
            "pct": formatting.percent, "ci": formatting.interval, "p": formatting.p_value,
            "duration": formatting.duration, "size": formatting.size, "slug": formatting.slug,
            "capitalised": formatting.capitalised, "yaml": formatting.yaml_text, "moment": formatting.moment,
            "command": formatting.command_line, "tokens": token_markup,
        }  # fmt: skip
        self.environment.filters.update({name: _tolerant(f) for name, f in filters.items()})
        navigation: dict[str, list[Page]] = {}
        for page in pages:
            navigation.setdefault(page.group, []).append(page)
        self.environment.globals.update(
            study_name=formatting.plain(str(data.study.get("name") or "study")),
            model=data.model.json("model.json"),
            model_name=formatting.plain(data.model_name),
            no_graphs=data.no_graphs,
            verdicts=VERDICT_WORDS,
            chip=self.chip,
            number=self.number,
            csp=CSP,
            navigation=navigation,
        )

    def render(self, template: str, file: str, **context: Any) -> None:
        """Write a page; lone surrogates cannot be written and become U+FFFD."""
        html = self.environment.get_template(template).render(file=file, **context)
        (self.out / file).write_bytes(html.encode("utf-8", "replace"))

    def chip(self, unit: str) -> Markup:
        """A link from a number to the unit that made it."""
        short = self.ids.get(unit, "")[:8]
        label = f"{unit} · {short}" if short else unit
        return Markup(
            '<a class="chip" href="compute.html#{}" title="The artifact, config and command behind this">{}</a>'
        ).format(f"unit-{formatting.slug(unit)}", formatting.plain(label))

    def number(self, where: str | Address, file: str = "", *keys: str | int) -> Markup:
        """The handle of a number, or of a row of them, at an address or in a file of a unit."""
        address = where if isinstance(where, Address) else Address(where, file).below(*keys)
        return Markup('<code class="handle" title="mechstudy reproduce STUDY {} ({})">{}</code>').format(
            address.handle, formatting.plain(str(address)), address.handle
        )

    def write_assets(self, vega: str) -> None:
        """Copies the style sheets and scripts, and writes the Vega bundle."""
        folder = self.out / "assets"
        folder.mkdir(parents=True, exist_ok=True)
        for asset in resources.files("mechstudy.report").joinpath("assets").iterdir():
            (folder / asset.name).write_bytes(asset.read_bytes())
        (folder / "vega.js").write_text(vega, encoding="utf-8")


def _tolerant(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that reads None for a field that an artifact lacks."""

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
