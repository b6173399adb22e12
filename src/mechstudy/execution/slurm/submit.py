"""`mechstudy submit` and `mechstudy resume`: every job of a study at once, each waiting for those it needs.

The steps: nobody else is at it (a lock), nothing of it is alive that would do the same twice, freeze the study, write
a script per group of units, hand them to sbatch in order, and put down each id as it comes. Where one is refused,
those before it are taken back. Nothing stays behind on the login node.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mechstudy.core.disk import atomic_path
from mechstudy.core.errors import MechstudyError
from mechstudy.core.lock import RunLock
from mechstudy.execution.budget.disk import disk_need, disk_refusal
from mechstudy.execution.graph import Evaluation
from mechstudy.execution.opened import OpenedStudy
from mechstudy.execution.slurm import commands
from mechstudy.execution.slurm.errors import explained
from mechstudy.execution.slurm.frozen import Frozen, freeze, identities, thaw
from mechstudy.execution.slurm.groups import Group, groups_of
from mechstudy.execution.slurm.queue import Queued, queue_of
from mechstudy.execution.slurm.record import LOGS, Entry, Record, SubmittedJob, read_record, record_lock
from mechstudy.execution.slurm.scripts import script_file, script_of, units_file
from mechstudy.execution.source_choice import record as record_choice
from mechstudy.execution.unit_state import now
from mechstudy.phases.slurm import SlurmConfig

DRY_RUN = 0  # the number of a submission that was only shown
ENDING_SECONDS = 40.0  # to wait for jobs that are ending: Slurm's KillWait and some more

Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """What the user asked for. ``where`` says the file and line of a field of ``compute.slurm``."""

    opened: OpenedStudy
    slurm: SlurmConfig
    where: Callable[[str], str | None]
    profile: str | None = None
    command: str = "submit"


@dataclass
class Result:
    """What was submitted, and what was left alone. ``queued``: units whose jobs were alive already."""

    run: Path
    jobs: list[SubmittedJob] = field(default_factory=list)
    done: int = 0
    stopped: int = 0
    queued: list[str] = field(default_factory=list)
    repointed: list[str] = field(default_factory=list)
    shown: list[tuple[Path, str]] = field(default_factory=list)  # of a dry run: script, and the command it stands for

    @property
    def n_units(self) -> int:
        return sum(len(job.tasks) for job in self.jobs)


def show(asked: Asked) -> Result:
    """Writes the scripts of all that is missing to ``<run>/slurm/000`` and submits nothing. Asks Slurm nothing."""
    evaluation = asked.opened.run().evaluate()
    result = _result(asked, evaluation)
    missing = evaluation.to_run
    if not missing:
        return result
    frozen = _frozen(asked, DRY_RUN)
    freeze(frozen)
    ids: dict[str, str] = {}
    for group, tasks in _wanted(_groups(asked, evaluation, largest=1001), missing):
        script = _write(frozen, group, tasks, "mechstudy:dry-run")
        wait = [f"${key}" for key in group.after if key in ids]
        ids[group.key] = script.name
        dependency = f" --dependency=afterok:{':'.join(wait)}" if wait else ""
        result.shown.append((script, f"{group.key}=$(sbatch --parsable{dependency} {script})"))
    return result


def submit(asked: Asked, say: Say = lambda _: None) -> Result:
    """Submits all that is missing; with ``asked.command`` ``resume`` what is alive in the queue is left to run.

    Raises:
        MechstudyError: no sbatch; another submit is at work, or a local run; jobs are alive and it is no resume; the
            disk is too small; Slurm refuses a job (what was submitted before it is cancelled again).
    """
    commands.require()
    run = asked.opened.folder
    with record_lock(run):
        if (holder := RunLock.holder(run)) is not None:
            raise MechstudyError(
                "this study is running on this machine, without Slurm",
                where=str(run),
                facts={"pid": str(holder.get("pid")), "host": str(holder.get("host"))},
                fix="wait for it, or stop that process: its finished work is kept",
            )
        record = read_record(run)
        alive = _alive(record)
        if alive and asked.command == "submit":
            raise _still_alive(record, alive, asked)
        evaluation = asked.opened.run().evaluate()
        result = _result(asked, evaluation)
        result.queued = [name for name in evaluation.to_run if name in alive]
        _same_study(record, alive, asked)
        missing = [name for name in evaluation.to_run if name not in alive]
        if missing:
            disk = disk_need(evaluation, run, asked.opened.options.quota)
            if (refusal := disk_refusal(disk, run)) is not None:
                raise refusal
            _Sending(asked, record, evaluation, alive, missing, result, say).send()
    return result


class _Sending:
    """The jobs of one submission on their way to Slurm."""

    def __init__(
        self,
        asked: Asked,
        record: Record,
        evaluation: Evaluation,
        alive: Mapping[str, Queued],
        missing: Sequence[str],
        result: Result,
        say: Say,
    ) -> None:
        self.asked, self.record, self.result, self.say = asked, record, result, say
        self.alive, self.missing = alive, missing
        self.graph = evaluation.graph
        self.groups = _groups(asked, evaluation, commands.max_array_size())
        self.frozen = _frozen(asked, record.next_number)
        opened = asked.opened
        self.entry = Entry(
            self.frozen.number, asked.command, now(), str(opened.file.resolve()), list(opened.overrides), asked.profile
        )  # fmt: skip
        self.jobs: dict[str, list[str]] = {}  # group -> ids of its jobs, new and alive

    def send(self) -> None:
        opened, run = self.asked.opened, self.record.run
        freeze(self.frozen)
        (run / "slurm" / LOGS).mkdir(parents=True, exist_ok=True)
        opened.run().folder.keep_study(opened.file)
        if opened.choice is not None:
            record_choice(run, opened.choice)
        self.record.history.append(self.entry)
        self.record.write()
        wanted = {group.key: tasks for group, tasks in _wanted(self.groups, self.missing)}
        for group in self.groups:
            self.jobs[group.key] = self._living(group)
            if group.key in wanted:
                self.jobs[group.key].append(self._send(group, wanted[group.key]))
        self._repoint()
        self.result.jobs = self.entry.jobs

    def _send(self, group: Group, tasks: Mapping[int, str]) -> str:
        comment = f"{self.record.comment}{self.frozen.number}:{group.key}:{secrets.token_hex(3)}"
        script = _write(self.frozen, group, list(tasks), comment)
        before = self._before(group)
        options = [f"--dependency=afterok:{':'.join(before)}"] if before else []
        try:
            job = _arrived(script, options, comment)
        except commands.SlurmError as error:
            self._take_back(str(error.said or error.what))
            raise explained(error, self.frozen.slurm, group.phase, self.asked.where) from error
        except BaseException as error:  # Ctrl-C between two jobs
            self._take_back(type(error).__name__)
            raise
        relative = script.relative_to(self.record.run).as_posix()
        self.entry.jobs.append(SubmittedJob(group.key, group.phase, job, tasks, tuple(group.after), relative))
        self.record.write()
        self.say(f"{group.key}: job {job}, {len(tasks)} units" + (f", after {', '.join(before)}" if before else ""))
        return job

    def _living(self, group: Group) -> list[str]:
        """Ids of a group's living jobs: of whole arrays, but of single elements where others of theirs have failed."""
        rows = [self.alive[name] for name in group.units if name in self.alive]
        elements, missing = self.record.elements(), set(self.missing)
        broken = {
            job for job in {row.job for row in rows} if any(
                unit in missing for _, submitted, _ in elements.values() if submitted.job == job
                for unit in submitted.tasks.values()
            )
        }  # fmt: skip
        return list(dict.fromkeys(row.id if row.job in broken else row.job for row in rows))

    def _before(self, group: Group) -> list[str]:
        return [job for key in group.after for job in self.jobs.get(key, [])]

    def _take_back(self, why: str) -> None:
        """Cancels what this submission has submitted so far, so that nothing runs of a study that is not whole."""
        jobs = [job.job for job in self.entry.jobs]
        self.entry.cancelled = why
        self.entry.note("taken back", jobs=jobs, why=why)
        try:
            if jobs:
                commands.cancel(jobs)
        finally:
            self.record.write()

    def _repoint(self) -> None:
        """Makes living jobs that wait depend on what was submitted now, where that comes before them."""
        new = {job.job for job in self.entry.jobs}
        for group in self.groups:
            before = self._before(group)
            waiting = {q.job: q for n in group.units if (q := self.alive.get(n)) is not None and q.waits}
            for job, queued in waiting.items():
                if not (set(before) & new or queued.never):
                    continue
                dependency = f"afterok:{':'.join(before)}" if before else ""
                if commands.depend(job, dependency):
                    self.result.repointed.append(job)
                    self.entry.note("re-pointed", job=job, group=group.key, dependency=dependency)
                    self.record.write()


