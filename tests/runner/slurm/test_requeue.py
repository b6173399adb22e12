"""Jobs and their time: saved before the limit, put back, killed, cancelled, succeeded by others, given up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest

from tests.support.slurm_world import RUN, cluster, mechstudy, statuses, unit, use
from tests.support.toy_units import calls, sums

__all__ = ["cluster"]


def counting(monkeypatch, to: int = 40, pause: float = 0.05):
    units = [unit("model"), unit("train[0]", ["model"], entry="counting", to=to, pause=pause)]
    units.append(unit("report", ["train[0]"], optional_inputs=True))
    use(monkeypatch, units)


def started(cluster, element: str, seconds: float = 60) -> subprocess.Popen:
    """An element's script in a process, once its unit has saved something."""
    job, _, index = element.partition("_")
    cluster.set(element, state="RUNNING", reason="None")
    script = cluster.folder / f"script-{element}"
    script.write_text(cluster.jobs[job]["script"])
    variables = {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": index, "SLURM_JOB_ID": job}
    log = (cluster.folder / "log").open("a")
    before = [p.read_text() for p in RUN.glob("artifacts/train/*.partial/.scratch/state")]
    process = subprocess.Popen(["bash", str(script)], env={**os.environ, **variables}, stdout=log, stderr=log)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = [p.read_text() for p in RUN.glob("artifacts/train/*.partial/.scratch/state")]
        if found and found != before:
            return process
        assert process.poll() is None, (cluster.folder / "log").read_text()
        time.sleep(0.02)
    raise AssertionError((cluster.folder / "log").read_text())


@pytest.mark.process
def test_job_near_its_limit_saves_requeues_and_ends_with_the_same_bytes(cluster, monkeypatch):
    counting(monkeypatch)
    mechstudy("submit", "study.yaml")
    cluster.run("100_0")
    process = started(cluster, "101_0")
    process.send_signal(signal.SIGUSR1)
    process.wait(timeout=60)
    assert cluster.calls("scontrol")[-1] == ["requeue", "101_0"]
    assert cluster.jobs["101"]["tasks"]["0"]["state"] == "PENDING"
    found = json.loads(mechstudy("status", "study.yaml", "--json").stdout)["units"][1]
    assert found["status"] == "queued" and "resumes from" in found["detail"]
    cluster.run_all()
    assert set(statuses().values()) == {"done"}
    mechstudy("run", "study.yaml", "--out", "local")
    assert sums(RUN) == sums(RUN.parent.parent / "local")
    state = json.loads((RUN / "units" / "train-0.json").read_text())
    assert [attempt["exit_code"] for attempt in state["attempts"]] == [75, 0]


@pytest.mark.process
def test_a_cancelled_job_saves_itself_and_does_not_come_back(cluster, monkeypatch):
    counting(monkeypatch)
    mechstudy("submit", "study.yaml")
    cluster.run("100_0")
    process = started(cluster, "101_0")
    mechstudy("cancel", "study.yaml")
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    assert "requeue" not in [call[0] for call in cluster.calls("scontrol")]
    assert statuses()["train[0]"] == "pending"
    mechstudy("resume", "study.yaml")
    cluster.run_all()
    assert set(statuses().values()) == {"done"}


@pytest.mark.process
def test_a_killed_worker_is_tried_again(cluster, monkeypatch):
    import psutil

    counting(monkeypatch)
    mechstudy("submit", "study.yaml")
    cluster.run("100_0")
    process = started(cluster, "101_0")
    [worker] = psutil.Process(process.pid).children()
    worker.kill()
    process.wait(timeout=60)
    assert cluster.calls("scontrol")[-1] == ["requeue", "101_0"]
    cluster.run_all()
    assert set(statuses().values()) == {"done"}


@pytest.mark.process
def test_where_requeue_is_forbidden_a_successor_takes_over_dependents(cluster, monkeypatch):
    counting(monkeypatch)
    mechstudy("submit", "study.yaml", "--set", "compute.slurm.requeue=false")
    assert "no-requeue" in cluster.jobs["101"]["asked"]
    cluster.run("100_0")
    process = started(cluster, "101_0")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == 0
    assert cluster.jobs["103"]["asked"]["array"] == "0" and cluster.jobs["103"]["asked"]["job-name"] == "toy-train"
    assert cluster.jobs["102"]["asked"]["dependency"] == "afterany:101:103"
    cluster.set("101_0", state="COMPLETED")
    assert cluster.run_all() == ["103_0", "102_0"]
    assert set(statuses().values()) == {"done"}


@pytest.mark.process
def test_a_refused_requeue_is_followed_by_a_successor_too(cluster, monkeypatch):
    counting(monkeypatch)
    mechstudy("submit", "study.yaml")
    cluster.run("100_0")
    process = started(cluster, "101_0")
    number = len(cluster.calls("scontrol")) + 2  # after it has asked for the job's state
    cluster.behave(scontrol={str(number): "slurm_update error: Requested operation is presently disabled"})
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == 0
    assert cluster.jobs["102"]["asked"]["dependency"] == "afterany:101:103"
    assert "presently disabled" in (cluster.folder / "log").read_text()


@pytest.mark.process
def test_jobs_that_follow_each_other_are_counted_as_restarts(cluster, monkeypatch):
    counting(monkeypatch)
    mechstudy("submit", "study.yaml", "--set", "compute.slurm={requeue: false, max_restarts: 1}")
    cluster.run("100_0")
    for element, code in (("101_0", 0), ("103_0", 2)):
        process = started(cluster, element)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(timeout=60) == code
        cluster.set(element, state="COMPLETED" if code == 0 else "FAILED")
    assert statuses()["train[0]"] == "failed"
    assert len(cluster.calls("sbatch")) == 4


@pytest.mark.process
def test_a_job_that_does_not_get_on_is_not_put_back_for_ever(cluster, monkeypatch):
    use(monkeypatch, [unit("model", entry="dies", times=99)])
    mechstudy("submit", "study.yaml")
    ran = cluster.run_all(most=9)
    assert len(ran) == 4, "three in a row, after one that saved the mark of its death"
    assert statuses() == {"model": "failed"}
    shown = mechstudy("why", "study.yaml", "model").output
    assert "attempts in a row saved nothing" in shown and "compute.slurm.phases.model" in shown and "SIGKILL" in shown


@pytest.mark.process
def test_a_job_is_put_back_only_so_often(cluster, monkeypatch):
    counting(monkeypatch)
    mechstudy("submit", "study.yaml", "--set", "compute.slurm.max_restarts=0")
    cluster.run("100_0")
    process = started(cluster, "101_0")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == 2
    cluster.set("101_0", state="FAILED")
    assert "max_restarts" in mechstudy("why", "study.yaml", "train[0]").output


@pytest.mark.process
def test_a_unit_that_two_jobs_run_is_done_once(cluster, monkeypatch):
    counting(monkeypatch, to=10)
    mechstudy("submit", "study.yaml")
    cluster.run("100_0")
    cluster.run("101_0")
    before = sums(RUN)
    assert cluster.run("101_0") == 0
    assert sums(RUN) == before and calls(RUN) == ["model", "train[0]"]
    assert len(json.loads((RUN / "units" / "train-0.json").read_text())["attempts"]) == 1
