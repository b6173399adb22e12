"""`mechstudy reproduce`: from a number of the report back to what made it, and, if asked, made again and compared."""

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
from mechstudy.report.numbers import FILES, LOGS, Address, addresses, at, content_of, differences, parse_address
from mechstudy.runner.recorded_options import AsMade, together, unlike
from mechstudy.runner.run import Run
from mechstudy.runner.study_run import OpenedStudy, execute
from mechstudy.store.artifacts import Artifact
from mechstudy.store.manifest import sha256_of
from mechstudy.store.provenance import package_index

_LARGEST = 256 << 20  # bytes of a file that is searched for a handle
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "numba", "polars")


@dataclass(frozen=True)
class Found:
    """A number or a group of them: where it is kept, its value now, and what is wrong with the artifact's bytes."""

    address: Address
    artifact: Artifact
    value: Any
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Again:
    """A number made again in ``folder``: what differs (pointer, before, after), and files whose bytes are others.

    ``unlike`` says which units could not be made as they were before, so that numbers may be others.
    """

    folder: Path
    value: Any
    differing: list[tuple[str, Any, Any]]
    files: list[str]
    unlike: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        return not self.differing


def find(opened: OpenedStudy, name: str) -> Found:
    """The number of a handle, or of an address (``train[3]/evaluation.json#/r2``).

    Raises:
        MechstudyError: the study has no such number, or its artifact is not there or cannot be read.
    """
    nodes = opened.run(NullProgress()).evaluate().nodes
    artifacts = {unit: node.artifact for unit, node in nodes.items() if node.artifact is not None}
    wanted = parse_address(name)
    if wanted is not None:
        if (artifact := artifacts.get(wanted.unit)) is None:
            raise MechstudyError(f"there is no artifact of {wanted.unit}", facts={"there": ", ".join(artifacts)})
        return _read(artifact, wanted)
    for unit, artifact in artifacts.items():
        for file in FILES.get(artifact.phase, ()):
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
        fix="the handles stand beside the numbers of the report; with other --set, other units are there",
    )


def _read(artifact: Artifact, address: Address) -> Found:
    path = artifact.file(address.file)
    try:
        value = at(content_of(address.file, not_stale(path.read_bytes)), address.pointer)
    except KeyError:
        raise MechstudyError(f"there is nothing at {address.pointer}", where=str(path)) from None
    except ValueError as error:
        raise MechstudyError(f"cannot be read: {error}", where=str(path), fix="mechstudy verify") from error
    return Found(address, artifact, value, tuple(str(problem) for problem in artifact.verify()))


def record(opened: OpenedStudy, found: Found) -> dict[str, Any]:
    """All that is known of how a number was made, as plain data, and the commands that make it again."""
    from mechstudy.runner.slurm.accounting import accounting_of
    from mechstudy.store.sessions import sessions_of

    m = found.artifact.manifest
    made = m.get("provenance") or {}
    return {
        "handle": found.address.handle,
        "address": str(found.address),
        "value": found.value,
        "artifact": found.artifact.name,
        "id": found.artifact.id,
        "sha256": m["files"].get(found.address.file, {}).get("sha256"),
        "problems": list(found.problems),
        "inputs": {label: entry["id"] for label, entry in m["inputs"].items()},
        "seeds": m.get("seeds") or {},
        "started": m.get("started"),
        "seconds": m.get("seconds"),
        "processes": sessions_of(m),
        "accounting": [vars(row) for row in accounting_of(opened.folder, found.artifact)],
        "git": made.get("git"),
        "mechstudy": made.get("mechstudy"),
        "python": made.get("python"),
        "packages": {name: v for name, v in (made.get("packages") or {}).items() if name in PACKAGES},
        "machine": {key: made.get(key) for key in ("hostname", "cpu", "gpu", "threads", "libraries", "modules")},
        "runtime": m.get("runtime") or {},
        "argv": made.get("argv"),
        "commands": commands(opened, found),
    }


def commands(opened: OpenedStudy, found: Found) -> list[str]:
    """Shell lines from a clean checkout to the artifact: the code, the environment, the phase."""
    made = found.artifact.manifest.get("provenance") or {}
    lines = []
    git = made.get("git") or {}
    if git.get("commit"):
        lines.append(f"git checkout {git['commit']}")
    if git.get("dirty"):
        lines.append("# the code had changes that are in no commit: the result may differ")
    for module in made.get("modules") or []:
        lines.append(f"module load {shlex.quote(str(module))}")
    lines.append("python3 -m venv .venv && . .venv/bin/activate")
    packages = made.get("packages") or {}
    pinned = [f"{name}=={packages[name]}" for name in PACKAGES if name in packages]
    index = package_index(packages)
    words = ["pip", "install", "-e", ".", *pinned, *(["--extra-index-url", index] if index else [])]
    lines.append(shlex.join(words))
    return [*lines, *_phase_commands(opened, found)]