def alive_units(record: Record, queued: Sequence[Queued]) -> dict[str, Queued]:
    """unit -> the job that is to run it, or runs it, now."""
    elements = record.elements()
    found: dict[str, Queued] = {}
    for row in queued:
        if row.id in elements:
            _, job, task = elements[row.id]
            found[job.tasks[task]] = row
    return found


def _alive(record: Record) -> dict[str, Queued]:
    if not record.history:
        return {}
    queued = _settled_queue(record)
    known = set(record.ids())
    if orphans := sorted({row.job for row in queued if row.job not in known}, key=int):
        commands.cancel(orphans)  # of a submit that was killed before it could put them down
        record.history[-1].note("cancelled jobs that no submission knew of", jobs=orphans)
        record.write()
    return alive_units(record, queued)


def _settled_queue(record: Record) -> list[Queued]:
    """The queue once nothing of this run is just ending: only then is it known what goes back into the queue.

    What takes longer is left out. A job that comes back all the same finds its unit done, or locked.
    """
    end = time.monotonic() + ENDING_SECONDS
    while True:
        queued = queue_of(record.ids(), record.comment)
        ending = [row for row in queued if row.state == "COMPLETING"]
        if not ending or time.monotonic() >= end:
            return [row for row in queued if row.state != "COMPLETING"]
        time.sleep(commands.PAUSE)


