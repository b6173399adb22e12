"""`mechstudy submit` and `mechstudy resume`: all jobs of a study at once, each depending on those it needs."""

from __future__ import annotations

import re
import secrets
import shlex
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import atomic_path
from mechstudy.planning.disk import disk_need
from mechstudy.planning.fit import submit_refusal
from mechstudy.planning.opened_study import OpenedStudy, record_resolved
from mechstudy.planning.source_choice import record as record_choice
from mechstudy.runner.slurm import commands
from mechstudy.runner.slurm.arrays import Group, dependency, groups_of, script_file, script_of, units_file
from mechstudy.runner.slurm.frozen import LOGS, SLURM, Frozen, freeze
from mechstudy.runner.slurm.job_status import alive, same_study, still_alive
from mechstudy.runner.slurm.queue import Queued, queue_of
from mechstudy.runner.slurm.record import (
    TAKEN_BACK,
    Entry,
    Record,
    SubmittedJob,
    has_record,
    read_record,
    record_lock,
)
from mechstudy.runner.slurm.settings import Where, explained
from mechstudy.runner.study_run import prompts_refusal
from mechstudy.runner.unit_state import now
from mechstudy.store.lock import RunLock
from mechstudy.study.dag import Evaluation
from mechstudy.study.run_folder import RunFolder
from mechstudy.study.slurm_config import SlurmConfig

Say = Callable[[str], None]
DRY_RUN = 0  # the number of a submission that was only shown


@dataclass(frozen=True)
class Asked:
    """What the user asked for. ``where`` says the file and line of a field of ``compute.slurm``."""

    opened: OpenedStudy
    slurm: SlurmConfig
    where: Where
    profile: str | None = None
    command: str = "submit"


@dataclass(frozen=True)
class Shown:
    """An array of a dry run: its units, the arrays it would wait for, its settings, its script, and its command."""

    group: Group
    tasks: Sequence[str]
    after: Sequence[str]
    asked: SlurmConfig
    script: Path
    command: str


@dataclass
class Result:
    """What was submitted; ``queued`` are units whose jobs were in the queue already."""

    run: Path
    jobs: list[SubmittedJob] = field(default_factory=list)
    done: int = 0
    stopped: int = 0
    queued: list[str] = field(default_factory=list)
    repointed: list[str] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)

    @property
    def n_units(self) -> int:
        """How many units were submitted."""
        return sum(len(job.tasks) for job in self.jobs)


def show(asked: Asked) -> Result:
    """Writes the scripts of all that is missing to ``<run>/slurm/dry-run`` and submits nothing. Asks Slurm nothing."""
    evaluation = asked.opened.evaluate()
    result = _result(asked, evaluation)
    missing = evaluation.to_run
    if not missing:
        return result
    if (refusal := prompts_refusal(asked.opened, missing)) is not None:
        raise refusal
    frozen = frozen_of(asked, DRY_RUN)
    freeze(frozen)
    shown: set[str] = set()
    for group, tasks in missing_of(groups_for(asked, evaluation, largest=1001), missing):
        script = write_script(frozen, group, tasks, "mechstudy:dry-run")
        after = [key for key in group.after if key in shown]
        shown.add(group.key)
        before = [f"${_variable(key)}" for key in after]
        wait = dependency(before, group)
        option = f" --dependency={wait}" if wait else ""
        command = f"{_variable(group.key)}=$(sbatch --parsable{option} {shlex.quote(str(script))})"
        asks = asked.slurm.of_phase(group.phase)
        result.shown.append(Shown(group, list(tasks.values()), after, asks, script, command))
    return result


