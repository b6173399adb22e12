"""Workers that are killed, jobs that are cancelled and a controller that is restarted, at random points."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from tests.slurm.runs import Publishes, Submitted

pytestmark = pytest.mark.slurm

KILLS = 20
RESTART, CANCEL = 7, 14  # after so many kills


def test_killed_twenty_times_cancelled_and_its_controller_restarted_a_study_ends_as_if_nothing_had_been(
    submitted, expected
):
    seed = int(os.environ.get("MECHSTUDY_KILL_SEED") or time.time_ns() % 1_000_000)
    print(f"MECHSTUDY_KILL_SEED={seed}")
    draw = random.Random(seed)
    with Publishes(submitted.run) as publishes:
        submitted.mechstudy("submit")
        for kills in range(1, KILLS + 1):
            kill_one(submitted, draw)
            if kills == RESTART:
                submitted.cluster.restart("slurmctld")
            if kills == CANCEL:
                submitted.cancel_jobs()
                submitted.mechstudy("resume")
        for _ in range(4):  # a unit that was killed twice before it saved anything is given up, and says so
            submitted.wait()
            if submitted.is_complete():
                break
            submitted.mechstudy("resume")
    submitted.assert_equals(expected)
    assert publishes.twice() == []


def kill_one(submitted: Submitted, draw: random.Random) -> None:
    """Kills one of the study's workers, sooner or later after there is one."""
    deadline = time.monotonic() + 120
    time.sleep(draw.uniform(0.1, 3))
    while not (workers := submitted.workers()):
        assert time.monotonic() < deadline, submitted.story()
        if not submitted.queue():
            assert not submitted.is_complete(), "the study was done before it was killed often enough"
            submitted.mechstudy("resume")
        time.sleep(0.2)
    try:
        os.kill(draw.choice(workers), signal.SIGKILL)
    except ProcessLookupError:  # it had just ended
        kill_one(submitted, draw)
