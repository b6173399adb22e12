"""`graph`: the attribution graph of one prompt, as a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from mechstudy import api, behaviours, circuits
from mechstudy.cli import one_prompt
from mechstudy.cli.one_prompt import Stages, noted
from mechstudy.cli.show import console, table
from mechstudy.core.notices import counted
from mechstudy.report.formatting import clip, number, visible

if TYPE_CHECKING:
    from mechstudy.api.graphs import PromptGraph

_LISTED = 10  # nodes in the table
_EFFECTS = {"live_effect": "adds", "contrast_effect": "changes"}  # heads of the column


def graph(
    prompt: one_prompt.Prompt,
    answer: one_prompt.Answer = None,
    wrong_answer: one_prompt.WrongAnswer = None,
    corrupted: one_prompt.Corrupted = None,
    model: one_prompt.ModelSource = None,
    dictionaries: one_prompt.Dictionaries = None,
    basis: one_prompt.Basis = None,
    nodes: Annotated[int, typer.Option(min=1, help="Features or neurons with edges of their own, at most.")] = 256,
    instruction: one_prompt.Instruction = None,
    device: one_prompt.Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The page; or FILE.json, which circuit-tracer and Neuronpedia read."),
    ] = None,
    open_page: one_prompt.Open = False,
) -> None:
    """Explain one prompt: its attribution graph as a page of one file, in seconds.

    The graph says which features or neurons, through which others, make logit(answer) - logit(wrong answer). Without
    dictionaries its nodes are the neurons of every layer. With --corrupted it predicts what replacing each one by its
    activation on that prompt changes.

    [dim]mechstudy graph "The keys to the cabinet" --answer " are" --wrong-answer " is"[/]
    """
    one_prompt.check_prompts(prompt, corrupted)
    stages = Stages()
    kind = one_prompt.basis_of(basis, dictionaries)
    path = one_prompt.page_path(out, "graph", prompt, (*one_prompt.PAGES, ".json"))
    with noted():
        opened = one_prompt.opened(model, dictionaries, device)
        stages.done("model")
        answers = behaviours.compared_answers(
            opened.model, prompt, answer, wrong_answer, corrupted=corrupted, instruction=instruction
        )
        config = circuits.AttributionConfig(max_features=nodes, basis=kind)
        made = api.attribute(
            opened.model,
            opened.dictionaries,
            prompt,
            answer=answers.answer,
            wrong_answer=answers.wrong_answer,
            corrupted=corrupted,
            instruction=instruction,
            config=config,
        )
        if (run := one_prompt.run_of(dictionaries)) is not None:
            made = made.described_by(run.feature_pages)
        stages.done("graph")
        made.save(path)
        stages.done("page")
    print(f"{opened.model.name}, {one_prompt.quoted(prompt)}, {counted(len(made.tokens), 'token')}")
    one_prompt.show_answers(answers)
    _show_top(made, "live_effect" if corrupted is None else "contrast_effect")
    print(f"graph: {_counts(made)}")
    print(f"time: {stages}")
    one_prompt.show_page(path, open_page)


def _show_top(made: PromptGraph, by: str) -> None:
    """The strongest features or neurons by size, with the sign of what they do."""
    rows = table("node", "token", f">{_EFFECTS[by]}", ">activation", "~fires on, promotes")
    for row in made.top(_LISTED, by=f"|{by}|").to_dicts():
        rows.add_row(
            str(row["feature"]),
            Text(f"{row['position']} {clip(visible(row['token']), 18)}"),
            number(row[by], 3),
            number(row["activation"]),
            Text(str(row.get("label") or "")),
        )
    if rows.row_count:
        console().print(rows)
    else:
        print("no feature or neuron is a node: what the first token alone does is a constant of the graph")


def _counts(made: PromptGraph) -> str:
    scores = made.scores()
    parts = [counted(len(made.nodes), "node"), counted(len(made.edges), "edge")]
    shares = [f"{name} {scores[name]:.2f}" for name in ("replacement", "completeness") if name in scores]
    return ", ".join([*parts, *shares])
