"""One submission on its way: the study frozen, a script per group of units, and each job's id put down as it comes."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mechstudy.core.files import atomic_path
from mechstudy.planning.disk import disk_need
from mechstudy.planning.source_choice import record as record_choice
from mechstudy.runner.slurm import commands
from mechstudy.runner.slurm.errors import explained
from mechstudy.runner.slurm.frozen import Frozen, freeze
from mechstudy.runner.slurm.groups import Group, dependency, groups_of
from mechstudy.runner.slurm.queue import Queued, queue_of
from mechstudy.runner.slurm.record import LOGS, TAKEN_BACK, Entry, Record, SubmittedJob
from mechstudy.runner.slurm.scripts import script_file, script_of, units_file
from mechstudy.runner.study_run import OpenedStudy
from mechstudy.runner.unit_state import now
from mechstudy.study.dag import Evaluation
from mechstudy.study.slurm_config import SlurmConfig
from mechstudy.study.study import study_dict

Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """What the user asked for. ``where`` says the file and line of a field of ``compute.slurm``."""

    opened: OpenedStudy
    slurm: SlurmConfig
    where: Callable[[str], str | None]
    profile: str | None = None
    command: str = "submit"


@dataclass(frozen=True)
class Shown:
    """An array of a dry run: its units that would run, the arrays it would wait for, what it asks for, its script, and
    the command that would submit it."""

    group: Group
    tasks: Sequence[str]
    after: Sequence[str]
    asked: SlurmConfig
    script: Path
    command: str


@dataclass
class Result:
    """What was submitted, and what was left alone. ``queued``: units whose jobs were alive already."""

    run: Path
    jobs: list[SubmittedJob] = field(default_factory=list)
    done: int = 0
    stopped: int = 0
    queued: list[str] = field(default_factory=list)
    repointed: list[str] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)

    @property
    def n_units(self) -> int:
        return sum(len(job.tasks) for job in self.jobs)


class Sending:
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
        self.groups = groups_for(asked, evaluation, commands.max_array_size())
        self.frozen = frozen_of(asked, record.next_number)
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
        wanted = {group.key: tasks for group, tasks in missing_of(self.groups, self.missing)}
        for group in self.groups:
            self.jobs[group.key] = self._living(group)
            if group.key in wanted:
                self.jobs[group.key].append(self._send(group, wanted[group.key]))
        self._repoint()
        self.result.jobs = self.entry.jobs

    def _send(self, group: Group, tasks: Mapping[int, str]) -> str:
        comment = f"{self.record.comment}{self.frozen.number}:{group.key}:{secrets.token_hex(3)}"
        script = write_script(self.frozen, group, list(tasks), comment)
        before = self._before(group)
        wait = dependency(before, takes_what_is_there=group.takes_what_is_there)
        options = [f"--dependency={wait}"] if wait else []
        try:
            job = _arrived(script, options, comment)
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
        jobs = [job.job for job in reversed(self.entry.jobs)]  # none starts because one before it is gone
        self.entry.cancelled = why
        self.entry.note(TAKEN_BACK, jobs=jobs, why=why)
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
                wait = dependency(before, takes_what_is_there=group.takes_what_is_there)
                if commands.depend(job, wait):
                    self.result.repointed.append(job)
                    self.entry.note("re-pointed", job=job, group=group.key, dependency=wait)
                    self.record.write()


def groups_for(asked: Asked, evaluation: Evaluation, largest: int) -> list[Group]:
    """The study's arrays, none with an index over ``largest``; captures one at a time where the disk holds no more."""
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
    found = [(group, {i: name for i, name in enumerate(group.units) if name in wanted}) for group in groups]
    return [(group, tasks) for group, tasks in found if tasks]


def frozen_of(asked: Asked, number: int) -> Frozen:
    """The study as it is now, as submission ``number``: later edits of its file change no job."""
    opened = asked.opened
    return Frozen(
        opened.folder, number, opened.file, opened.overrides, study_dict(opened.study), opened.units, opened.options,
        asked.slurm,
    )  # fmt: skip


def write_script(frozen: Frozen, group: Group, tasks: Sequence[int] | Mapping[int, str], comment: str) -> Path:
    """Writes a group's script, for these indices, and the list of units that it reads; returns the script."""
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