def submit(asked: Asked, say: Say = lambda _: None) -> Result:
    """Submits all that is missing; with ``asked.command`` ``resume``, jobs in the queue are left to run.

    Raises:
        MechstudyError: no sbatch; another submit is at work, or a local run; jobs are alive and it is no resume; a
            prompts file is broken; the disk, or the memory or time asked for, is too small; Slurm refuses a job (what
            was submitted before it is cancelled again).
    """
    commands.require()
    run = asked.opened.folder
    if not has_record(run):  # before anything is written: a refusal leaves no folder behind
        _check(asked, asked.opened.evaluate().to_run)
    with record_lock(run):
        if (holder := RunLock.holder(run)) is not None:
            raise MechstudyError(
                "this study is running on this machine, without Slurm",
                where=str(run),
                facts={"pid": str(holder.get("pid")), "host": str(holder.get("host"))},
                fix="wait for it, or stop that process: its finished work is kept",
            )
        record = read_record(run)
        living = alive(record)
        if living and asked.command == "submit":
            raise still_alive(record, living, asked.opened)
        evaluation = asked.opened.evaluate()
        result = _result(asked, evaluation)
        living = {name: job for name, job in living.items() if job.waits or not _lacks(evaluation, living, name)}
        result.queued = [name for name in evaluation.to_run if name in living]
        same_study(record, living, asked.opened)
        missing = [name for name in evaluation.to_run if name not in living]
        if missing:
            if record.history:
                _check(asked, missing)
            _Sending(asked, record, evaluation, living, missing, result, say).send()
    return result


def _check(asked: Asked, missing: Sequence[str]) -> None:
    """Refuses what would fail, or cannot fit."""
    if missing and (refusal := prompts_refusal(asked.opened, missing) or submit_refusal(asked.opened, asked.slurm)):
        raise refusal


def _lacks(evaluation: Evaluation, living: Mapping[str, Queued], name: str) -> bool:
    """Whether a unit with optional inputs runs without one that is submitted now."""
    graph, missing = evaluation.graph, set(evaluation.to_run) - set(living)
    return graph.units[name].phase.optional_inputs and not missing.isdisjoint(graph.upstream(name))


def _result(asked: Asked, evaluation: Evaluation) -> Result:
    nodes = evaluation.nodes.values()
    return Result(
        asked.opened.folder,
        done=sum(node.artifact is not None and not node.must_run for node in nodes),
        stopped=sum(node.stopped is not None for node in nodes),
    )


def _variable(key: str) -> str:
    """A group's key as a name in the shell."""
    return re.sub(r"\W", "_", key)


