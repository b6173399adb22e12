"""`mechstudy plan` and `cost`: what a study will take, and what it took."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mechstudy.cli.options import Device, Json, Out, Sets, StudyFile, Threads, guarded, overrides

if TYPE_CHECKING:
    from mechstudy.planning.hardware import Hardware
    from mechstudy.runner.study_run import OpenedStudy
    from mechstudy.study.slurm_config import SlurmConfig

HardwareName = Annotated[
    str | None,
    typer.Option(
        "--hardware",
        metavar="NAME",
        help="a100-40gb, a100-80gb, h100, or your own YAML file. Default: compute.hardware, else this machine.",
    ),
]


def _list_models(asked: bool) -> None:
    if asked:
        from mechstudy.models.known import known_models

        print("\n".join(f"hf:{name}" for name in known_models()))
        raise typer.Exit


Models = Annotated[
    bool,
    typer.Option(
        "--models",
        callback=_list_models,
        is_eager=True,
        help="List the models that can be planned without having been fetched, and exit.",
    ),
]


def add_plan(app: typer.Typer, panel: str) -> None:
    """Adds `plan`, which stands before `run` in the help."""
    app.command(rich_help_panel=panel)(guarded(plan))


def add_to(app: typer.Typer, panel: str) -> None:
    """Adds `cost`."""
    app.command(rich_help_panel=panel)(guarded(cost))


def plan(
    study: StudyFile,
    sets: Sets = None,
    out: Out = None,
    device: Device = None,
    threads: Threads = None,
    hardware: HardwareName = None,
    as_json: Json = False,
    models: Models = False,
) -> None:
    """Show what the study will take: FLOPs, time, memory, disk, GPU-hours, per unit, per phase and in all.

    Loads no weights; well-known models need not even be fetched. `mechstudy validate` makes the numbers those of this
    machine. Exits with 2 when something cannot fit, with the change that would make it fit.

    [dim]mechstudy plan study.yaml --hardware a100-80gb --set dictionaries.layers=0-29[/]
    """
    from mechstudy.cli.plan_table import show_plan
    from mechstudy.cli.show import print_json
    from mechstudy.planning.fit import refusals
    from mechstudy.planning.plan import make_plan
    from mechstudy.runner.study_run import open_study

    opened = open_study(study, overrides(sets, device, threads), out=out, say=_say)
    slurm = _slurm(opened)
    made = make_plan(opened.run(), hardware=_hardware(opened, hardware), slurm=slurm)
    made.notes.extend(opened.notes)
    if opened.model is None:
        made.notes.append("the model's weights are not here yet; `mechstudy run` fetches them")
    if as_json:
        print_json(made.as_json())
    else:
        show_plan(made)
    errors = refusals(made, opened, slurm, disk_here=made.hardware.is_here)
    for error in errors[:-1]:
        print(f"error: {error}\n", file=sys.stderr)
    if errors:
        raise errors[-1]


def cost(
    study: StudyFile,
    sets: Sets = None,
    out: Out = None,
    hardware: HardwareName = None,
    as_json: Json = False,
) -> None:
    """Show what the study has taken so far, beside what was planned, phase by phase.

    From the records of what is finished, and from Slurm's accounting where jobs were submitted: also jobs that were
    put back into the queue, or lost. Without --set, a study that was submitted is shown with the overrides it was
    submitted with.

    [dim]mechstudy cost study.yaml --json[/]
    """
    from mechstudy.cli.cost_table import show_cost
    from mechstudy.cli.show import print_json
    from mechstudy.cli.slurm import as_submitted
    from mechstudy.core.errors import MechstudyError
    from mechstudy.runner.cost import cost_of

    opened = as_submitted(study, overrides(sets), out)
    found = cost_of(opened.run(), _hardware(opened, hardware))
    if not as_json and not found.total.done and not (found.total.jobs and found.total.jobs.jobs):
        nothing = "nothing of this study has run yet"
        raise MechstudyError(nothing, where=str(opened.folder), fix=f"mechstudy run {opened.file}")
    if as_json:
        print_json(found.as_json())
    else:
        show_cost(found, opened.folder)


def _hardware(opened: OpenedStudy, name: str | None) -> Hardware | None:
    """As asked for, else as the study says; None: this machine."""
    from mechstudy.planning.hardware import asked_hardware

    return asked_hardware(opened.study.compute, name)


def _slurm(opened: OpenedStudy) -> SlurmConfig | None:
    """What jobs ask for, with the profile's values; None where nothing is said of Slurm."""
    from mechstudy.runner.slurm.profiles import resolved
    from mechstudy.study.slurm_config import SlurmConfig

    compute = opened.study.compute
    if compute.profile is None and compute.slurm == SlurmConfig():
        return None
    return resolved(compute, opened.lines)[0]


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
