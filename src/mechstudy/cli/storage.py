"""`archive`, `restore` and `clean`: what of a run is stored, and what is deleted."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.text import Text

from mechstudy import archive as archives
from mechstudy import planning
from mechstudy.cli.options import Json, Out, Sets, StudyFile, overrides, say
from mechstudy.cli.show import console, print_json, table, time_text
from mechstudy.core.progress import Progress, duration
from mechstudy.core.sizes import human


def archive(
    study: StudyFile,
    file: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file. Default: <study>.tar.gz in the current folder.")
    ] = None,
    compress: Annotated[
        Literal["none", "gzip", "zstd"], typer.Option(help="zstd needs the package zstandard.")
    ] = "gzip",
    everything: Annotated[bool, typer.Option("--all", help="Also payload that can be rebuilt.")] = False,
    sources: Annotated[
        bool, typer.Option("--sources/--without-sources", help="The prompts and texts that the study reads.")
    ] = True,
    sets: Sets = None,
    out: Out = None,
) -> None:
    """Pack a run into one verified file.

    All manifests, the payload with retention `keep` (storage.retain in the study), the study and the files it reads,
    and the packages' versions. The same run gives the same bytes. The file is read back before it gets its name, and
    never overwrites another.

    [dim]mechstudy archive study.yaml -o capitals-2026.tar.gz[/]
    """
    opened = planning.open_study(study, overrides(sets), out=out, say=say)
    made = archives.archive_run(
        opened, file, compression=compress, everything=everything, sources=sources, progress=Progress()
    )
    units = [unit for unit in made.contents.units if unit.artifact is not None]
    whole = sum(unit.whole for unit in units)
    print(f"{made.path}: {human(made.size)}, {len(units)} artifacts, {whole} of them whole, every checksum read back")
    if made.left_out:
        print(f"left out: {human(made.left_out)} of payload that can be rebuilt (--all packs it too)")
    for note in made.contents.notes:
        print(f"note: {note}")
    print(f"sha256 {made.sha256}")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An archive made by `mechstudy archive`.")],
    out: Out = None,
) -> None:
    """Unpack an archive into a run's folder.

    Every checksum is verified before anything is published, and no file that differs is overwritten. Payload that
    was not packed is rebuilt by the next run that needs it.

    [dim]mechstudy restore capitals-2026.tar.gz --out runs/capitals[/]
    """
    restored = archives.restore_run(file, out, progress=Progress())
    print(f"{restored.folder}: {len(restored.published)} artifacts restored, {len(restored.present)} were there")
    for note in restored.contents.notes:
        print(f"note: {note}")
    print(f"next: {archives.study_command(restored)}")


def clean(
    study: StudyFile,
    really: Annotated[bool, typer.Option("--yes", help="Delete. Without it nothing is changed.")] = False,
    other_versions: Annotated[
        bool, typer.Option("--other-versions", help="Also artifacts of other versions of the study.")
    ] = False,
    elsewhere: Annotated[
        bool, typer.Option("--made-elsewhere", help="Also artifacts of other machines: rebuilt bytes may differ.")
    ] = False,
    as_json: Json = False,
    sets: Sets = None,
    out: Out = None,
) -> None:
    """List what can be rebuilt, its size, and how long rebuilding takes; with --yes, delete it.

    Payload that every unit has read (see storage.retain), unfinished work that the study cannot resume, damaged
    artifacts, profiles. What cannot be rebuilt is kept: its text is gone or has changed, an input is missing, or it
    was made by another version of the code or on another machine.

    [dim]mechstudy clean study.yaml --yes[/]
    """
    opened = planning.open_study(study, overrides(sets), out=out, say=say)
    cleaned = archives.clean_run(opened, really=really, other_versions=other_versions, elsewhere=elsewhere)
    if as_json:
        print_json({"really": really, **asdict(cleaned)})
    else:
        _show(cleaned, really=really)
    if cleaned.failed:
        raise typer.Exit(2)


def _show(cleaned: archives.Cleaned, *, really: bool) -> None:
    deleted = cleaned.going
    if cleaned.entries:
        entries = table("~what", "~where", ">frees", ">to rebuild", "~kept because")
        for entry in [*deleted, *(entry for entry in cleaned.entries if entry.kept is not None)]:
            kept = Text(entry.kept or "")
            entries.add_row(Text(entry.what), Text(entry.name), human(entry.bytes), time_text(entry.seconds), kept)
        console().print(entries)
    for name, why in cleaned.failed:
        print(f"could not be deleted: {name}: {why}")
    seconds = sum(entry.seconds or 0.0 for entry in deleted)
    rebuilding = f"; rebuilding all of it takes {duration(seconds)}" if seconds else ""
    if really:
        print(f"{human(cleaned.freed)} freed{rebuilding}")
    elif deleted:
        print(f"{human(sum(entry.bytes for entry in deleted))} would be freed{rebuilding}. --yes deletes it")
    else:
        print("nothing to delete")
