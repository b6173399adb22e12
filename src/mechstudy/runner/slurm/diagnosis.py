"""Why a unit waits or failed, and the logs of its jobs: `mechstudy why` and `mechstudy logs`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mechstudy.planning.opened_study import OpenedStudy
from mechstudy.runner.run import Run
from mechstudy.runner.slurm.record import read_record
from mechstudy.runner.slurm.requeue import exit_in_words
from mechstudy.runner.status import Status, UnitStatus, read_status
from mechstudy.runner.study_run import run_of
from mechstudy.runner.unit_state import UnitState, read_state, saved_of

LINES = 12  # of the log
_EVERY = 0.5  # seconds between looks at a log that is followed
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Why:
    """A unit's state and the facts behind it, in the order they are shown; the end of its log; what to do next."""

    unit: UnitStatus
    facts: dict[str, str] = field(default_factory=dict)
    log: Path | None = None
    lines: list[str] = field(default_factory=list)
    next: str = ""


def why(opened: OpenedStudy, name: str) -> Why:
    """Explains the state of one unit.

    Raises:
        MechstudyError: the study has no such unit.
    """
    run = run_of(opened)
    run.graph.check([name])
    status = read_status(run)
    unit = next(unit for unit in status.units if unit.name == name)
    state = read_state(run.folder.path, name)
    files = logs_of(run.folder.path, name)
    log = files[-1] if files else None
    facts = _facts(run, unit, state)
    cause = _cause(run, name, status) if unit.status == "pending" else None
    if cause is not None:
        facts["because"] = f"{cause.name} {cause.status}: {cause.detail}"
    lines = tail(log, LINES) if log is not None else []
    return Why(unit, facts, log, lines, _next(opened, unit, cause))


def _facts(run: Run, unit: UnitStatus, state: UnitState | None) -> dict[str, str]:
    facts: dict[str, str] = {}
    if unit.detail:
        facts["reason"] = unit.detail
    if state is not None and state.state == "failed" and unit.status == "failed" and state.error:
        facts["reason"] = state.error if state.fix or "\n" not in state.error else unit.detail
    if unit.job:
        facts["job"] = unit.job
    if state is not None and state.last is not None:
        last = state.last
        facts["attempt"] = f"{len(state.attempts)}, on {last.host} (process {last.pid}), from {last.started}"
        facts["restarts"] = str(len(state.of_submission(last.submission)) - 1)
        if code := exit_in_words(state):
            facts["exit"] = code
    node = run.evaluate().nodes[unit.name]
    if unit.status in ("queued", "running", "failed", "pending") and node.id is not None:
        facts["checkpoint"] = str(saved_of(run.folder.store, node))
    if unit.artifact:
        facts["artifact"] = unit.artifact
    return facts


def _cause(run: Run, name: str, status: Status) -> UnitStatus | None:
    """The nearest unit upstream that failed."""
    by_name = {unit.name: unit for unit in status.units}
    visited: set[str] = set()
    stack = [name]
    while stack:
        for source in run.graph.upstream(stack.pop()):
            if source not in visited:
                visited.add(source)
                if by_name[source].status == "failed":
                    return by_name[source]
                stack.append(source)
    return None


def _next(opened: OpenedStudy, unit: UnitStatus, cause: UnitStatus | None) -> str:
    resume = f"`{opened.command('resume')}`"
    if unit.status == "done":
        return "nothing: it is done"
    if unit.status == "stopped":
        return "nothing, or a lower baseline.min_accuracy, or baseline.on_fail: continue"
    if unit.status == "running":
        return f"wait; `{opened.command('logs', unit.name, '-f')}` follows it"
    if unit.status == "queued":
        if "compute.slurm." in unit.detail and "concurrent" not in unit.detail:
            return f"change that, then `{opened.command('cancel')}` and {resume}"
        return resume if "never" in unit.detail else "wait: Slurm starts it"
    if unit.status == "failed":
        return f"fix what the reason says, then {resume}: only what is missing runs"
    if cause is not None:
        return f"fix {cause.name} (`{opened.command('why', cause.name)}`), then {resume}"
    return f"{resume}, or `{opened.command('run')}` on this machine"


def logs_of(run: Path, unit: str) -> list[Path]:
    """The logs of every job a unit had, oldest first; those that exist."""
    logs = (element.job.log(run, element.task) for element in read_record(run).of_unit(unit))
    return [path for path in dict.fromkeys(logs) if path.exists()]


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a file; of a large one only its end is read."""
    with suppress(OSError), path.open("rb") as opened:
        size = opened.seek(0, 2)
        opened.seek(max(0, size - _BLOCK))
        return opened.read().decode(errors="replace").splitlines()[-lines:]
    return []


def print_logs(files: list[Path]) -> int:
    """Writes logs to standard output, each after its name where there are several; bytes of the last one."""
    size = 0
    for path in files:
        if len(files) > 1:
            print(f"==> {path} <==", flush=True)
        size = _print_from(path, 0)
    return size


def follow(files: Callable[[], list[Path]], position: int, over: Callable[[], bool]) -> None:
    """Goes on printing the newest log as it grows, and later ones as they come, until ``over``."""
    current = files()[-1] if files() else None
    last = False
    while not last:
        last = over()  # once more after that, for what was printed meanwhile
        newest = files()[-1] if files() else None
        if newest != current:
            print(f"==> {newest} <==", flush=True)
            current, position = newest, 0
        if current is not None:
            position = _print_from(current, position)
        if not last:
            time.sleep(_EVERY)


def _print_from(path: Path, position: int) -> int:
    with suppress(OSError), path.open("rb") as opened:
        opened.seek(position)
        data = opened.read()
        sys.stdout.write(data.decode(errors="replace"))
        sys.stdout.flush()
        return position + len(data)
    return position
