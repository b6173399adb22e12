"""`label`: labels of a run's features from a model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from math import nan
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from mechstudy import api
from mechstudy.cli.one_prompt import noted
from mechstudy.cli.options import Json
from mechstudy.cli.show import console, print_json, table
from mechstudy.core.errors import MechstudyError
from mechstudy.core.notices import counted
from mechstudy.core.progress import Progress
from mechstudy.features.asked_labels import ASKED
from mechstudy.features.endpoint import KEY_VARIABLE
from mechstudy.report.formatting import number, plain

if TYPE_CHECKING:
    import polars as pl

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, such as runs/demo.")]


def label(
    run: RunFolder,
    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Address up to and without /chat/completions, such as http://127.0.0.1:8000/v1. Texts of the run are "
            "sent there, and nowhere else.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="NAME", help="The model's name at the endpoint.")
    ] = None,
    given: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE|FOLDER",
            help="Labels that others gave, in place of an endpoint: Neuronpedia's explanations, delphi's, or a JSON "
            "object.",
        ),
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER/FEATURE", help="Repeatable. Default: all that the run recorded."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="So many features at most, those of largest influence.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=f"The file of labels. Default: {ASKED} in the run's folder."),
    ] = None,
    key_variable: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help=f"Environment variable that holds the key. Default: {KEY_VARIABLE}, if it is set."
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="How long a request may stay without a byte.")
    ] = 60.0,
    max_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tokens of an answer, with those that a reasoning model thinks in.")
    ] = 1024,
    seed: Annotated[int, typer.Option(help="Draws the other texts that a label is scored on, and their order.")] = 0,
    as_json: Json = False,
) -> None:
    """Give a run's features labels: ask a model behind an OpenAI-compatible endpoint, or take those of others.

    A label is made from one half of a feature's examples and scored on the other half, by the endpoint itself; beside
    it is the score of another feature's label on the same texts. Labels are kept after each answer: the same command
    asks only for what is missing. Labels of --from have no score.

    [dim]mechstudy label runs/demo --endpoint http://127.0.0.1:8000/v1 --model qwen3 --limit 20[/]
    [dim]mechstudy label runs/demo --from explanations/[/]
    """
    if given is not None:
        _take(run, given, endpoint or model, as_json)
        return
    if endpoint is None or model is None:
        raise MechstudyError(
            "labels need an endpoint and the name of its model, or files of labels",
            fix="--endpoint http://127.0.0.1:8000/v1 --model NAME, or --from FILE",
        )
    with noted():
        made = api.ask_labels(
            run,
            endpoint,
            model,
            features=features,
            limit=limit,
            out=out,
            key_variable=key_variable,
            timeout=timeout,
            max_tokens=max_tokens,
            seed=seed,
            progress=Progress(),
        )
    if as_json:
        print_json(made.to_dicts())
    else:
        _show(made)


def _take(run: Path, given: Path, asked: str | None, as_json: bool) -> None:
    if asked is not None:
        raise MechstudyError(
            "labels are either asked for or taken from files", fix="--endpoint with --model, or --from"
        )
    with noted():
        made = api.take_labels(run, given)
    if as_json:
        print_json(made.to_dicts())
        return
    rows = table("feature", "~label", "by")
    for row in made.iter_rows(named=True):
        rows.add_row(row["feature"], Text(plain(row["label"])), Text(plain(row["model"])))
    console().print(rows)
    print(f"{counted(len(made), 'label')} taken; `mechstudy report STUDY` shows them on its pages")


def _show(made: pl.DataFrame) -> None:
    """Prints labels with scores, and the medians."""
    rows = table("feature", ">score", ">another's", "~label")
    for row in made.iter_rows(named=True):
        rows.add_row(row["feature"], number(row["score"]), number(row["shuffled"]), Text(plain(row["label"] or "none")))
    console().print(rows)
    scored = made.drop_nulls("score")
    print(f"{len(made.drop_nulls('label'))} of {counted(len(made), 'feature')} labelled, {len(scored)} scored")
    if len(scored) < len(made):
        print("the others: no usable answer, or too few texts; the same command asks for what is missing again")
    if len(scored):
        right, other = (median(scored[name].drop_nulls().to_list() or [nan]) for name in ("score", "shuffled"))
        print(
            f"median score {number(right)}, another feature's label {number(other)}; .5 is chance; judge: the endpoint"
        )
