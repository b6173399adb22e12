"""`bench`: measures dictionaries on synthetic data whose features are known."""

from __future__ import annotations

from typing import Annotated

import typer

from mechstudy import dictionaries
from mechstudy.cli.dictionary import agreement_lines
from mechstudy.cli.options import Json, guarded
from mechstudy.cli.show import console, print_json
from mechstudy.core.progress import Progress

CONTENDERS = ("topk", "batchtopk", "matryoshka", "jumprelu", "jumprelu-tanh", "gated", "relu", "relu-tanh")

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@app.callback()
def bench() -> None:
    """Measure dictionaries on synthetic data with known features."""


@app.command()
@guarded
def synthetic(
    architecture: Annotated[
        list[str] | None,
        typer.Option("--architecture", "-a", help=f"One of {', '.join(CONTENDERS)}; repeatable. Default: all."),
    ] = None,
    features: Annotated[int, typer.Option(min=2, help="Features of the data.")] = 512,
    width: Annotated[
        int | None, typer.Option(min=1, help="Features of each dictionary. Default: as many as the data has.")
    ] = None,
    d: Annotated[int, typer.Option(min=2, help="Coordinates; with fewer than features there is superposition.")] = 128,
    l0: Annotated[float, typer.Option(min=0.1, help="Active features of a row.")] = 12.0,
    k: Annotated[
        int | None, typer.Option(min=1, help="Active features of the dictionary. Default: the data's.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of 1,024 rows.")] = 2000,
    seeds: Annotated[int, typer.Option(min=1, help="Data sets, each with its own training seed.")] = 1,
    trainings: Annotated[
        int, typer.Option(min=1, help="Trainings per data set, from other initial weights: stability.")
    ] = 1,
    as_json: Json = False,
) -> None:
    """Train each architecture on synthetic data with known features and report how many it recovers.

    The data has superposition, a hierarchy of features and correlated firing. MCC: mean |cosine| of the best
    one-to-one matching of learned and true features. F1: learned features as detectors of the closest true feature.

    With several trainings, also their agreement: matched is the mean |cosine| of the best one-to-one matching of
    their directions.

    [dim]mechstudy bench synthetic -a batchtopk -a matryoshka --seeds 3 --trainings 2[/]
    """
    rows = dictionaries.synthetic(
        dictionaries.WorldConfig(n_features=features, d=d, l0=l0),
        architecture or (),
        k=k,
        width=width,
        steps=steps,
        seeds=range(seeds),
        trainings=trainings,
        progress=Progress(),
    )
    if as_json:
        print_json(list(rows))
        return
    out = console()
    columns = ("mcc", "f1", "uniqueness", "fvu", "l0", "dead_share", "shrinkage", "seconds")
    for number, row in enumerate(rows):  # the header only after the first row: errors print no header
        if number == 0:
            out.print(f"{'architecture':<15}{'seed':>5}" + "".join(f"{name:>12}" for name in columns))
        values = "".join(f"{row[name]:>12.3f}" for name in columns)
        out.print(f"{row['architecture']:<15}{row['seed']:>5}{values}")
        if "stability" in row:
            for line in agreement_lines(row["stability"]["mean"]):
                out.print(f"{'':<15}{line}")
