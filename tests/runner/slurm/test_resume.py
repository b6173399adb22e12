"""`resume`: only what is missing, once, whatever happened; those that still wait, wait for the new jobs."""

from __future__ import annotations

import threading

import pytest

from mechstudy.runner.slurm import commands
from mechstudy.runner.slurm.record import read_record
from tests.support.slurm_world import RUN, arrays, cluster, layers, mechstudy, statuses, unit, use
from tests.support.toy_units import calls

__all__ = ["cluster"]


@pytest.mark.process
def test_after_a_failure_only_what_is_missing_runs(cluster, monkeypatch, tmp_path):
    fixed = tmp_path / "fixed"
    units = layers(3)
    units[2] = unit("train[1]", ["model"], entry="broken_until_fixed", fixed=str(fixed))
    use(monkeypatch, units)
    mechstudy("submit", "study.yaml")
    cluster.run_all()
    assert statuses() == {
        "model": "done", "train[0]": "done", "train[1]": "failed", "train[2]": "done", "report": "pending",
    }  # fmt: skip
    shown = mechstudy("why", "study.yaml", "report").output
    assert "train[1] failed: not fixed yet" in shown and "mechstudy resume study.yaml" in shown
    fixed.touch()
    mechstudy("resume", "study.yaml")
    assert arrays(cluster)["toy-train"] == "1 " and arrays(cluster)["toy-report"] == "0 afterany:103"
    cluster.run_all()
    assert set(statuses().values()) == {"done"}
    assert sorted(calls(RUN)) == ["model", "report", "report", "train[0]", "train[1]", "train[2]"], (
        "nothing was done twice but the report, of what was there and of all"
    )


@pytest.mark.process
def test_waiting_jobs_are_made_to_wait_for_the_new_ones(cluster, monkeypatch):
    trains = layers(3)[:-1]
    use(monkeypatch, [*trains, unit("attribute[a]", [item.name for item in trains])])
    (cluster.folder / "keeps").touch()  # a site where jobs of an invalid dependency stay in the queue
    mechstudy("submit", "study.yaml")
    cluster.run("100_0")
    cluster.set("101_1", state="CANCELLED")
    shown = mechstudy("why", "study.yaml", "attribute[a]").output
    assert statuses()["attribute[a]"] == "queued" and "never start" in shown
    mechstudy("resume", "study.yaml")
    waits = arrays(cluster)["toy-attribute.a"]
    assert waits == "0 afterok:101_0:101_2:103", "the same job; not all of 101, which failed"
    assert len(cluster.jobs) == 4
    cluster.run_all()
    assert set(statuses().values()) == {"done"}


@pytest.mark.process
def test_a_queue_that_was_purged_loses_nothing(cluster, monkeypatch):
    use(monkeypatch, layers(2))
    mechstudy("submit", "study.yaml")
    cluster.run("100_0")
    cluster.run("101_0")
    for job in ("100", "101", "102"):
        cluster.forget(job)
    assert statuses() == {"model": "done", "train[0]": "done", "train[1]": "pending", "report": "pending"}
    mechstudy("resume", "study.yaml")
    assert arrays(cluster) == {"toy-train": "1 ", "toy-report": "0 afterany:103"}
    cluster.run_all()
    assert sorted(calls(RUN)) == ["model", "report", "train[0]", "train[1]"]


@pytest.mark.process
def test_a_resume_keeps_the_overrides_of_the_submit(cluster, monkeypatch):
    use(monkeypatch, layers(1))
    mechstudy("submit", "study.yaml", "--set", "seed=3")
    mechstudy("cancel", "study.yaml")
    mechstudy("resume", "study.yaml")
    assert [entry.overrides for entry in read_record(RUN).history] == [["seed=3"], ["seed=3"]]


@pytest.mark.process
def test_a_resume_with_nothing_missing_submits_nothing(cluster, monkeypatch):
    use(monkeypatch, layers(1))
    mechstudy("submit", "study.yaml")
    output = mechstudy("resume", "study.yaml").output
    assert "3 units are in the queue already" in output and "nothing to submit" in output


@pytest.mark.process
def test_a_resume_waits_for_jobs_that_are_just_ending(cluster, monkeypatch):
    use(monkeypatch, layers(2))
    mechstudy("submit", "study.yaml")
    cluster.run("100_0")
    cluster.run("101_0")
    cluster.set("101_1", state="COMPLETING")  # cancelled, and its worker is still saving
    cluster.set("102_0", state="CANCELLED")
    thread = threading.Timer(1.0, lambda: cluster.set("101_1", state="CANCELLED"))
    monkeypatch.setattr(commands, "PAUSE", 0.2)
    thread.start()
    mechstudy("resume", "study.yaml")
    thread.join()
    assert arrays(cluster)["toy-train"] == "1 "
    cluster.run_all()
    assert set(statuses().values()) == {"done"}
