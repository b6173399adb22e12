"""`plan` and `cost`: what a study will need, and what it took."""

from __future__ import annotations

from typing import Annotated

import typer

from mechstudy import planning, runner
from mechstudy.cli.cost_table import show_cost
from mechstudy.cli.options import Device, Json, Out, Sets, StudyFile, Threads, overrides, say
from mechstudy.cli.plan_table import show_plan
from mechstudy.cli.run import nothing_has_run
from mechstudy.cli.show import print_json
from mechstudy.cli.slurm import as_submitted
from mechstudy.models.known import known_models
from mechstudy.runner import slurm
from mechstudy.study.slurm_config import SlurmConfig

HardwareName = Annotated[
    str | None,
    typer.Option(
        "--hardware",
        metavar="NAME",
        help="a100-40gb, a100-80gb, h100, or your own YAML file. Default: compute.hardware, else this machine.",
    ),
]


def _list_models(wanted: bool) -> None:
    if wanted:
        print("\n".join(f"hf:{name}" for name in known_models()))
        raise typer.Exit


Models = Annotated[
    bool,
    typer.Option(
        "--models",
        callback=_list_models,
        is_eager=True,
        help="List the models that can be planned before they are fetched, and exit.",
    ),
]


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
    """Show what the study will need: FLOPs, time, memory, disk, GPU-hours, per unit, per phase and in total.

    Loads no weights; well-known models need not even be fetched. `mechstudy validate` calibrates the numbers on this
    machine. Exits with 2 when something cannot fit, with the change that would make it fit.

    [dim]mechstudy plan study.yaml --hardware a100-80gb --set dictionaries.layers=0-29[/]
    """
    opened = planning.open_study(study, overrides(sets, device, threads), out=out, say=say)
    jobs = _slurm(opened)
    machine = planning.asked_hardware(opened.study.compute, hardware)
    made = planning.make_plan(opened.evaluate(), opened.folder, opened.options, hardware=machine, slurm=jobs)
    made.notes.extend(opened.notes)
    if opened.model is None:
        made.notes.append("the model's weights are not here yet; `mechstudy run` fetches them")
    if as_json:
        print_json(made.as_json())
    else:
        show_plan(made)
    errors = planning.refusals(made, opened, jobs, disk_here=made.hardware.is_here)
    for error in errors[:-1]:
        say(f"error: {error}\n")
    if errors:
        raise errors[-1]


def cost(
    study: StudyFile,
    sets: Sets = None,
    out: Out = None,
    hardware: HardwareName = None,
    as_json: Json = False,
) -> None:
    """Show what the study has taken so far beside the plan, phase by phase.

    From the records of finished units, and for submitted studies from Slurm's accounting, which includes jobs that
    were requeued or lost. Without --set, a submitted study is shown with the overrides of its submission.

    [dim]mechstudy cost study.yaml --json[/]
    """
    opened = as_submitted(study, overrides(sets), out)
    spent = runner.cost_of(runner.run_of(opened), planning.asked_hardware(opened.study.compute, hardware))
    if as_json:
        print_json(spent.as_json())
    elif spent.total.done or (spent.total.jobs and spent.total.jobs.jobs):
        show_cost(spent, opened.folder)
    else:
        raise nothing_has_run(opened.folder, opened.file)


def _slurm(opened: planning.OpenedStudy) -> SlurmConfig | None:
    """What jobs ask for, with the profile's values; None for a study without Slurm settings."""
    compute = opened.study.compute
    if compute.profile is None and compute.slurm == SlurmConfig():
        return None
    return slurm.resolved(compute, opened.lines)[0]
