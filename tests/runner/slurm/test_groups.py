"""Which jobs wait for which: one behaviour's failure keeps nothing else from its end, and the report tells of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mechstudy.runner.slurm.arrays import groups_of
from mechstudy.study.dag import Graph
from tests.support.slurm_world import RUN, arrays, cluster, mechstudy, statuses, unit, use
from tests.support.toy_units import calls

__all__ = ["cluster"]


def study(**bad):
    """A study's shape: two behaviours, of which one may be bad, and a dictionary that needs neither."""
    units = [unit("model")]
    for name in ("good", "bad"):
        units.append(unit(f"prompts[{name}]", ["model"], **(bad if name == "bad" else {})))
        units.append(unit(f"baseline[{name}]", ["model", f"prompts[{name}]"], entry="baseline", passed=True))
    units.append(unit("corpus", ["model"]))
    units += [unit(f"capture[{n}]", ["model", f"prompts[{n}]"], gates=(f"baseline[{n}]",)) for n in ("good", "bad")]
    units.append(unit("capture[corpus:0-1]", ["model", "corpus"]))
    units += [unit(f"train[{i}]", ["capture[corpus:0-1]"]) for i in range(2)]
    units += [unit(f"attribute[{n}]", [f"prompts[{n}]", "train[0]", "train[1]"]) for n in ("good", "bad")]
    units.append(unit("features", ["train[0]", "attribute[good]", "attribute[bad]"], optional_inputs=True))
    units.append(unit("report", [item.name for item in units], optional_inputs=True))
    return units


def test_nothing_waits_for_prompts_that_does_not_need_them():
    groups = {group.key: group for group in groups_of(Graph(study()))}
    assert {key: group.after for key, group in groups.items() if "bad" not in key and key != "report"} == {
        "model": [],
        "prompts.good": ["model"],
        "baseline.good": ["model", "prompts.good"],
        "corpus": ["model"],
        "capture.good": ["model", "prompts.good", "baseline.good"],
        "capture": ["model", "corpus"],
        "train": ["capture"],
        "attribute.good": ["prompts.good", "train"],
        "features": ["train", "attribute.good", "attribute.bad"],
    }
    assert groups["train"].units == ["train[0]", "train[1]"]
    assert [key for key, group in groups.items() if group.takes_what_is_there] == ["features", "report"]


@pytest.mark.parametrize(("concurrent", "keys"), [(2, ["capture.good", "capture.bad"]), (1, ["capture.behaviours"])])
def test_more_behaviours_than_may_run_at_once_share_one_array(concurrent, keys):
    groups = groups_of(Graph(study()), concurrent=lambda _: concurrent)
    assert [group.key for group in groups if group.phase == "capture"] == [*keys, "capture"]


@pytest.mark.process
def test_fixed_behaviour_completes_on_resume(cluster, monkeypatch, tmp_path):
    fixed = tmp_path / "fixed"
    use(monkeypatch, study(entry="broken_until_fixed", fixed=str(fixed)))
    mechstudy("submit", "study.yaml")
    assert arrays(cluster)["toy-train"].startswith("0-1 afterok:")
    cluster.run_all()
    found = statuses()
    lost = {"prompts[bad]", "baseline[bad]", "capture[bad]", "attribute[bad]"}
    assert {name for name, status in found.items() if status != "done"} == {*lost, "features", "report"}
    assert "report" in calls(RUN), "of what is there"
    shown = json.loads(mechstudy("why", "study.yaml", "attribute[bad]", "--json").stdout)
    assert shown["reason"] == "waits for prompts[bad], which failed" and "not fixed yet" in shown["because"]
    assert "fix prompts[bad] (`mechstudy why study.yaml 'prompts[bad]'`), then `mechstudy resume" in shown["next"]
    shown = json.loads(mechstudy("why", "study.yaml", "report", "--json").stdout)
    assert "made without the output of prompts[bad], which failed" in shown["reason"]
    assert "prompts[bad]" in shown["next"]
    fixed.touch()
    before = len(cluster.jobs)
    mechstudy("resume", "study.yaml")
    assert [job["asked"]["job-name"] for job in list(cluster.jobs.values())[before:]] == [
        f"toy-{key}" for key in ("prompts.bad", "baseline.bad", "capture.bad", "attribute.bad", "features", "report")
    ]
    cluster.run_all()
    assert set(statuses().values()) == {"done"}
    assert [calls(RUN).count(name) for name in ("train[0]", "attribute[good]", "report")] == [1, 1, 2]


