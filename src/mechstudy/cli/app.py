"""The `mechstudy` app: every command in its panel of the help, imported when it is used."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperGroup

from mechstudy._version import __version__
from mechstudy.cli.options import guarded
from mechstudy.study.phases import registry

if TYPE_CHECKING:
    from typer._click import Command, Context

# Panel -> module.function of `mechstudy.cli` -> the first paragraph of its help.
PANELS: Mapping[str | None, Mapping[str, str]] = {
    "One prompt": {
        "graph.graph": "Explain one prompt: its attribution graph as a page of one file, in seconds.",
        "steer.steer": "Steer features while the model continues a prompt, and show both texts side by side.",
        "feature.feature": "Show one feature: label, activations, the tokens it promotes and suppresses, text on which "
        "it fires, circuits.",
        "patch.patch": "Find where the information is: patch the corrupted prompt into the clean one, at every layer "
        "and token.",
        "view.view": "Open a graph that is there already, also one of another tool, as a page of one file.",
        "compare.compare": "Compare two attribution graphs: what both have, what one has alone, and what differs most.",
    },
    "Study": {
        "demo.demo": "Run the demo, or resume it: a whole study of SmolLM2-135M-Instruct, from nothing to a report.",
        "init.init": "Write a commented [cyan]study.yaml[/] to start from. Never overwrites one.",
        "plan.plan": "Show what the study will need: FLOPs, time, memory, disk, GPU-hours, per unit, per phase and "
        "in total.",
        "run.run": "Run the study, or resume it: only what is missing runs.",
    },
    "Results and status": {
        "run.status": "Show every unit's state, from the run's files and Slurm's queue, also while the study runs.",
        "run.report": "Rebuild the report from the finished units, and print its path. Runs nothing else.",
        "serve.serve": "Serve a run's report with its model: steer, explain other prompts, measure what is pinned in a "
        "graph.",
        "label.label": "Give a run's features labels: ask a model behind an OpenAI-compatible endpoint, or take those "
        "of others.",
        "export.export": "Write the features of a run's graphs for other tools: delphi or Neuronpedia.",
        "cost.cost": "Show what the study has taken so far beside the plan, phase by phase.",
        "doctor.usage": "Show each phase's use of CPU, memory, disk and GPU beside the expected range.",
        "doctor.doctor": "Check this machine, or a model; or, given a study, show what slowed its run down and the "
        "field to change.",
    },
    "Single phases, with the units they need": {f"phases.{name}": line for name, line in registry.COMMANDS.items()},
    "Slurm": {
        "slurm.submit": "Submit the whole study at once: an array per phase and behaviour, each waiting for those it "
        "needs.",
        "slurm.resume": "Submit units that are neither done nor queued: after a failure, a cancel, a full quota, or a "
        "lost job.",
        "slurm.why": "Show why a unit waits or failed, the end of its log, and what to do next.",
        "slurm.logs": "Print the output of a unit's jobs, oldest first.",
        "slurm.cancel": "Cancel a study's jobs, or those of some units. What they have saved is kept.",
    },
    "Archives and reproduction": {
        "maintenance.archive": "Pack a run into one verified file.",
        "maintenance.restore": "Unpack an archive into a run's folder.",
        "maintenance.clean": "List what can be rebuilt, its size, and how long rebuilding takes; with --yes, delete "
        "it.",
        "reproduce.reproduce": "Show how a number of the report was made, and print the commands that make it again.",
    },
    "Maintenance": {
        "maintenance.validate": "Test this machine before a long run: memory, speed, convergence, and pilots that "
        "calibrate `plan`.",
        "maintenance.verify": "Check every byte of every artifact against its checksum.",
        "maintenance.corpus": "Rebuild the bundled corpus: text sampled from the quickstart model itself.",
        "dictionary.dictionary": "Show, compare, push and pull dictionaries, in the formats of SAELens, sparsify, "
        "circuit-tracer and others.",
        "bench.bench": "Measure dictionaries on known features, and attribution methods on known circuits.",
    },
    None: {"slurm.unit": "Called by a job's script: runs one submitted unit, and decides what follows."},  # hidden
}
_MODULES = {name: module for panel in PANELS.values() for module, name in (place.split(".") for place in panel)}


_IN_GROUPS = {"show": "dictionary", "push": "dictionary", "pull": "dictionary"}


class LazyGroup(TyperGroup):
    """Lists commands without importing them; the one that is run, completed or asked for its help is imported."""

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command | None, list[str]]:
        """The command that the arguments name, its name, and the other arguments."""
        if args and args[0] not in self.commands and (parent := _IN_GROUPS.get(args[0])):
            ctx.fail(f"No such command '{args[0]}'. Did you mean `mechstudy {parent} {args[0]}`?")
        name, listed, rest = super().resolve_command(ctx, args)
        return name, None if listed is None or name is None else command(name), rest


app = typer.Typer(
    name="mechstudy",
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    help=(
        "From a behaviour of an open language model to a causally verified circuit.\n\n"
        '[cyan]mechstudy graph "The keys to the cabinet"[/] explains one prompt, in seconds and without a study.\n\n'
        "[cyan]mechstudy init[/] writes a commented study.yaml, [cyan]mechstudy plan study.yaml[/] shows what it "
        "needs (shapes, memory, disk, time), [cyan]mechstudy run study.yaml[/] runs it, or resumes it.\n\n"
        "The study file specifies everything that is computed. Running the same command again repeats nothing; "
        "after a change to the study, only what depends on the change runs."
    ),
)


def command(name: str) -> Command:
    """A command or group of commands, imported from its module."""
    module = import_module(f"mechstudy.cli.{_MODULES[name]}")
    made = module.command(name) if name in registry.COMMANDS else getattr(module, name)
    if not isinstance(made, typer.Typer):
        function, made = made, typer.Typer(rich_markup_mode="rich", add_completion=False)
        made.command()(guarded(function))
    listed = typer.main.get_command(made)
    for one in (listed, *getattr(listed, "commands", {}).values()):
        one.help = _joined(inspect.cleandoc(one.help or ""))
    return listed


def _joined(text: str) -> str:
    """Help whose paragraphs are one line each, so that a terminal of any width breaks them; examples keep their lines.

    Typer does that for the first paragraph alone.
    """
    paragraphs = (part if part.startswith(("[", "- ")) else " ".join(part.split()) for part in text.split("\n\n"))
    return "\n\n".join(paragraphs)


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


def _listed() -> None:
    """Stands in for every command until it is imported."""


for _panel, _commands in PANELS.items():
    for _place, _help in _commands.items():
        app.command(_place.split(".")[1], help=_help, rich_help_panel=_panel, hidden=_panel is None)(_listed)
