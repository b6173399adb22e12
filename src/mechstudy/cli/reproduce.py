"""`reproduce`: how a number of the report was made, and how to make it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mechstudy import archive, planning
from mechstudy.cli.options import Device, Json, Out, Sets, StudyFile, overrides, say
from mechstudy.cli.show import print_json
from mechstudy.core.progress import Progress

_LONGEST = 1500  # characters of a value that are printed
_MOST = 20  # differences that are printed


def reproduce(
    study: StudyFile,
    number: Annotated[
        str,
        typer.Argument(
            metavar="NUMBER", help="The handle beside a number of the report, or an address as this command prints it."
        ),
    ],
    run: Annotated[bool, typer.Option("--run", help="Make it again in a new folder, and compare.")] = False,
    from_inputs: Annotated[
        bool, typer.Option("--from-inputs", help="With --run: only its own unit, from the run's inputs.")
    ] = False,
    again_in: Annotated[
        Path | None, typer.Option("--again-in", metavar="DIR", help="With --run: the new folder.")
    ] = None,
    device: Device = None,
    as_json: Json = False,
    sets: Sets = None,
    out: Out = None,
) -> None:
    """Show how a number of the report was made, and print the commands that make it again.

    Its artifact, file and place in it, checksums, inputs, seeds, processes and jobs, versions, machine. With --run it
    is made again and compared. Exits with 2 if the bytes are not those of the manifest, or the value differs.

    [dim]mechstudy reproduce study.yaml k3m7qab --run[/]
    """
    opened = planning.open_study(study, overrides(sets), out=out, fetch=run, say=say)
    located = archive.find_number(opened, number)
    facts = archive.describe_number(opened, located)
    if not as_json:
        _print(facts)
    again = None
    if run:
        again = archive.run_again(
            opened, located, out=again_in, from_inputs=from_inputs, device=device, progress=Progress()
        )
        names = ("equal", "value", "differing", "files", "unlike")
        facts["again"] = {"folder": str(again.folder), **{name: getattr(again, name) for name in names}}
    if as_json:
        print_json(facts)
    elif again is not None:
        _print_comparison(again)
    if located.problems or (again is not None and not again.equal):
        raise typer.Exit(2)


def _print(facts: dict[str, Any]) -> None:
    value, git, problems = json.dumps(facts["value"]), facts["git"] or {}, facts["problems"]
    print(f"{facts['handle']}  {facts['address']}")
    print(f"value:     {value if len(value) <= _LONGEST else value[:_LONGEST] + ' ...'}")
    print(f"artifact:  {facts['artifact']} (id {facts['id']})")
    state = "\n           ".join(["NOT as the manifest says:", *problems])
    print(f"bytes:     {state if problems else 'as the manifest says, sha256 ' + str(facts['sha256'])}")
    for label, id in facts["inputs"].items():
        print(f"input:     {label} {id[:12]}")
    seeds = (facts["seeds"].get("spec") or {}).items()
    print(f"seeds:     {', '.join(f'{name} {seed}' for name, seed in seeds) or 'none of its own'}")
    for process in facts["processes"]:
        job = f", job {process['slurm']}" if process.get("slurm") else ""
        print(f"made:      {process.get('started')} on {process.get('host')}{job}")
    for row in facts["accounting"]:
        print(f"accounted: job {row['job']} {row['state']}, {row['seconds']:.0f} s on {row['node'] or 'a node'}")
    dirty = ", with uncommitted changes" if git.get("dirty") else ""
    print(f"code:      mechstudy {facts['mechstudy']}, git {git.get('commit') or 'unknown'}{dirty}")
    print(f"with:      Python {facts['python']}, {', '.join(f'{n} {v}' for n, v in facts['packages'].items())}")
    print(f"on:        {(facts['machine']['cpu'] or {}).get('model')}, {facts['runtime']}")
    print("\nto make it again:")
    for line in facts["commands"]:
        print(f"  {line}")


def _print_comparison(again: archive.Rerun) -> None:
    print(f"\nmade again in {again.folder}")
    files = ", ".join(again.files)
    if again.equal:
        print(f"equal; these files have other bytes: {files}" if files else "equal, to the byte")
        return
    for reason in again.unlike:
        print(f"need not be equal: {reason}")
    print("DIFFERS" + (f" (also these files: {files})" if files else ""))
    for pointer, before, after in again.differing[:_MOST]:
        print(f"  {pointer or 'value'}: {before} before, {after} now{_by(before, after)}")
    if len(again.differing) > _MOST:
        print(f"  and {len(again.differing) - _MOST} more")


def _by(before: Any, after: Any) -> str:
    """The difference of two numbers, absolute and relative; empty for other values."""
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in (before, after)):
        return ""
    share = f", {abs(after - before) / abs(before):.2g} of it" if before else ""
    return f", by {after - before:.4g}{share}"