def _phase_commands(opened: OpenedStudy, found: Found) -> list[str]:
    """What makes this artifact and what it needs, each unit as it ran the last time: one command where that does it."""
    run = opened.run(NullProgress())
    unit = found.artifact.unit
    out = ["--out", str(fresh_folder(opened, found))]
    groups = together({name: how for name, (_, how) in _as_made(run, unit).items()})
    lines = []
    for how, names in groups:
        phases = [_phase_words(opened, run, name) for name in (names if len(groups) > 1 else [unit])]
        for words in dict.fromkeys(map(tuple, phases)):
            sets = [word for override in opened.overrides for word in ("--set", override)]
            lines.append(shlex.join([*words, *sets, *how.words(), *out]))
    if len(groups) > 1:
        lines.append("# units were made with several numbers of threads or processes; --run minds each of them")
    return lines


def _phase_words(opened: OpenedStudy, run: Run, name: str) -> list[str]:
    """The command of a unit's phase."""
    unit, file = run.graph.units[name], str(opened.file)
    if unit.phase == "train":
        return ["mechstudy", "train", file, "--layers", str(unit.spec.get("layer"))]
    own = unit.phase in ("prompts", "baseline", "capture", "attribute", "intervene")
    return ["mechstudy", unit.phase if own else "run", file]


def _as_made(run: Run, unit: str) -> dict[str, tuple[Artifact, AsMade]]:
    """How a unit and all that it needs were run, in order; of what is not there any more nothing is known."""
    nodes = run.evaluate().nodes
    needed = run.graph.closure([unit])
    return {
        name: (node.artifact, AsMade.of(node.artifact, node.unit))
        for name, node in nodes.items()
        if name in needed and node.artifact is not None
    }


def fresh_folder(opened: OpenedStudy, found: Found) -> Path:
    """Where a number is made again: beside the run, with its handle in the name."""
    return opened.folder.with_name(f"{opened.folder.name}-again-{found.address.handle}")


def run_again(
    opened: OpenedStudy,
    found: Found,
    *,
    out: Path | None = None,
    from_inputs: bool = False,
    device: str | None = None,
    progress: Progress | None = None,
) -> Again:
    """Makes the artifact again in a fresh folder and compares; each unit as it was made: device, threads, number of
    processes, batches.

    Interrupted, it goes on when it is called again.

    Args:
        from_inputs: its inputs are taken from the run, checked, and only its own unit runs.
        device: another than the one it was made on.

    Raises:
        MechstudyError: the folder holds a result already, an input is damaged, or the unit fails.
    """
    folder = out or fresh_folder(opened, found)
    again = replace(opened, folder=folder)
    unit = found.artifact.unit
    made = _as_made(opened.run(NullProgress()), unit)
    before = {name: artifact for name, (artifact, _) in made.items()}
    own = {name: how.options(device) for name, (_, how) in made.items()}
    changes: dict[str, Any] = {"max_parallel": 1, **own[unit], "by_unit": own}
    run = again.run(NullProgress(), **changes)
    if folder.resolve() == opened.folder.resolve() or run.evaluate().nodes[unit].artifact is not None:
        raise MechstudyError(
            "it would be compared with itself: the folder holds a result already",
            where=str(folder),
            fix="remove it, or --again-in <another folder>",
        )
    if from_inputs:
        _bring_inputs(opened.run(NullProgress()), run, unit)
    result = execute(again, [unit], progress=progress, **changes)
    now = {name: node.artifact for name, node in run.evaluate().nodes.items() if node.artifact is not None}
    if unit not in now:
        told = [str(f.error) if f.error is not None else str(f.crash) for f in result.failures]
        raise MechstudyError(f"{unit} could not be made again", where=str(folder), facts={"why": "\n".join(told)})
    pairs = [(before[name], now[name]) for name in before if name in now]
    return replace(_compared(folder, found, now[unit]), unlike=tuple(unlike(pairs)))


def _bring_inputs(source: Run, target: Run, unit: str) -> None:
    """The artifacts that the unit reads, as links or copies, once every byte of them was right."""
    nodes = source.evaluate().nodes
    for name in source.graph.upstream(unit):
        artifact = nodes[name].artifact
        if artifact is None:
            continue
        if problems := artifact.verify():
            raise MechstudyError(
                f"its input {name} is damaged",
                where=str(artifact.path),
                facts={"found": "\n".join(map(str, problems))},
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


def _compared(folder: Path, found: Found, made: Artifact) -> Again:
    content = content_of(found.address.file, made.file(found.address.file).read_bytes())
    try:
        value = at(content, found.address.pointer)
    except KeyError:
        value = None
    return Again(folder, value, differences(found.value, value), sorted(_other_bytes(found.artifact, made)))


def _other_bytes(before: Artifact, after: Artifact) -> Iterator[str]:
    """Files that are not the same now, by the bytes on disk where there are any, and without logs (clock times)."""
    old: Mapping[str, Any] = before.manifest["files"]
    new: Mapping[str, Any] = after.manifest["files"]
    for name in {*old, *new}:
        if name.startswith(LOGS):
            continue
        on_disk = before.path / name
        sha = sha256_of(on_disk) if on_disk.is_file() else old.get(name, {}).get("sha256")
        if sha != new.get(name, {}).get("sha256"):
            yield name
