"""`export`: features of a run in the files of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from mechstudy import api
from mechstudy.cli import one_prompt, options
from mechstudy.core.progress import Progress

if TYPE_CHECKING:
    from mechstudy.api.feature_export import ExportFormat

_NEEDS_MODEL = "delphi"


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, such as runs/demo.")],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            metavar="FORMAT",
            help="delphi: activations and explanations for EleutherAI's library; neuronpedia: what an instance of it "
            "imports.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="A new or empty folder.")],
    features: options.RecordedFeatures = None,
    limit: options.MostFeatures = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The source set at Neuronpedia. Default: the study's name.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="SOURCE",
            help="For delphi: where the run's model is. Default: where the run had it.",
        ),
    ] = None,
    device: one_prompt.Device = "auto",
) -> None:
    """Write the features of a run's graphs for other tools: delphi or Neuronpedia.

    delphi gets all activations on the text that the run searched, which are computed again with the model. Explanations
    are the labels of `mechstudy label`, else the rules that are claimed.

    [dim]mechstudy export runs/demo --format neuronpedia --out for-neuronpedia[/]
    """  # fmt: skip
    opened = api.open_run(run)
    made = api.export_features(
        opened,
        out,
        cast("ExportFormat", format),
        model=model or (one_prompt.source_of(str(run)) if format == _NEEDS_MODEL else None),
        device=device,
        features=features,
        limit=limit,
        name=name,
        progress=Progress(),
    )
    for one in made:
        print(one)
    print(f"written: {out}")
