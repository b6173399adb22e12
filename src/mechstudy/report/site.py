"""The frame that all pages share: navigation, provenance chips, number handles, templates."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from jinja2.bccache import Bucket
from markupsafe import Markup

from mechstudy.report import formatting
from mechstudy.report.claims import VERDICT_WORDS
from mechstudy.report.data import FILES, Address, ReportData
from mechstudy.report.figures import Figures
from mechstudy.report.pictures import strip

# Scripts and pictures come from the report's own folder, and nothing is fetched. Vega uses its expression interpreter,
# so that no script is made from a string either.
CSP = (
    "default-src 'none'; script-src 'self' file:; style-src 'self' file: 'unsafe-inline'; "
    "img-src 'self' file: data:; font-src 'self' file:; base-uri 'none'; form-action 'none'"
)


class _Compiled(jinja2.BytecodeCache):
    """Compiled templates, kept for the next report of this process."""

    def __init__(self) -> None:
        self._code: dict[str, bytes] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        if (code := self._code.get(bucket.key + bucket.checksum)) is not None:
            bucket.bytecode_from_string(code)

    def dump_bytecode(self, bucket: Bucket) -> None:
        self._code[bucket.key + bucket.checksum] = bucket.bytecode_to_string()


_COMPILED = _Compiled()


class Site:
    """Renders templates into `out` with what all pages share."""

    def __init__(self, data: ReportData, out: Path):
        self.data, self.out, self.figures = data, out, Figures(out)
        self.ids = {unit.name: str(unit.record.get("id") or "") for unit in data.units}
        self.environment = jinja2.Environment(
            loader=jinja2.PackageLoader("mechstudy.report", "templates"),
            autoescape=True,
            undefined=jinja2.ChainableUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            bytecode_cache=_COMPILED,
        )
        filters: dict[str, Callable[..., Any]] = {
            "visible": formatting.visible, "plain": formatting.plain, "title_": formatting.title,
            "num": formatting.number, "beside": formatting.beside, "int_": formatting.integer,
            "pct": formatting.percent, "share": "{:.0%}".format, "ci_of": formatting.interval_of,
            "share_ci_of": formatting.share_interval_of, "p": formatting.p_value,
            "duration": formatting.duration, "size": formatting.size, "slug": formatting.slug,
            "capitalised": formatting.capitalised, "yaml": formatting.yaml_text, "moment": formatting.moment,
            "command": formatting.command_line,
        }  # fmt: skip
        self.environment.filters.update({name: _tolerant(f) for name, f in filters.items()})
        self.environment.globals.update(
            study_name=formatting.plain(str(data.study.get("name") or "study")),
            data=data,
            model_name=formatting.plain(data.model_name),
            no_graphs=data.no_graphs,
            verdicts=VERDICT_WORDS,
            ci_name=data.interval_name,
            chip=self.chip,
            number=self.number,
            strip=strip,
            csp=CSP,
            figures=self.figures,
        )

    def render(self, template: str, key: str = "", **context: Any) -> None:
        """Write a template's page, or the one of a behaviour's ``key``; lone surrogates become U+FFFD."""
        file = f"{template}-{key}.html" if key else f"{template}.html"
        html = self.environment.get_template(f"{template}.html.j2").render(file=file, key=key, **context)
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
        assert address.file in FILES, f"{address.file} is not searched for handles"
        return Markup('<code class="handle" title="mechstudy reproduce STUDY {} ({})">{}</code>').format(
            address.handle, formatting.plain(str(address)), address.handle
        )

    def write_assets(self, vega: str) -> None:
        """Copies the style sheets, scripts and fonts, and writes the Vega bundle."""
        folder = self.out / "assets"
        folder.mkdir(parents=True, exist_ok=True)
        package = resources.files("mechstudy.report")
        for asset in (*package.joinpath("assets").iterdir(), *package.joinpath("fonts").iterdir()):
            (folder / asset.name).write_bytes(asset.read_bytes())
        (folder / "vega.js").write_text(vega, encoding="utf-8")


def _tolerant(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that reads None for a field that an artifact lacks."""

    def wrapped(value: Any, *args: Any) -> Any:
        return function(None if isinstance(value, jinja2.Undefined) else value, *args)

    return wrapped
