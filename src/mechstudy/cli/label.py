"""`label`: labels of a run's features from a model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from mechstudy import api
from mechstudy.cli import options
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

Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Address up to and without /chat/completions, such as http://127.0.0.1:8000/v1. Texts of the run are "
        "sent there, and nowhere else.",
    ),
]
Given = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="FILE|FOLDER",
        help="Labels that others gave, in place of an endpoint: Neuronpedia's explanations, delphi's, or a JSON "
        "object.",
    ),
]
KeyVariable = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help=f"Environment variable that holds the key. Default: {KEY_VARIABLE}, if it is set."
    ),
]


def label(
    run: RunFolder,
    endpoint: Address = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="NAME", help="The model's name at the endpoint.")
    ] = None,
    given: Given = None,
    features: options.RecordedFeatures = None,
    limit: options.MostFeatures = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=f"The file of labels. Default: {ASKED} in the run's folder."),
    ] = None,
    key_variable: KeyVariable = None,
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
        asking = {
            "--endpoint": endpoint, "--model": model, "--features": features, "--limit": limit, "--out": out,
            "--key-variable": key_variable,
        }  # fmt: skip
        _take(run, given, [name for name, value in asking.items() if value is not None], as_json)
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


def _take(run: Path, given: Path, asking: Sequence[str], as_json: bool) -> None:
    """Takes labels of files; ``asking`` are options that have no meaning then."""
    if asking:
        raise MechstudyError(
            f"labels are either asked for or taken from files: {', '.join(asking)} beside --from",
            fix="--endpoint with --model, or --from alone",
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
