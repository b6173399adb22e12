"""`archive`, `restore`, `clean`: what a run keeps, and what it lets go."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from mechstudy.cli.options import Json, Out, Sets, StudyFile, guarded, overrides

PANEL = "Keep and let go"


@guarded
def archive(
    study: StudyFile,
    file: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file. Default: <study>.tar.gz, here.")
    ] = None,
    compress: Annotated[
        Literal["none", "gzip", "zstd"], typer.Option(help="zstd needs the package zstandard.")
    ] = "gzip",
    everything: Annotated[bool, typer.Option("--all", help="Also payload that can be made again.")] = False,
    sources: Annotated[
        bool, typer.Option("--sources/--without-sources", help="The prompts and texts that the study reads.")
    ] = True,
    sets: Sets = None,
    out: Out = None,
) -> None:
    """Pack what is kept of a run into one verified file.

    The manifests of everything, the payload of what is kept (storage.retain in the study), the study and the files it
    reads, the packages' versions. The same run gives the same bytes. The file is read back before it gets its name,
    and never overwrites another.

    [dim]mechstudy archive study.yaml -o capitals-2026.tar.gz[/]
    """
    from mechstudy.archive.archive import archive as pack
    from mechstudy.core.progress import Progress
    from mechstudy.core.sizes import human
    from mechstudy.runner.study_run import open_study

    opened = open_study(study, overrides(sets), out=out, say=_say)
    made = pack(
        opened, file, compression=compress, everything=everything, sources=sources, progress=Progress()
    )  # fmt: skip
    units = [unit for unit in made.contents.units if unit.artifact is not None]
    whole = sum(unit.whole for unit in units)
    print(f"{made.path}: {human(made.size)}, {len(units)} artifacts, {whole} of them whole, every checksum read back")
    if made.left_out:
        print(f"not in it: {human(made.left_out)} of payload that can be made again (--all packs it too)")
    for note in made.contents.notes:
        print(f"note: {note}")
    print(f"sha256 {made.sha256}")


@guarded
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An archive, as `mechstudy archive` makes them.")],
    out: Out = None,
) -> None:
    """Bring an archive back into a run's folder.

    Every checksum is right before anything is published; nothing that is there and differs is overwritten. What was
    not packed is made again by the next run, where something needs it.

    [dim]mechstudy restore capitals-2026.tar.gz --out runs/capitals[/]
    """
    from mechstudy.archive.restore import restore as unpack
    from mechstudy.archive.restore import study_command
    from mechstudy.core.progress import Progress

    done = unpack(file, out, progress=Progress())
    print(f"{done.folder}: {len(done.published)} artifacts restored, {len(done.present)} were there")
    for note in done.contents.notes:
        print(f"note: {note}")
    print(f"go on: {study_command(done)}")


@guarded
def clean(
    study: StudyFile,
    really: Annotated[bool, typer.Option("--yes", help="Delete. Without it nothing is changed.")] = False,
    other_versions: Annotated[
        bool, typer.Option("--other-versions", help="Also artifacts that the study as it is now has not made.")
    ] = False,
    elsewhere: Annotated[
        bool, typer.Option("--made-elsewhere", help="Also what another machine made: bytes may then differ.")
    ] = False,
    as_json: Json = False,
    sets: Sets = None,
    out: Out = None,
) -> None:
    """Show what can be made again, how much room it takes and how long making it again took; with --yes, delete it.

    Payload that every unit has read (storage.retain says which), unfinished work that the study cannot resume,
    damaged artifacts, profiles. What cannot be made again stays: text that is gone or has changed, inputs that are
    missing, another version of the code, another machine.

    [dim]mechstudy clean study.yaml --yes[/]
    """
    from dataclasses import asdict

    from mechstudy.archive.clean import clean as tidy
    from mechstudy.cli.show import print_json
    from mechstudy.cli.storage_table import show_clean
    from mechstudy.runner.study_run import open_study

    opened = open_study(study, overrides(sets), out=out, say=_say)
    found = tidy(opened, really=really, other_versions=other_versions, elsewhere=elsewhere)
    if as_json:
        print_json({"really": really, **asdict(found)})
    else:
        show_clean(found, really=really)
    if found.failed:
        raise typer.Exit(2)


def add_to(app: typer.Typer) -> None:
    """Adds the commands to the app."""
    for command in (archive, restore, clean):
        app.command(rich_help_panel=PANEL)(command)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
