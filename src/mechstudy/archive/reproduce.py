"""Reproduction of a number of the report: its artifact, the commands that make it, and a rerun with comparison."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import disk_errors, not_stale
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.machine.devices import resolve_device
from mechstudy.planning.opened_study import OpenedStudy
from mechstudy.report.data import FILES, LOGS, Address, addresses, at, content_of, differences, parse_address
from mechstudy.runner.recorded_options import AsMade, together, unlike
from mechstudy.runner.run import Run
from mechstudy.runner.slurm.accounting import accounting_of
from mechstudy.runner.study_run import execute, run_of
from mechstudy.store.artifacts import Artifact
from mechstudy.store.manifest import sha256_of
from mechstudy.store.provenance import package_index, sessions_of

_LARGEST = 256 << 20  # bytes of a file that is searched for a handle
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "numba", "polars")


@dataclass(frozen=True)
class ReportNumber:
    """A number or a group of numbers: its address, artifact and value, and faults of the artifact's bytes."""

    address: Address
    artifact: Artifact
    value: Any
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rerun:
    """A number made again in ``folder``: differences (pointer, before, after), and files with other bytes.

    ``unlike`` names units that could not run as before, so that numbers may differ.
    """

    folder: Path
    value: Any
    differing: list[tuple[str, Any, Any]]
    files: list[str]
    unlike: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether the value is the same."""
        return not self.differing


def find_number(opened: OpenedStudy, name: str) -> ReportNumber:
    """The number with a handle, or at an address (``train[3]/evaluation.json#/r2``).

    Raises:
        MechstudyError: the study has no such number, or its artifact is missing or cannot be read.
    """
    nodes = opened.evaluate().nodes
    artifacts = {unit: node.artifact for unit, node in nodes.items() if node.artifact is not None}
    wanted = parse_address(name)
    if wanted is not None:
        if (artifact := artifacts.get(wanted.unit)) is None:
            raise MechstudyError(f"there is no artifact of {wanted.unit}", facts={"there": ", ".join(artifacts)})
        return _read(artifact, wanted)
    for unit, artifact in artifacts.items():
        for file in FILES:
            entry = artifact.manifest["files"].get(file)
            if entry is None or entry["size"] > _LARGEST or not (artifact.path / file).is_file():
                continue
            with suppress(ValueError):
                content = content_of(file, not_stale((artifact.path / file).read_bytes))
                for address in addresses(unit, file, content):
                    if address.handle == name.lower():
                        return _read(artifact, address)
    raise MechstudyError(
        f"no number of this study has the handle {name}",
        where=str(opened.folder),
        fix="handles are printed beside the numbers of the report; give the same --set as for that run",
    )


def _read(artifact: Artifact, address: Address) -> ReportNumber:
    path = artifact.file(address.file)
    try:
        value = at(content_of(address.file, not_stale(path.read_bytes)), address.pointer)
    except KeyError:
        raise MechstudyError(f"there is nothing at {address.pointer}", where=str(path)) from None
    except ValueError as error:
        raise MechstudyError(f"cannot be read: {error}", where=str(path), fix="mechstudy verify") from error
    return ReportNumber(address, artifact, value, tuple(str(problem) for problem in artifact.verify()))


def describe_number(opened: OpenedStudy, number: ReportNumber) -> dict[str, Any]:
    """How a number was made, as plain data, and the commands that make it again."""
    manifest = number.artifact.manifest
    provenance = manifest.get("provenance") or {}
    return {
        "handle": number.address.handle,
        "address": str(number.address),
        "value": number.value,
        "artifact": number.artifact.name,
        "id": number.artifact.id,
        "sha256": manifest["files"].get(number.address.file, {}).get("sha256"),
        "problems": list(number.problems),
        "inputs": {label: entry["id"] for label, entry in manifest["inputs"].items()},
        "seeds": manifest.get("seeds") or {},
        "started": manifest.get("started"),
        "seconds": manifest.get("seconds"),
        "processes": sessions_of(manifest),
        "accounting": [vars(row) for row in accounting_of(opened.folder, number.artifact)],
        "git": provenance.get("git"),
        "mechstudy": provenance.get("mechstudy"),
        "python": provenance.get("python"),
        "packages": {name: v for name, v in (provenance.get("packages") or {}).items() if name in PACKAGES},
        "machine": {key: provenance.get(key) for key in ("hostname", "cpu", "gpu", "threads", "libraries", "modules")},
        "runtime": manifest.get("runtime") or {},
        "argv": provenance.get("argv"),
        "commands": commands(opened, number),
    }


def commands(opened: OpenedStudy, number: ReportNumber) -> list[str]:
    """Shell lines from a clean checkout to the artifact: the code, the environment, the units."""
    provenance = number.artifact.manifest.get("provenance") or {}
    lines = []
    git = provenance.get("git") or {}
    if git.get("commit"):
        lines.append(f"git checkout {git['commit']}")
    if git.get("dirty"):
        lines.append("# the code had uncommitted changes: the result may differ")
    for module in provenance.get("modules") or []:
        lines.append(f"module load {shlex.quote(str(module))}")
    lines.append("python3 -m venv .venv && . .venv/bin/activate")
    packages = provenance.get("packages") or {}
    pinned = [f"{name}=={packages[name]}" for name in PACKAGES if name in packages]
    index = package_index(packages)
    words = ["pip", "install", "-e", ".", *pinned, *(["--extra-index-url", index] if index else [])]
    lines.append(shlex.join(words))
    return [*lines, *_phase_commands(opened, number)]


def _phase_commands(opened: OpenedStudy, number: ReportNumber) -> list[str]:
    """Commands that run the artifact's unit and those it needs with the options recorded in their manifests."""
    run = run_of(opened, NullProgress())
    unit = number.artifact.unit
    out = ["--out", str(fresh_folder(opened, number))]
    groups = together({name: how for name, (_, how) in _as_made(run, unit).items()})
    lines = []
    for how, names in groups:
        phases = [_phase_words(opened, run, name) for name in (names if len(groups) > 1 else [unit])]
        for words in dict.fromkeys(map(tuple, phases)):
            sets = [word for override in opened.overrides for word in ("--set", override)]
            lines.append(shlex.join([*words, *sets, *how.words(), *out]))
    if len(groups) > 1:
        lines.append("# units ran with several numbers of threads or processes; --run repeats each of them")
    return lines


def _phase_words(opened: OpenedStudy, run: Run, name: str) -> list[str]:
    """The command of a unit's phase."""
    unit, file = run.graph.units[name], str(opened.file)
    command = unit.phase.command
    if command is None:
        return ["mechstudy", "run", file]
    layers = ["--layers", str(unit.layer)] if command.by_layer and unit.layer is not None else []
    return ["mechstudy", command.name, file, *layers]


def _as_made(run: Run, unit: str) -> dict[str, tuple[Artifact, AsMade]]:
    """The options that a unit and the units it needs ran with, in order; missing artifacts are left out."""
    nodes = run.evaluate().nodes
    needed = run.graph.closure([unit])
    return {
        name: (node.artifact, AsMade.of(node.artifact, node.unit))
        for name, node in nodes.items()
        if name in needed and node.artifact is not None
    }


def fresh_folder(opened: OpenedStudy, number: ReportNumber) -> Path:
    """The default folder of a rerun: beside the run, with the number's handle in its name."""
    return opened.folder.with_name(f"{opened.folder.name}-again-{number.address.handle}")


def run_again(
    opened: OpenedStudy,
    number: ReportNumber,
    *,
    out: Path | None = None,
    from_inputs: bool = False,
    device: str | None = None,
    progress: Progress | None = None,
) -> Rerun:
    """Runs the number's unit again in a new folder and compares.

    Each unit runs with its recorded device, threads, number of processes and batch size. An interrupted rerun
    resumes when it is called again.

    Args:
        out: the new folder; by default `fresh_folder`.
        from_inputs: take the inputs from the run, verified, and run only the number's own unit.
        device: instead of the recorded one.

    Raises:
        MechstudyError: the folder already holds a result, an input is damaged, or the unit fails.
    """
    folder = out or fresh_folder(opened, number)
    again = replace(opened, folder=folder)
    unit = number.artifact.unit
    recorded = _as_made(run_of(opened, NullProgress()), unit)
    before = {name: artifact for name, (artifact, _) in recorded.items()}
    own = {name: how.options(device) for name, (_, how) in recorded.items()}
    changes: dict[str, Any] = {"max_parallel": 1, **own[unit], "by_unit": own}
    run = run_of(again, NullProgress(), **changes)
    if folder.resolve() == opened.folder.resolve() or run.evaluate().nodes[unit].artifact is not None:
        raise MechstudyError(
            "it would be compared with itself: the folder already holds a result",
            where=str(folder),
            fix="remove it, or --again-in <another folder>",
        )
    if from_inputs:
        resolve_device(run.options.of(unit).device)
        _copy_inputs(run_of(opened, NullProgress()), run, unit)
    result = execute(again, [unit], progress=progress, **changes)
    now = {name: node.artifact for name, node in run.evaluate().nodes.items() if node.artifact is not None}
    if unit not in now:
        errors = [str(f.error) if f.error is not None else str(f.crash) for f in result.failures]
        raise MechstudyError(f"{unit} could not be made again", where=str(folder), facts={"why": "\n".join(errors)})
    pairs = [(before[name], now[name]) for name in before if name in now]
    return replace(_compared(folder, number, now[unit]), unlike=tuple(unlike(pairs)))


def _copy_inputs(source: Run, target: Run, unit: str) -> None:
    """Links or copies the artifacts that the unit reads, after verifying them."""
    nodes = source.evaluate().nodes
    for name in source.graph.upstream(unit):
        artifact = nodes[name].artifact
        if artifact is None:
            continue
        if problems := artifact.verify():
            raise MechstudyError(
                f"its input {name} is damaged",
                where=str(artifact.path),
                facts={"problems": "\n".join(map(str, problems))},
                fix="mechstudy verify, then mechstudy run; or leave out --from-inputs",
            )
        place = target.folder.store.root / artifact.name
        if not place.exists():
            partial = place.with_name(place.name + ".removed")  # no artifact, should this be interrupted
            with disk_errors(place):
                shutil.rmtree(partial, ignore_errors=True)
                shutil.copytree(artifact.path, partial, copy_function=_link_or_copy)
                partial.rename(place)


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _compared(folder: Path, number: ReportNumber, made: Artifact) -> Rerun:
    content = content_of(number.address.file, made.file(number.address.file).read_bytes())
    try:
        value = at(content, number.address.pointer)
    except KeyError:
        value = None
    return Rerun(folder, value, differences(number.value, value), sorted(_other_bytes(number.artifact, made)))


def _other_bytes(before: Artifact, after: Artifact) -> Iterator[str]:
    """Files whose bytes differ, without logs, which hold clock times."""
    old: Mapping[str, Any] = before.manifest["files"]
    new: Mapping[str, Any] = after.manifest["files"]
    for name in {*old, *new}:
        if name.startswith(LOGS):
            continue
        on_disk = before.path / name
        sha = sha256_of(on_disk) if on_disk.is_file() else old.get(name, {}).get("sha256")
        if sha != new.get(name, {}).get("sha256"):
            yield name