def _still_alive(record: Record, alive: Mapping[str, Queued], asked: Asked) -> MechstudyError:
    jobs = sorted({queued.job for queued in alive.values()}, key=int)
    running = sum(not queued.waits for queued in alive.values())
    file = asked.opened.file
    return MechstudyError(
        "jobs of this study are in the queue already",
        where=str(record.run),
        facts={"jobs": ", ".join(jobs), "units": f"{len(alive)}, {running} of them running"},
        fix=f"`mechstudy status {file}` shows them; `mechstudy resume {file}` adds what is missing, "
        f"`mechstudy cancel {file}` takes them back",
    )


def _same_study(record: Record, alive: Mapping[str, Queued], asked: Asked) -> None:
    """Refuses to add to living jobs of another study than this: edited since, they would make other artifacts."""
    if not alive:
        return
    elements, now_is = record.elements(), identities(asked.opened.units)
    before: dict[int, dict[str, str]] = {}
    other = []
    for name, queued in alive.items():
        number = elements[queued.id][0].number
        if number not in before:
            before[number] = identities(thaw(record.run, number).units)
        if before[number].get(name) != now_is.get(name):
            other.append(name)
    if other:
        raise MechstudyError(
            "the study was changed, and jobs of what it was are in the queue",
            where=str(asked.opened.file),
            facts={"units": ", ".join(sorted(other)[:8]) + (", ..." if len(other) > 8 else "")},
            fix=f"`mechstudy cancel {asked.opened.file}` first: what is finished is kept, and what did not change is "
            "not done again",
        )


def _result(asked: Asked, evaluation: Evaluation) -> Result:
    nodes = evaluation.nodes.values()
    return Result(
        asked.opened.folder,
        done=sum(node.artifact is not None and not node.must_run for node in nodes),
        stopped=sum(node.stopped is not None for node in nodes),
    )


def _groups(asked: Asked, evaluation: Evaluation, largest: int) -> list[Group]:
    disk = disk_need(evaluation, asked.opened.folder, asked.opened.options.quota)
    room = disk.free if disk.quota_left is None else min(disk.free, disk.quota_left)
    return groups_of(evaluation.graph, one_capture_at_a_time=disk.needed_keeping > room, largest=largest)


def _wanted(groups: Sequence[Group], missing: Sequence[str]) -> list[tuple[Group, dict[int, str]]]:
    """The groups with something missing, and those units by index."""
    wanted = set(missing)
    found = [(group, {i: name for i, name in enumerate(group.units) if name in wanted}) for group in groups]
    return [(group, tasks) for group, tasks in found if tasks]


def _frozen(asked: Asked, number: int) -> Frozen:
    from mechstudy.phases.study import study_dict

    opened = asked.opened
    return Frozen(
        opened.folder, number, opened.file, opened.overrides, study_dict(opened.study), opened.units, opened.options,
        asked.slurm,
    )  # fmt: skip


def _write(frozen: Frozen, group: Group, tasks: Sequence[int] | Mapping[int, str], comment: str) -> Path:
    script = script_file(frozen, group)
    for file, text in (
        (units_file(frozen, group), "".join(f"{name}\n" for name in group.units)),
        (script, script_of(frozen, group, list(tasks), comment)),
    ):
        with atomic_path(file) as temporary:
            temporary.write_text(text)
    return script


def _arrived(script: Path, options: Sequence[str], comment: str) -> str:
    """The job's id. Where sbatch did not answer, the queue says whether it arrived all the same."""
    for attempt in range(commands.ATTEMPTS):
        try:
            return commands.submit(script, *options)
        except commands.SlurmError as error:
            if not error.maybe_done:
                raise
            refusal = error
        time.sleep(commands.PAUSE * 2**attempt)
        if arrived := queue_of([], comment):
            return arrived[0].job
    raise refusal
