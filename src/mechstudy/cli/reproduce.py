"""`reproduce`: what a number of the report is, and how it is made again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechstudy.cli.options import Device, Json, Out, Sets, StudyFile, guarded, overrides

if TYPE_CHECKING:
    from mechstudy.archive.reproduce import Again, Found

_LONGEST = 1500  # characters of a value that are printed
_MOST = 20  # differences that are printed


@guarded
def reproduce(
    study: StudyFile,
    number: Annotated[
        str,
        typer.Argument(
            metavar="NUMBER", help="The handle beside a number of the report, or an address as this command prints it."
        ),
    ],
    run: Annotated[bool, typer.Option("--run", help="Make it again in a fresh folder, and compare.")] = False,
    from_inputs: Annotated[
        bool, typer.Option("--from-inputs", help="With --run: its own unit alone, from the run's inputs.")
    ] = False,
    again_in: Annotated[
        Path | None, typer.Option("--again-in", metavar="DIR", help="With --run: the fresh folder.")
    ] = None,
    device: Device = None,
    as_json: Json = False,
    sets: Sets = None,
    out: Out = None,
) -> None:
    """Lead a number of the report back to what made it, and print the commands that make it again.

    Its artifact, file and place in it, checksums, inputs, seeds, processes and jobs, versions, machine. With --run it
    is made again and compared. Exits with 2 where the bytes are not as the manifest says, or the value differs.

    [dim]mechstudy reproduce study.yaml k3m7qab --run[/]
    """
    from mechstudy.archive.reproduce import find, record, run_again
    from mechstudy.cli.show import print_json
    from mechstudy.core.progress import Progress
    from mechstudy.runner.study_run import open_study

    opened = open_study(study, overrides(sets), out=out, fetch=run, say=_say)
    found = find(opened, number)
    told = record(opened, found)
    again = None
    if not as_json:
        _print(told)
    if run:
        again = run_again(
            opened, found, out=again_in, from_inputs=from_inputs, device=device, progress=Progress()
        )  # fmt: skip
        told["again"] = {"folder": str(again.folder), "equal": again.equal, "value": again.value,
                         "differing": again.differing, "files": again.files, "unlike": again.unlike}  # fmt: skip
    if as_json:
        print_json(told)
    elif again is not None:
        _print_again(found, again)
    if found.problems or (again is not None and not again.equal):
        raise typer.Exit(2)


def _print(told: dict[str, Any]) -> None:
    value = json.dumps(told["value"])
    print(f"{told['handle']}  {told['address']}")
    print(f"value:     {value if len(value) <= _LONGEST else value[:_LONGEST] + ' ...'}")
    print(f"artifact:  {told['artifact']} (id {told['id']})")
    state = "\n           ".join(["NOT as the manifest says:", *told["problems"]])
    print(f"bytes:     {state if told['problems'] else 'as the manifest says, sha256 ' + str(told['sha256'])}")
    for label, id in told["inputs"].items():
        print(f"input:     {label} {id[:12]}")
    seeds = {**(told["seeds"].get("spec") or {})}
    print(f"seeds:     {', '.join(f'{name} {seed}' for name, seed in seeds.items()) or 'none of its own'}")
    for process in told["processes"]:
        slurm = f", job {process['slurm']}" if process.get("slurm") else ""
        print(f"made:      {process.get('started')} on {process.get('host')}{slurm}")
    for row in told["accounting"]:
        print(f"accounted: job {row['job']} {row['state']}, {row['seconds']:.0f} s on {row['node'] or 'a node'}")
    git = told["git"] or {}
    dirty = ", with changes that are in no commit" if git.get("dirty") else ""
    print(f"code:      mechstudy {told['mechstudy']}, git {git.get('commit') or 'unknown'}{dirty}")
    print(f"with:      Python {told['python']}, {', '.join(f'{n} {v}' for n, v in told['packages'].items())}")
    print(f"on:        {(told['machine']['cpu'] or {}).get('model')}, {told['runtime']}")
    print("\nto make it again:")
    for line in told["commands"]:
        print(f"  {line}")


def _print_again(found: Found, again: Again) -> None:
    print(f"\nmade again in {again.folder}")
    if again.equal:
        print(
            "equal" + (f"; these files have other bytes: {', '.join(again.files)}" if again.files else ", to the byte")
        )
        return
    for reason in again.unlike:
        print(f"need not be equal: {reason}")
    print("DIFFERS" + (f" (also these files: {', '.join(again.files)})" if again.files else ""))
    for pointer, before, after in again.differing[:_MOST]:
        print(f"  {pointer or 'value'}: {before} before, {after} now{_by(before, after)}")
    if len(again.differing) > _MOST:
        print(f"  and {len(again.differing) - _MOST} more")


def _by(before: Any, after: Any) -> str:
    """By how much, where both are numbers."""
    if isinstance(before, bool) or isinstance(after, bool):
        return ""
    if not isinstance(before, int | float) or not isinstance(after, int | float):
        return ""
    share = f", {abs(after - before) / abs(before):.2g} of it" if before else ""
    return f", by {after - before:.4g}{share}"


def add_to(app: typer.Typer) -> None:
    """Adds the command to the app."""
    app.command(rich_help_panel="Keep and let go")(reproduce)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
