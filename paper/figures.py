"""The paper's figures: those of the report from a finished run, and two of the benchmarks' stored results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import altair as alt

from mechstudy.interventions.results import edges_of
from mechstudy.report.charts import EDGE_FIGURES, chart, edges
from mechstudy.report.figures import FONT, LIGHT, chart_svg
from mechstudy.report.members_picture import members_of, members_svg, positions_in_order
from mechstudy.report.verdict_page import specification_chart
from paper.finished import FinishedRun
from paper.numbers import KEYS
from paper.stored import fvu_of, step_rows, stored

NARROW = 320  # CSS pixels of a plot without its axes, two of which share the width of a page
_LIBRARIES = ["mechstudy", "sparsify", "dictionary_learning", "saelens"]
_TICKS = [20, 50, 100, 200, 500, 1000, 2000]
_COLOURS = ["@effect", "@seq0", "@compare", "@control"]


def draw(run: FinishedRun, folder: Path) -> list[str]:
    """Write every figure as SVG.

    Args:
        run: the run that most of them are of.
        folder: made where it is absent.

    Returns:
        Their names, without the suffix.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for name, svg in _figures(run):
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
        names.append(name)
    return names


def _figures(run: FinishedRun) -> Iterator[tuple[str, str]]:
    ci_name = f"{run.spec('verdict')['ci']:.0%} CI"
    for key, behaviour in zip(KEYS, run.behaviours, strict=True):
        record = run.verdict(behaviour)
        measured = run.unit("intervene", behaviour).json("summary.json")
        yield f"circuit-{key}", _circuit(run, behaviour)
        for name, drawn, height in (
            ("edges", edges(edges_of(measured), EDGE_FIGURES["edges-direct"][1], ci_name), 200),
            ("specifications", specification_chart(record), 170),
        ):
            yield f"{name}-{key}", _svg(drawn, height)
    yield "quality", _svg(_quality(stored("quality_bfloat16")), 150)
    yield "steps", _svg(_steps(stored("step_time")), 150)


def _svg(drawn: alt.TopLevelMixin | None, height: int) -> str:
    """A chart at the paper's size; a line of text in its place where the run has nothing to draw."""
    if drawn is None:
        drawn = chart([{"text": "nothing was measured"}]).mark_text().encode(text="text:N")
    spec: dict[str, Any] = {k: v for k, v in drawn.to_dict().items() if k not in ("config", "$schema")}
    return chart_svg(spec, width=NARROW, height=height)


def _circuit(run: FinishedRun, behaviour: str) -> str:
    """The members of a verdict's circuit by position and layer, as a file of its own."""
    prompts = run.unit("prompts", behaviour)
    members = members_of(run.verdict(behaviour)["members"])
    pairs = list(chain(*(prompts.rows(f"{split}.jsonl") for split in ("train", "test"))))
    texts, first = prompts.json("tokens.json"), pairs[0]
    tokens = {name: texts[str(first["clean_tokens"][at])] for name, at in first["positions"].items()}
    n_layers = int(run.unit("model").json("model.json")["n_layers"])
    svg = str(members_svg(members, positions_in_order(members, pairs), n_layers, tokens, LIGHT))
    return svg.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" font-family="{FONT}" ', 1)


def _quality(results: Mapping[str, Any]) -> alt.TopLevelMixin:
    """FVU on held-out rows, by library."""
    rows = fvu_of(results)
    recipes = {"ours": "our recipe", "own": "its own recipe"}
    rows = [{**row, "recipe": recipes[row["recipe"]]} for row in rows]
    scale = alt.Scale(domain=list(recipes.values()), range=["circle", "cross"])
    shape = alt.Shape("recipe:N", title=None, scale=scale, legend=alt.Legend(orient="bottom"))
    axis = alt.Axis(tickCount=4)
    drawn: alt.TopLevelMixin = chart(rows).mark_point(size=60, opacity=0.9).encode(
        x=alt.X("fvu:Q", title="FVU of held-out rows at equal L0", scale=alt.Scale(zero=False), axis=axis),
        y=alt.Y("architecture:N", title=None, sort=None),
        yOffset=alt.YOffset("library:N", sort=_LIBRARIES),
        color=_by_library(),
        shape=shape,
    )  # fmt: skip
    return drawn


def _steps(results: Mapping[str, Any]) -> alt.TopLevelMixin:
    """Milliseconds of a step, by library."""
    labels = {"smollm2": "small", "specification": "large"}
    rows = [{**row, "at": f"{row['architecture']}, {labels[row['shape']]}"} for row in step_rows(results)]
    drawn: alt.TopLevelMixin = chart(rows).mark_point(size=60, opacity=0.9).encode(
        x=alt.X("ms:Q", title="milliseconds of a step", scale=alt.Scale(type="log"), axis=alt.Axis(values=_TICKS)),
        y=alt.Y("at:N", title=None, sort=None),
        color=_by_library(),
    )  # fmt: skip
    return drawn


def _by_library() -> alt.Color:
    scale = alt.Scale(domain=_LIBRARIES, range=_COLOURS)
    return alt.Color("library:N", title=None, scale=scale, legend=alt.Legend(columns=2))
