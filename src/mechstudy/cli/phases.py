"""One command per phase: it runs that phase's units and what they need, with the phase's own flags."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechstudy.cli.options import (
    PHASE_PANEL,
    Device,
    MemorySnapshot,
    Out,
    Profile,
    Sets,
    StudyFile,
    Threads,
    WorldSize,
    guarded,
    overrides,
)

if TYPE_CHECKING:
    from mechstudy.runner.study_run import OpenedStudy
    from mechstudy.study.study import Study
    from mechstudy.study.unit import Unit

Samples = Annotated[
    int | None,
    typer.Option("--n-samples", min=1, metavar="N", help="Prompts to use.", rich_help_panel=PHASE_PANEL),
]
Layers = Annotated[
    str | None,
    typer.Option(metavar="LAYERS", help="10-24, or 3,5,8-10, or all.", rich_help_panel=PHASE_PANEL),
]


@guarded
def prompts(
    study: StudyFile,
    n_samples: Samples = None,
    sets: Sets = None,
    out: Out = None,
    device: Device = None,
    threads: Threads = None,
    profile: Profile = False,
    memory_snapshot: MemorySnapshot = False,
) -> None:
    """Phase 0: contrastive prompt pairs of every behaviour, train and test.

    [dim]mechstudy prompts study.yaml --n-samples 50[/]
    """
    _run(
        "prompts",
        study,
        overrides(sets, device, threads),
        out,
        (profile, memory_snapshot),
        more=_prompts_used(n_samples),
    )


@guarded
def baseline(
    study: StudyFile,
    n_samples: Samples = None,
    sets: Sets = None,
    out: Out = None,
    device: Device = None,
    threads: Threads = None,
    profile: Profile = False,
    memory_snapshot: MemorySnapshot = False,
) -> None:
    """Phase 1: does the model show the behaviour? Accuracy, logit differences, and the gate.

    [dim]mechstudy baseline study.yaml --set baseline.min_accuracy=0.9[/]
    """
    _run(
        "baseline",
        study,
        overrides(sets, device, threads),
        out,
        (profile, memory_snapshot),
        more=_prompts_used(n_samples),
    )


@guarded
def capture(
    study: StudyFile,
    layers: Layers = None,
    n_samples: Samples = None,
    prompts: Annotated[
        bool, typer.Option("--prompts", help="Of the prompts alone, not of the corpus.", rich_help_panel=PHASE_PANEL)
    ] = False,
    sets: Sets = None,
    out: Out = None,
    device: Device = None,
    threads: Threads = None,
    world_size: WorldSize = None,
    profile: Profile = False,
    memory_snapshot: MemorySnapshot = False,
) -> None:
    """Phase 2: activations of the prompts and of the training corpus, to disk.

    [dim]mechstudy capture study.yaml --layers 10-24 --n-samples 40 --prompts[/]
    """

    def more(read: Study) -> list[str]:
        return [*_prompts_used(n_samples)(read), *([f'capture.layers="{layers}"'] if layers else [])]

    def chosen(unit: Unit) -> bool:
        return not prompts or "corpus" not in unit.inputs

    options = overrides(sets, device, threads, world_size)
    _run("capture", study, options, out, (profile, memory_snapshot), more=more, layers=layers, chosen=chosen)


@guarded
def train(
    study: StudyFile,
    layers: Layers = None,
    max_steps: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Training steps per dictionary.", rich_help_panel=PHASE_PANEL),
    ] = None,
    resume_from: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="A checkpoint file, or a folder with one, to start the one selected layer from.",
            rich_help_panel=PHASE_PANEL,
        ),
    ] = None,
    sets: Sets = None,
    out: Out = None,
    device: Device = None,
    threads: Threads = None,
    world_size: WorldSize = None,
    profile: Profile = False,
    memory_snapshot: MemorySnapshot = False,
) -> None:
    """Phase 3: one dictionary (SAE or transcoder) per layer, and its variants. Interrupted, it resumes by itself.

    [dim]mechstudy train study.yaml --layers 12 --max-steps 5000 --profile[/]
    """

    def more(_: Study) -> list[str]:
        return [f"dictionaries.training.steps={max_steps}"] if max_steps else []

    options = overrides(sets, device, threads, world_size)
    _run("train", study, options, out, (profile, memory_snapshot), more=more, layers=layers, resume_from=resume_from)


@guarded
def attribute(
    study: StudyFile,
    n_samples: Samples = None,
    sets: Sets = None,
    out: Out = None,
    device: Device = None,
    threads: Threads = None,
    world_size: WorldSize = None,
    profile: Profile = False,
    memory_snapshot: MemorySnapshot = False,
) -> None:
    """Phase 4: attribution graphs of every behaviour, per prompt and aggregated.

    [dim]mechstudy attribute study.yaml --n-samples 8[/]
    """

    def more(_: Study) -> list[str]:
        return [f"attribution.n_prompts={n_samples}"] if n_samples else []

    _run("attribute", study, overrides(sets, device, threads, world_size), out, (profile, memory_snapshot), more=more)


@guarded
def intervene(
    study: StudyFile,
    n_samples: Samples = None,
    sets: Sets = None,
    out: Out = None,
    device: Device = None,
    threads: Threads = None,
    profile: Profile = False,
    memory_snapshot: MemorySnapshot = False,
) -> None:
    """Phase 5: ablation, patching, resampling, steering and edges, on test prompts discovery has not seen.

    [dim]mechstudy intervene study.yaml --n-samples 50[/]
    """

    def more(_: Study) -> list[str]:
        return [f"interventions.n_samples={n_samples}"] if n_samples else []

    _run("intervene", study, overrides(sets, device, threads), out, (profile, memory_snapshot), more=more)


_PARTS = {"train": ("train", "variant")}  # what a command runs, where it is not the phase of its name alone

COMMANDS: tuple[Callable[..., None], ...] = (prompts, baseline, capture, train, attribute, intervene)


def add_to(app: typer.Typer) -> None:
    """Adds the commands to the app, in the order of the phases."""
    for command in COMMANDS:
        app.command(rich_help_panel="One phase, and what it needs")(command)


def _prompts_used(n_samples: int | None) -> Callable[[Study], list[str]]:
    """Overrides that give every behaviour so many prompts in each split."""

    def more(study: Study) -> list[str]:
        if n_samples is None:
            return []
        splits = ("n_train", "n_test")
        return [f"behaviours.{i}.{split}={n_samples}" for i in range(len(study.behaviours)) for split in splits]

    return more


def _run(
    phase: str,
    file: Path,
    given: Sequence[str],
    out: Path | None,
    records: tuple[bool, bool],
    *,
    more: Callable[[Study], list[str]],
    layers: str | None = None,
    resume_from: Path | None = None,
    chosen: Callable[[Unit], bool] = lambda _: True,
) -> None:
    """Runs the phase's units, in a process of torchrun's as one of several ranks."""
    from mechstudy.runner.processes.torchrun import led

    def work() -> int:
        return _run_units(phase, file, given, out, records, more, layers, resume_from, chosen)

    raise typer.Exit(led(work))


def _run_units(
    phase: str,
    file: Path,
    given: Sequence[str],
    out: Path | None,
    records: tuple[bool, bool],
    more: Callable[[Study], list[str]],
    layers: str | None,
    resume_from: Path | None,
    chosen: Callable[[Unit], bool],
) -> int:
    """Opens the study with the flags as overrides, and runs the phase's units (of the layers asked for)."""
    from mechstudy.cli.run import run_units, say
    from mechstudy.core.errors import MechstudyError
    from mechstudy.models.sites import parse_layers
    from mechstudy.runner.run_unit import find_checkpoint
    from mechstudy.runner.study_run import open_study
    from mechstudy.study.study import load_study

    study, _ = load_study(file, given)
    changes = [*given, *more(study)]
    opened = open_study(file, changes, out=out, fetch=True, say=say)
    units = opened.units
    if layers is not None:
        wanted = parse_layers(layers, opened.shapes.n_layers)
        if not set(wanted) <= _dictionary_layers(opened):
            opened = open_study(file, [*changes, f'dictionaries.layers="{layers}"'], out=out, fetch=True, say=say)
        units = _of_layers(opened, wanted)
    targets = [unit.name for unit in units if unit.phase in _PARTS.get(phase, (phase,)) and chosen(unit)]
    if not targets:
        raise MechstudyError(
            f"the study has nothing to {phase}",
            where=str(file),
            facts={"because": opened.study.no_graphs} if opened.study.no_graphs else None,
            fix="`mechstudy plan` shows its units",
        )
    resume = {}
    if resume_from is not None:
        own = [name for name in targets if name.startswith("train[")]
        if len(own) != 1:
            raise MechstudyError(
                f"--resume-from starts one dictionary, and {len(own)} are selected",
                facts={"selected": ", ".join(own)},
                fix="select one, for example --layers 12",
            )
        resume = {own[0]: find_checkpoint(resume_from)}
    return run_units(opened, targets, records=records, resume=resume)


def _dictionary_layers(opened: OpenedStudy) -> set[int]:
    return {int(unit.spec["layer"]) for unit in opened.units if unit.phase == "train"}


def _of_layers(opened: OpenedStudy, layers: Iterable[int]) -> list[Unit]:
    """The units of these layers; a capture is one of prompts, or of a group with any of the layers."""
    wanted = set(layers)

    def has(spec: dict) -> bool:
        return bool({spec["layer"]} & wanted if "layer" in spec else set(spec.get("layers", ())) & wanted)

    return [unit for unit in opened.units if has(dict(unit.spec))]
