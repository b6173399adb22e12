"""`patch`: where in the model the information is, as a table of layers and tokens and a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from mechstudy import behaviours, interventions, report
from mechstudy.cli import one_prompt
from mechstudy.cli.one_prompt import Stages, noted
from mechstudy.cli.options import Json
from mechstudy.cli.show import console, print_json, table
from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import atomic_path
from mechstudy.report.formatting import number, whole_percent

SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out")  # of `interventions.patch_sweep`; help imports nothing heavy
_CELL, _HEAD = 7, 12  # columns of a terminal that a cell needs, and at most a token
_BLUE, _ORANGE = "rgb(31,102,184)", "rgb(194,65,12)"
_FAINT, _STRONG = 0.05, 0.5  # shares


def patch(
    prompt: one_prompt.Prompt,
    corrupted: one_prompt.Corrupted = None,
    answer: one_prompt.Answer = None,
    wrong_answer: one_prompt.WrongAnswer = None,
    model: one_prompt.ModelSource = None,
    site: Annotated[str, typer.Option(help=f"What is patched: one of {', '.join(SITES)}.")] = "resid_post",
    layers: Annotated[str, typer.Option(help="all, 10-24, or 3,5,8-10.")] = "all",
    instruction: one_prompt.Instruction = None,
    device: one_prompt.Device = "auto",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The page: a name that ends in .html.")] = None,
    open_page: one_prompt.Open = False,
    as_json: Json = False,
) -> None:
    """Find where the information is: patch the corrupted prompt into the clean one, at every layer and token.

    A cell is the share of the difference between the two prompts that writing one activation of the corrupted prompt
    into the clean one removes: 0% nothing, 100% all of it. Prints the table and writes a page of one file.

    [dim]mechstudy patch "The keys to the cabinet" --corrupted "The key to the cabinet"[/]
    """
    if corrupted is None:
        raise MechstudyError(
            "patching needs a corrupted prompt",
            fix='--corrupted TEXT, such as "The key to the cabinet" for "The keys ..."',
        )
    one_prompt.check_prompts(prompt, corrupted)
    stages = Stages()
    path = one_prompt.page_path(out, "patch", prompt)
    with noted():
        opened = one_prompt.opened(model, None, device)
        stages.done("model")
        answers = behaviours.compared_answers(
            opened.model, prompt, answer, wrong_answer, corrupted=corrupted, instruction=instruction
        )
        pair = behaviours.prompt_pair(
            opened.model,
            prompt,
            corrupted,
            answer=answers.answer,
            wrong_answer=answers.wrong_answer,
            instruction=instruction,
        )
        cells = interventions.patch_sweep(opened.model, [pair], site, layers=layers)
        stages.done("patching")
        strings = opened.model.token_strings
        swept = report.Swept(
            cells, site, opened.model.name, strings(pair.clean_tokens), strings(pair.corrupted_tokens),
            answers.answer, answers.wrong_answer,
        )  # fmt: skip
        if swept.metric[0] == swept.metric[1]:
            raise MechstudyError(
                "the logit difference is the same on both prompts, so there is nothing to remove",
                fix="a corrupted prompt to which the model answers otherwise",
            )
        with atomic_path(path) as temporary:
            temporary.write_text(report.patch_page(swept), encoding="utf-8")
        stages.done("page")
    if as_json:
        print_json({"model": opened.model.name, "site": site, "page": str(path), "cells": cells.to_dicts()})
        return
    print(f"{opened.model.name}, {one_prompt.quoted(prompt)}, patched with {one_prompt.quoted(corrupted)}")
    one_prompt.show_answers(answers)
    _, other = swept.metric
    print(f"             {number(other)} on the corrupted prompt; below, the share of that gap which goes")
    _show(swept)
    layer, at, share = swept.strongest
    print(f"largest: layer {layer}, token {swept.token(at)}: {whole_percent(share)}")
    print(f"time: {stages}")
    one_prompt.show_page(path, open_page)


def _show(swept: report.Swept) -> None:
    """Prints a row for each layer, the last first, and a column for each token that matters and fits."""
    out = console()
    room = max(1, (out.width - _CELL) // (_HEAD + 2))
    positions = swept.positions
    if len(positions) > room:
        by_size = sorted(positions, key=lambda at: -max(abs(swept.share(layer, at) or 0) for layer in swept.layers))
        positions = sorted(by_size[:room])
    heat: Table = table(">layer", *(f">{swept.token(at, _HEAD - 4)}" for at in positions))
    for layer in reversed(swept.layers):
        heat.add_row(str(layer), *(_cell(swept.share(layer, at)) for at in positions))
    out.print(heat)
    if hidden := len(swept.positions) - len(positions):
        print(f"{hidden} more tokens, of smaller effects, are on the page")


def _cell(share: float | None) -> Text:
    """A share in blue if the difference shrinks and in orange if it grows, on that colour from half of it on."""
    if share is None:
        return Text("")
    shown, colour = whole_percent(share) if share else "0", _BLUE if share > 0 else _ORANGE
    if abs(share) < _FAINT:
        return Text(shown, style="dim")
    return Text(shown, style=f"white on {colour}" if abs(share) >= _STRONG else f"bold {colour}")