@dataclass
class _Sending:
    """The jobs of one submission on their way to Slurm."""

    asked: Asked
    record: Record
    evaluation: Evaluation
    alive: Mapping[str, Queued]
    missing: Sequence[str]
    result: Result
    say: Say

    def __post_init__(self) -> None:
        opened, latest = self.asked.opened, self.record.latest
        self.groups = groups_for(self.asked, self.evaluation, commands.max_array_size())
        self.frozen = frozen_of(self.asked, 1 if latest is None else latest.number + 1)
        self.entry = Entry(
            self.frozen.number, self.asked.command, now(), str(opened.file.resolve()), list(opened.overrides),
            self.asked.profile,
        )  # fmt: skip
        self.jobs: dict[str, list[str]] = {}  # group -> ids of its jobs, new and alive

    def send(self) -> None:
        opened, run = self.asked.opened, self.record.run
        freeze(self.frozen)
        (run / SLURM / LOGS).mkdir(parents=True, exist_ok=True)
        RunFolder(opened.folder).keep_study(opened.file)
        record_resolved(opened)
        if opened.choice is not None:
            record_choice(run, opened.choice)
        self.record.history.append(self.entry)
        self.record.write()
        wanted = {group.key: tasks for group, tasks in missing_of(self.groups, self.missing)}
        for group in self.groups:
            self.jobs[group.key] = self._living(group)
            if group.key in wanted:
                self.jobs[group.key].append(self._send(group, wanted[group.key]))
        self._repoint()
        self.result.jobs = self.entry.jobs

    def _send(self, group: Group, tasks: Mapping[int, str]) -> str:
        comment = f"{self.record.comment}{self.frozen.number}:{group.key}:{secrets.token_hex(3)}"
        script = write_script(self.frozen, group, tasks, comment)
        before = self._before(group)
        wait = dependency(before, group)
        try:
            job = _arrived(script, [f"--dependency={wait}"] if wait else [], comment)
        except commands.SlurmError as error:
            self._take_back(str(error.said or error.what))
            raise explained(error, self.frozen.slurm, group.phase, self.asked.where) from error
        except BaseException as error:  # Ctrl-C between two jobs
            self._take_back(type(error).__name__)
            raise
        relative = script.relative_to(self.record.run).as_posix()
        self.entry.jobs.append(
            SubmittedJob(
                group.key, group.phase, job, tasks, tuple(group.after), relative,
                takes_what_is_there=group.takes_what_is_there,
            )
        )  # fmt: skip
        self.record.write()
        self.say(f"{group.key}: job {job}, {len(tasks)} units" + (f", after {', '.join(before)}" if before else ""))
        return job

    def _living(self, group: Group) -> list[str]:
        """Ids of a group's jobs in the queue: whole arrays, or single elements where others have failed."""
        rows = [self.alive[name] for name in group.units if name in self.alive]
        missing = set(self.missing)
        broken = {element.job.job for element in self.record.elements().values() if element.unit in missing}
        return list(dict.fromkeys(row.id if row.job in broken else row.job for row in rows))

    def _before(self, group: Group) -> list[str]:
        return [job for key in group.after for job in self.jobs.get(key, [])]

    def _take_back(self, why: str) -> None:
        """Cancels the jobs submitted so far, so that no part of a study runs alone."""
        jobs = [job.job for job in reversed(self.entry.jobs)]  # none starts because one before it is gone
        self.entry.cancelled = why
        self.entry.note(TAKEN_BACK, jobs=jobs, why=why)
        try:
            if jobs:
                commands.cancel(jobs)
        finally:
            self.record.write()

    def _repoint(self) -> None:
        """Makes jobs that wait in the queue depend on those submitted now, where these come before them."""
        new = {job.job for job in self.entry.jobs}
        for group in self.groups:
            before = self._before(group)
            waiting = {q.job: q for n in group.units if (q := self.alive.get(n)) is not None and q.waits}
            for job, queued in waiting.items():
                if not (set(before) & new or queued.never):
                    continue
                wait = dependency(before, group)
                if commands.depend(job, wait):
                    self.result.repointed.append(job)
                    self.entry.note("re-pointed", job=job, group=group.key, dependency=wait)
                    self.record.write()


def groups_for(asked: Asked, evaluation: Evaluation, largest: int) -> list[Group]:
    """The study's arrays, with indices below ``largest``; captures one at a time where the disk is small."""
    disk = disk_need(evaluation, asked.opened.folder, asked.opened.options.quota)
    room = disk.free if disk.quota_left is None else min(disk.free, disk.quota_left)
    return groups_of(
        evaluation.graph,
        one_capture_at_a_time=disk.needed_keeping > room,
        largest=largest,
        concurrent=lambda phase: asked.slurm.of_phase(phase).concurrent,
    )


def missing_of(groups: Sequence[Group], missing: Sequence[str]) -> list[tuple[Group, dict[int, str]]]:
    """The groups with something missing, and those units by index."""
    wanted = set(missing)
    chosen = [(group, {i: name for i, name in enumerate(group.units) if name in wanted}) for group in groups]
    return [(group, tasks) for group, tasks in chosen if tasks]


def frozen_of(asked: Asked, number: int) -> Frozen:
    """The study as submission ``number``."""
    opened = asked.opened
    return Frozen(
        opened.folder, number, opened.file, opened.overrides, opened.study.canonical(), opened.units, opened.options,
        asked.slurm,
    )  # fmt: skip


def write_script(frozen: Frozen, group: Group, tasks: Collection[int], comment: str) -> Path:
    """Writes a group's script, for these indices, and the list of units that it reads; returns the script."""
    script = script_file(frozen, group)
    for file, text in (
        (units_file(frozen, group), "".join(f"{name}\n" for name in group.units)),
        (script, script_of(frozen, group, tasks, comment)),
    ):
        with atomic_path(file) as temporary:
            temporary.write_text(text)
    return script


def _arrived(script: Path, options: Sequence[str], comment: str) -> str:
    """Submits a script and returns the job's id. Where sbatch did not answer, the queue says whether it arrived."""
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
