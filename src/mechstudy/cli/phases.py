"""One command per phase, generated from what the phase declares: it runs the phase's units and those they need."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from mechstudy import planning, runner
from mechstudy.cli import options
from mechstudy.cli.options import overrides, say
from mechstudy.cli.run import run_units
from mechstudy.core.errors import MechstudyError
from mechstudy.models.sites import parse_layers
from mechstudy.study.phases import registry
from mechstudy.study.phases.base import Command, Flag
from mechstudy.study.phases.train import TrainPhase
from mechstudy.study.study import load_study
from mechstudy.study.unit import Unit

_LAYERS = Flag("layers", str, "10-24, or 3,5,8-10, or all.", metavar="LAYERS")
_RESUME_FROM = Flag(
    "resume_from",
    Path,
    "A checkpoint file, or a folder with one, from which the one selected layer starts.",
    metavar="PATH",
)


def command(name: str) -> Callable[..., None]:
    """A command as a function for typer, with its own flags and the common ones as parameters."""
    command = next(phase.command for phase in registry.phases() if phase.command and phase.command.name == name)
    own = [flag for flag in command.flags if flag.name != _LAYERS.name]
    own = [*([_LAYERS] if command.by_layer else []), *own, *([_RESUME_FROM] if command.resumes_from else [])]
    parameters = {
        "study": (options.StudyFile, inspect.Parameter.empty),
        **{flag.name: (_option(flag), False if flag.kind is bool else None) for flag in own},
        "sets": (options.Sets, None),
        "out": (options.Out, None),
        "device": (options.Device, None),
        "threads": (options.Threads, None),
        **({"world_size": (options.WorldSize, None)} if command.shared else {}),
        "profile": (options.Profile, False),
        "memory_snapshot": (options.MemorySnapshot, False),
    }

    def run(**values: Any) -> None:
        raise typer.Exit(runner.led(lambda: _run(command, values)))

    keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # typer reads it
        [
            inspect.Parameter(name, keyword, default=default, annotation=kind)
            for name, (kind, default) in parameters.items()
        ]
    )
    run.__annotations__ = {name: kind for name, (kind, _) in parameters.items()}
    run.__name__, run.__doc__ = name, f"{registry.COMMANDS[name]}\n\n[dim]{command.example}[/]"
    return run


def _option(flag: Flag) -> Any:
    name = "--" + flag.name.replace("_", "-")
    kind, least = flag.kind if flag.kind is bool else flag.kind | None, 1 if flag.kind is int else None
    return Annotated[
        kind,
        typer.Option(name, min=least, metavar=flag.metavar, help=flag.help, rich_help_panel=options.PHASE_PANEL),
    ]


def _run(command: Command, values: Mapping[str, Any]) -> int:
    """Opens the study with the flags as overrides, and runs the phase's units of the selected layers."""
    file, out = values["study"], values["out"]
    changes = overrides(values["sets"], values["device"], values["threads"], values.get("world_size"))
    study, _ = load_study(file, changes)
    for flag in command.flags:
        if flag.overrides is not None and values.get(flag.name):
            changes += flag.overrides(study, values[flag.name])
    opened = planning.open_study(file, changes, out=out, fetch=True, say=say)
    units: Iterable[Unit] = opened.units
    if (layers := values.get(_LAYERS.name)) is not None:
        selected = parse_layers(layers, opened.shapes.n_layers)
        if not set(selected) <= {unit.layer for unit in opened.made_by(TrainPhase)}:
            changes.append(f'dictionaries.layers="{layers}"')
            opened = planning.open_study(file, changes, out=out, fetch=True, say=say)
        units = _of_layers(opened, selected)
    units = [unit for unit in units if unit.phase.command is not None and unit.phase.command.name == command.name]
    targets = [unit for unit in units if command.select(unit, values)]
    if not targets:
        because = opened.study.no_graphs
        if command.name == "train" and opened.study.dictionaries.published is not None:
            because = "dictionaries.from names published dictionaries, which `mechstudy run` judges and uses"
        raise MechstudyError(
            f"the study has nothing to {command.name}",
            where=str(file),
            facts={"because": because} if because else None,
            fix="`mechstudy plan` shows its units",
        )
    records = (values["profile"], values["memory_snapshot"])
    resume = _resumed(targets, values.get(_RESUME_FROM.name))
    return run_units(opened, [unit.name for unit in targets], records=records, resume=resume)


def _resumed(targets: Iterable[Unit], checkpoint: Path | None) -> dict[str, Path]:
    """The one selected unit, and the checkpoint it starts from."""
    if checkpoint is None:
        return {}
    names = [unit.name for unit in targets if unit.variant is None]
    if len(names) != 1:
        raise MechstudyError(
            f"--resume-from starts one dictionary, and {len(names)} are selected",
            facts={"selected": ", ".join(names)},
            fix="select one, for example --layers 12",
        )
    return {names[0]: runner.find_checkpoint(checkpoint)}


def _of_layers(opened: planning.OpenedStudy, layers: Iterable[int]) -> list[Unit]:
    """The units of these layers; a capture belongs to all of its layers."""
    selected = set(layers)
    return [unit for unit in opened.units if selected & ({unit.layer} | set(getattr(unit.spec, "layers", ())))]