@pytest.mark.process
def test_a_running_report_is_submitted_again_after_what_it_lacks(cluster, monkeypatch, tmp_path):
    fixed = tmp_path / "fixed"
    use(monkeypatch, study(entry="broken_until_fixed", fixed=str(fixed)))
    mechstudy("submit", "study.yaml")
    report = list(cluster.jobs)[-1]
    while (ready := cluster.ready()) != [f"{report}_0"]:
        cluster.run(ready[0])
    cluster.set(f"{report}_0", state="RUNNING", reason="None")
    fixed.touch()
    mechstudy("resume", "study.yaml")
    assert list(cluster.jobs.values())[-1]["asked"]["job-name"] == "toy-report" and list(cluster.jobs)[-1] != report


# ------------------------------------------------------------------------------- what commands say to type next


@pytest.mark.parametrize(
    ("words", "ends"),
    [
        ((), ""),
        (("--out", "elsewhere"), " --out elsewhere"),
        (("--set", "name=b6"), " --set name=b6"),
    ],
)
@pytest.mark.process
def test_what_to_type_next_is_about_the_same_run(cluster, monkeypatch, words, ends):
    use(monkeypatch, study())
    assert f"mechstudy status study.yaml{ends}\n" in mechstudy("submit", "study.yaml", *words).output
    error = mechstudy("submit", "study.yaml", *words, code=2).stderr
    for command in ("status", "resume", "cancel"):
        assert f"`mechstudy {command} study.yaml{ends}`" in error
    assert f"`mechstudy cancel study.yaml{ends}`" in mechstudy("run", "study.yaml", *words, code=2).stderr
    mechstudy("cancel", "study.yaml", *words)
    shown = mechstudy("why", "study.yaml", "train[0]", *words).output
    assert f"`mechstudy resume study.yaml{ends}`" in shown and "cancelled" in shown


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.process
def test_a_refused_submit_leaves_no_folder(cluster, monkeypatch):
    from mechstudy.core.work import Estimate

    use(monkeypatch, [unit("model", estimate=Estimate(bytes_in_memory=3 * 10**9))])
    mechstudy("submit", "study.yaml", "--set", "compute.slurm.memory=2G", code=2)
    assert not Path("runs").exists()


@pytest.mark.process
def test_the_name_of_a_phase_is_answered_with_its_units(cluster, monkeypatch):
    use(monkeypatch, study())
    error = mechstudy("why", "study.yaml", "train", code=2).stderr
    assert "train is a phase, not a unit" in error and "train[0], train[1]" in error


@pytest.mark.process
def test_status_says_for_how_long_the_job_runs_and_where_a_mistake_stands(cluster, monkeypatch):
    use(monkeypatch, [unit("model", entry="refuses"), unit("report", ["model"], optional_inputs=True)])
    mechstudy("submit", "study.yaml")
    cluster.run("100_0")
    [model, _] = json.loads(mechstudy("status", "study.yaml", "--json").stdout)["units"]
    assert model["detail"].startswith("toy.yaml:3: the toy is broken") and "(fix: fix it" in model["detail"]
    mechstudy("resume", "study.yaml")
    cluster.set("102_0", state="RUNNING", reason="None")
    [model, _] = json.loads(mechstudy("status", "study.yaml", "--json").stdout)["units"]
    assert (model["status"], model["seconds"]) == ("running", 10.0), "of this job, as squeue says"
