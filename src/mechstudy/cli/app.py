"""The `mechstudy` app: every command in its panel of the help."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import typer

from mechstudy._version import __version__
from mechstudy.cli import bench, budget, dictionary, doctor, init, maintenance, phases, reproduce, run, slurm, storage
from mechstudy.cli.options import guarded

_MAINTENANCE = "Maintenance"
_PANELS: Mapping[str, Iterable[Callable[..., Any]]] = {
    "Study": (init.init, budget.plan, run.run),
    "Results and status": (run.status, run.report, budget.cost, doctor.usage, doctor.doctor),
    "Single phases, with the units they need": phases.commands(),
    "Slurm": (slurm.submit, slurm.resume, slurm.why, slurm.logs, slurm.cancel),
    "Archives and reproduction": (storage.archive, storage.restore, storage.clean, reproduce.reproduce),
    _MAINTENANCE: (maintenance.validate, maintenance.verify, maintenance.corpus),
}

app = typer.Typer(
    name="mechstudy",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    help=(
        "From a behaviour of an open language model to a causally verified circuit.\n\n"
        "[cyan]mechstudy init[/] writes a commented study.yaml, [cyan]mechstudy plan study.yaml[/] shows what it "
        "needs (shapes, memory, disk, time), [cyan]mechstudy run study.yaml[/] runs it, or resumes it.\n\n"
        "The study file specifies everything that is computed. Running the same command again repeats nothing; "
        "after a change to the study, only what depends on the change runs."
    ),
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"mechstudy {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


for _panel, _commands in _PANELS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(guarded(_command))
app.command(hidden=True)(guarded(slurm.unit))
app.add_typer(dictionary.app, name="dictionary", rich_help_panel=_MAINTENANCE)
app.add_typer(bench.app, name="bench", rich_help_panel=_MAINTENANCE)
