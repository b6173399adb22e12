"""`status`, `why`, `logs`, and what a job says of itself: missing inputs, gates, changed files, crashes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mechstudy.runner.unit_state import read_state
from tests.support.slurm_world import RUN, cluster, layers, mechstudy, unit, use

__all__ = ["cluster"]


@pytest.mark.process
def test_status_works_without_accounting_and_without_a_queue(cluster, monkeypatch):
    use(monkeypatch, layers(2))
    mechstudy("submit", "study.yaml")
    cluster.run("100_0")
    cluster.set("101_0", state="TIMEOUT")
    before = json.loads(mechstudy("status", "study.yaml", "--json").stdout)
    assert next(u for u in before["units"] if u["name"] == "train[0]")["status"] == "failed"
    assert "signal_lead" in mechstudy("why", "study.yaml", "train[0]").output
    cluster.without("sacct")
    found = {u["name"]: u["status"] for u in json.loads(mechstudy("status", "study.yaml", "--json").stdout)["units"]}
    assert found == {"model": "done", "train[0]": "pending", "train[1]": "queued", "report": "queued"}
    cluster.behave(squeue="slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    shown = json.loads(mechstudy("status", "study.yaml", "--json").stdout)
    assert "the queue cannot be read" in shown["notes"][0]
    assert {u["status"] for u in shown["units"]} == {"done", "pending"}


@pytest.mark.process
def test_a_clock_that_jumps_confuses_nothing(cluster, monkeypatch):
    use(monkeypatch, layers(1))
    mechstudy("submit", "study.yaml")
    cluster.run_all()
    file = RUN / "units" / "train-0.json"
    state = json.loads(file.read_text())
    state["attempts"][0] |= {"started": "2099-01-01T00:00:00+00:00", "ended": "1999-01-01T00:00:00+00:00"}
    file.write_text(json.dumps(state))
    assert {u["status"] for u in json.loads(mechstudy("status", "study.yaml", "--json").stdout)["units"]} == {"done"}
    assert mechstudy("resume", "study.yaml").output.endswith("\nnothing to submit: 3 units are done\n")


@pytest.mark.process
def test_why_shows_the_error_in_full_its_fix_the_log_and_what_to_do(cluster, monkeypatch):
    units = layers(1)
    units[1] = unit("train[0]", ["model"], entry="refuses")
    use(monkeypatch, units)
    mechstudy("submit", "study.yaml")
    cluster.run_all()
    shown = mechstudy("why", "study.yaml", "train[0]").output
    expected = (
        "train[0]: failed", "toy.yaml:3: the toy is broken", "fix it", "101_0", "train-101_0.log",
        "mechstudy resume study.yaml",
    )  # fmt: skip
    for text in expected:
        assert text in shown, (text, shown)
    found = json.loads(mechstudy("why", "study.yaml", "report", "--json").stdout)
    assert "train[0] failed" in found["because"]
    assert "no unit trian" in mechstudy("why", "study.yaml", "trian[0]", code=2).stderr


@pytest.mark.process
def test_a_crash_shows_its_error_and_its_traceback_in_the_log(cluster, monkeypatch):
    use(monkeypatch, [unit("model", entry="crashes")])
    mechstudy("submit", "study.yaml")
    assert cluster.run("100_0") == 1
    shown = mechstudy("why", "study.yaml", "model").output
    assert "ZeroDivisionError: one over nothing" in shown
    assert "Traceback" in mechstudy("logs", "study.yaml", "model").output


@pytest.mark.process
def test_logs_of_all_jobs_of_a_unit_and_following_ends_with_it(cluster, monkeypatch, tmp_path):
    fixed = tmp_path / "fixed"
    use(monkeypatch, [unit("model", entry="broken_until_fixed", fixed=str(fixed))])
    error = mechstudy("logs", "study.yaml", "model", code=2).stderr
    assert "there is no log of model" in error
    mechstudy("submit", "study.yaml")
    cluster.run("100_0")
    fixed.touch()
    mechstudy("resume", "study.yaml")
    cluster.run("101_0")
    output = mechstudy("logs", "study.yaml", "model", "-f").output
    assert output.index("model-100_0.log") < output.index("not fixed yet") < output.index("model-101_0.log")
    assert "model done in" in output


# ---------------------------------------------------------------------------------------------- inside a job


@pytest.mark.process
def test_a_gate_that_stops_a_unit_is_no_failure_and_the_rest_goes_on(cluster, monkeypatch):
    units = [
        unit("baseline[a]", entry="baseline", passed=False),
        unit("baseline[b]", entry="baseline", passed=True),
        unit("attribute[a]", gates=("baseline[a]",)),
        unit("attribute[b]", gates=("baseline[b]",)),
        unit("report", ["attribute[a]", "attribute[b]"], optional_inputs=True),
    ]
    use(monkeypatch, units)
    mechstudy("submit", "study.yaml")
    cluster.run_all()
    found = {u["name"]: u["status"] for u in json.loads(mechstudy("status", "study.yaml", "--json").stdout)["units"]}
    assert found["attribute[a]"] == "stopped" and found["attribute[b]"] == found["report"] == "done"
    state = read_state(RUN, "attribute[a]")
    assert state is not None and state.state == "stopped" and "did not pass" in (state.reason or "")


@pytest.mark.process
def test_a_job_whose_input_is_missing_says_which_and_why(cluster, monkeypatch):
    units = [*layers(2)[:-1], unit("join", ["train[0]", "train[1]"])]
    units[1] = unit("train[0]", ["model"], entry="refuses")
    use(monkeypatch, units)
    mechstudy("submit", "study.yaml")
    cluster.run("100_0")
    cluster.run("101_0")
    assert cluster.run("102_0") == 2, "as where a dependency was purged, and Slurm starts a job all the same"
    shown = mechstudy("why", "study.yaml", "join").output
    assert "join needs train[0], which is not there" in shown and "failed (job 101_0): the toy is broken" in shown


@pytest.mark.process
def test_payload_is_discarded_once_and_made_again_where_it_is_needed(cluster, monkeypatch):
    capture = unit("capture", ["model"], entry="payload", retention="discard", payload=("*.bin",))
    trains = [unit(f"train[{i}]", ["capture"], entry="reads_payload", value=i) for i in range(2)]
    use(monkeypatch, [unit("model"), capture, *trains])
    mechstudy("submit", "study.yaml")
    cluster.run_all()
    assert not list(RUN.glob("artifacts/capture/*/rows.bin"))
    extra = unit("train[2]", ["capture"], entry="reads_payload", value=2)
    use(monkeypatch, [unit("model"), capture, *trains, extra])
    mechstudy("resume", "study.yaml")
    assert [job["asked"]["array"] for job in list(cluster.jobs.values())[3:]] == ["0", "2"]
    cluster.run_all()
    assert {u["status"] for u in json.loads(mechstudy("status", "study.yaml", "--json").stdout)["units"]} == {"done"}


@pytest.mark.process
def test_a_file_that_was_changed_since_the_submit_is_refused(cluster, monkeypatch):
    from mechstudy.study.fingerprints import file_fingerprint

    Path("prompts.jsonl").write_text("one\n")
    use(monkeypatch, [unit("prompts[a]", file="prompts.jsonl", sha256=file_fingerprint(Path("prompts.jsonl")))])
    mechstudy("submit", "study.yaml")
    Path("prompts.jsonl").write_text("two\n")
    assert cluster.run("100_0") == 2
    assert "was changed since the study was submitted" in mechstudy("why", "study.yaml", "prompts[a]").output


@pytest.mark.process
def test_another_version_of_mechstudy_is_refused(cluster, monkeypatch):
    use(monkeypatch, [unit("train[0]")])
    mechstudy("submit", "study.yaml")
    file = RUN / "slurm" / "001" / "frozen.json"
    file.write_text(file.read_text().replace('"version": 1', '"version": 999'))
    assert cluster.run("100_0") == 2
    assert "mechstudy was changed since this was submitted" in mechstudy("why", "study.yaml", "train[0]").output


@pytest.mark.process
def test_a_worker_that_cannot_start_is_a_failure_with_its_reason(cluster, monkeypatch):
    use(monkeypatch, [unit("model", entry="nowhere")])
    mechstudy("submit", "study.yaml")
    assert cluster.run("100_0") == 1
    assert "AttributeError" in mechstudy("why", "study.yaml", "model").output
