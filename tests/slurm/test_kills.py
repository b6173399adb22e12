"""Workers that are killed, jobs that are cancelled and a controller that is restarted, at random points."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.slurm.runs import Publishes, Submitted, units

pytestmark = pytest.mark.slurm

KILLS = 20
RESTART, CANCEL = 7, 14  # after so many kills
PATIENCE = 600  # seconds


def test_a_study_survives_twenty_kills_a_cancel_and_a_restart(submitted, expected):
    """The points are drawn over the whole study, by how many of its units are done, and then by seconds."""
    seed = int(os.environ.get("MECHSTUDY_KILL_SEED") or time.time_ns() % 1_000_000)
    print(f"MECHSTUDY_KILL_SEED={seed}")
    draw = random.Random(seed)
    n_units = len({file.partition("/")[0] for file in expected})
    points = sorted(draw.randrange(n_units) for _ in range(KILLS))
    with Publishes(submitted.run) as publishes:
        submitted.mechstudy("submit")
        for kills, point in enumerate(points, start=1):
            kill_one(submitted, point, draw.uniform(0, 2), draw)
            if kills == RESTART:
                submitted.cluster.restart("slurmctld")
            if kills == CANCEL:
                submitted.cancel_jobs()
                submitted.mechstudy("resume")
        for _ in range(4):
            submitted.wait(seconds=PATIENCE)
            if submitted.is_complete():
                break
            submitted.mechstudy("resume")
    submitted.assert_equals(expected)
    assert publishes.twice() == []


def kill_one(submitted: Submitted, n_done: int, seconds: float, draw: random.Random) -> None:
    """Kills one of the study's workers so long after so many units are done; resumes what was given up before."""
    reach(submitted, lambda: len(units(submitted.run)) >= n_done)
    time.sleep(seconds)
    while True:
        reach(submitted, submitted.workers)
        with suppress(ProcessLookupError, IndexError):  # it had just ended
            return os.kill(draw.choice(submitted.workers()), signal.SIGKILL)


def reach(submitted: Submitted, reached: Callable[[], object]) -> None:
    """A unit that is killed too often before it saved anything is given up, and says so: then the study is resumed."""
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline, submitted.story()
        if not submitted.queue():
            assert not submitted.is_complete(), "the study was done before it was killed often enough"
            submitted.mechstudy("resume")
        time.sleep(0.2)
