"""`mechstudy bench`: what dictionaries can do where the truth is known."""

from __future__ import annotations

from typing import Annotated

import typer

from mechstudy.cli.options import Json, guarded

CONTENDERS = ("topk", "batchtopk", "matryoshka", "jumprelu", "jumprelu-tanh", "gated", "relu", "relu-tanh")

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@app.callback()
def bench() -> None:
    """Measure dictionaries where the truth is known."""


@app.command()
@guarded
def synthetic(
    architecture: Annotated[
        list[str] | None,
        typer.Option("--architecture", "-a", help=f"One of {', '.join(CONTENDERS)}; repeatable. Default: all."),
    ] = None,
    features: Annotated[int, typer.Option(min=2, help="Features of the world.")] = 512,
    width: Annotated[int | None, typer.Option(min=1, help="Latents; default: as many as features.")] = None,
    d: Annotated[int, typer.Option(min=2, help="Coordinates: fewer than features is superposition.")] = 128,
    l0: Annotated[float, typer.Option(min=0.1, help="Active features of a row.")] = 12.0,
    k: Annotated[int | None, typer.Option(min=1, help="Active latents asked for; default: the world's.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of 1,024 rows.")] = 2000,
    seeds: Annotated[int, typer.Option(min=1, help="Worlds, each with its own training seed.")] = 1,
    trainings: Annotated[int, typer.Option(min=1, help="Trainings per world, from other starts: stability.")] = 1,
    as_json: Json = False,
) -> None:
    """Train each architecture on a world with known features and say how many it found.

    Superposition, a hierarchy of features, correlated firing. MCC: mean |cosine| of the best one-to-one matching of
    latents and features. F1: latents as detectors of the feature they are closest to.

    With several trainings, also how alike they are: matched is the mean |cosine| of the best one-to-one matching of
    their directions.

    [dim]mechstudy bench synthetic -a batchtopk -a matryoshka --seeds 3 --trainings 2[/]
    """
    from mechstudy.cli.dictionary import agreement_lines
    from mechstudy.cli.show import console, print_json
    from mechstudy.core.progress import Progress
    from mechstudy.dictionaries.evaluation.bench import synthetic as run
    from mechstudy.dictionaries.evaluation.synthetic import WorldConfig

    world = WorldConfig(n_features=features, d=d, l0=l0)
    rows = run(
        world, architecture or (), k=k, width=width, steps=steps, seeds=range(seeds), trainings=trainings,
        progress=Progress(),
    )  # fmt: skip
    if as_json:
        print_json(list(rows))
        return
    out = console()
    columns = ("mcc", "f1", "uniqueness", "fvu", "l0", "dead_share", "shrinkage", "seconds")
    for number, row in enumerate(rows):  # a mistake shows with the first of them
        if number == 0:
            out.print(f"{'architecture':<15}{'seed':>5}" + "".join(f"{name:>12}" for name in columns))
        values = "".join(f"{row[name]:>12.3f}" for name in columns)
        out.print(f"{row['architecture']:<15}{row['seed']:>5}{values}")
        if "stability" in row:
            for line in agreement_lines(row["stability"]["mean"]):
                out.print(f"{'':<15}{line}")
