"""The parts behind the Slurm commands: values that cannot inject, scripts, what Slurm prints, what is saved."""

from __future__ import annotations

import errno
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json
from mechstudy.execution.jobs import Options
from mechstudy.execution.saved import Saved, saved
from mechstudy.execution.slurm.frozen import Frozen, freeze, identities, thaw
from mechstudy.execution.slurm.groups import Group, sparse
from mechstudy.execution.slurm.profiles import profiles_folder
from mechstudy.execution.slurm.queue import Accounted, accounting, queue_of
from mechstudy.execution.slurm.reasons import in_words
from mechstudy.execution.slurm.scripts import script_of
from mechstudy.execution.unit_state import Attempt, UnitState, file_name, read_state, write_state
from mechstudy.phases.slurm import PhaseSlurm, SlurmConfig, seconds
from tests.unit.slurm_world import RUN, chain, cluster, layers, mechstudy, unit, use

__all__ = ["cluster"]


# ----------------------------------------------------------------------------------------------- the study's part


@pytest.mark.parametrize(
    ("time", "expected"),
    [("30", 1800), ("10:30", 630), ("04:00:00", 14400), ("1-0", 86400), ("1-12:30", 131400), ("2-01:02:03", 176523)],
)
def test_times_are_slurms(time, expected):
    assert seconds(time) == expected


@pytest.mark.parametrize(
    "values",
    [
        {"partition": "gpu\n#SBATCH --uid=0"},
        {"account": "a b"},
        {"qos": "$(id)"},
        {"modules": ["gcc; rm -rf /"]},
        {"memory": "much"},
        {"gpus": "two"},
        {"time": "soon"},
        {"time": "0"},
        {"activate": "source a\nrm -rf /"},
        {"extra": ["--constraint=a\n--uid=0"]},
        {"extra": ["rm -rf /"]},
        {"extra": ["--array=0-3"]},
        {"extra": ["--partition=gpu"]},
        {"phases": {"train": {"extra": ["--signal=USR2"]}}},
        {"phases": {"trian": {"gpus": 1}}},
    ],
)
def test_values_that_are_none_or_would_begin_another_line_are_refused(values):
    with pytest.raises(ValueError):
        SlurmConfig.model_validate(values)


def test_a_phase_has_its_own_values_and_the_rest_from_all():
    config = SlurmConfig.model_validate(
        {"partition": "cpu", "time": 60, "phases": {"train": {"partition": "gpu", "gpus": "a100:2"}}}
    )
    train = config.of_phase("train")
    assert (train.partition, train.gpus, train.time) == ("gpu", "a100:2", "60")
    assert config.of_phase("model").gpus is None


def test_the_study_is_laid_over_its_profile_field_by_field():
    profile = SlurmConfig(partition="gpu", account="me", phases={"train": PhaseSlurm(time="8:00:00", gpus=1)})
    study = SlurmConfig(account="you", phases={"train": PhaseSlurm(time="2:00:00")})
    both = study.over(profile)
    assert (both.partition, both.account) == ("gpu", "you")
    assert (both.of_phase("train").time, both.of_phase("train").gpus) == ("2:00:00", "1")


def test_a_profile_is_found_by_name_and_its_mistakes_stand_at_its_lines(cluster, monkeypatch):
    use(monkeypatch, layers(1))
    profiles_folder().mkdir(parents=True)
    (profiles_folder() / "snellius.yaml").write_text("account: me\nqos: nosuch\nphases:\n  train: {gpus: 1}\n")
    mechstudy("submit", "study.yaml", "--profile-name", "snellius")
    asked = cluster.jobs["101"]["asked"]
    assert (asked["account"], asked["partition"], asked["gres"]) == ("me", "cpu", "gpu:1"), "the study's partition"
    assert "did you mean snellius?" in mechstudy("submit", "study.yaml", "--profile-name", "snelius", code=2).stderr
    mechstudy("cancel", "study.yaml")
    mechstudy("resume", "study.yaml")
    assert cluster.jobs["104"]["asked"]["account"] == "me", "a resume keeps the profile"
    mechstudy("cancel", "study.yaml")
    cluster.behave(sbatch="sbatch: error: Batch job submission failed: Invalid qos specification")
    error = mechstudy("submit", "study.yaml", "--profile-name", "snellius", code=2).stderr
    assert "snellius.yaml:2: compute.slurm.qos (nosuch)" in error
    (profiles_folder() / "snellius.yaml").write_text("acount: me\n")
    error = mechstudy("submit", "study.yaml", "--profile-name", "snellius", code=2).stderr
    assert "snellius.yaml:1" in error and "account" in error


# ------------------------------------------------------------------------------------------------------ scripts


def frozen(run: Path, units=None, **slurm) -> Frozen:
    study = {"name": "toy"}
    return Frozen(run, 1, run / "study.yaml", (), study, units or layers(3), Options(), SlurmConfig(**slurm))


def test_a_script_is_bash_and_has_what_was_asked_for(tmp_path):
    folder = tmp_path / "a run's folder %j"
    config = {
        "partition": "gpu", "account": "acc", "qos": "high", "gpus": "a100:2", "cpus": 8, "memory": "32gb",
        "time": "04:00:00", "concurrent": 4, "modules": ("gcc/12.2", "CUDA/12.1"), "activate": "source ~/env.sh",
        "extra": ("--constraint=a100",),
    }  # fmt: skip
    text = script_of(
        frozen(folder, **config), Group("train", "train", [f"train[{i}]" for i in range(9)]), [1, 2, 3, 7], "c"
    )
    script = tmp_path / "script"
    script.write_text(text)
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    for line in (
        "--partition=gpu", "--account=acc", "--qos=high", "--gres=gpu:a100:2", "--cpus-per-task=8", "--mem=32G",
        "--time=04:00:00", "--array=1-3,7%4", "--constraint=a100", "--signal=B:USR1@300", "--requeue",
        "--open-mode=append", "--kill-on-invalid-dep=yes", "--job-name=toy-train", "--comment=c",
    ):  # fmt: skip
        assert f"#SBATCH {line}" in lines, line
    assert f'#SBATCH --output="{tmp_path}/a run\'s folder %%j/slurm/logs/train-%A_%a.log"' in lines
    assert "module load gcc/12.2" in lines and "source ~/env.sh" in lines
    assert "4 of 9 units" in text and "mechstudy=(python -m mechstudy)" in lines
    assert "{{" not in text and "{%" not in text


def test_a_folder_of_an_environment_is_activated(tmp_path):
    (tmp_path / "my env" / "bin").mkdir(parents=True)
    (tmp_path / "my env" / "bin" / "activate").touch()
    text = script_of(
        frozen(tmp_path, activate=str(tmp_path / "my env")), Group("train", "train", ["train[0]"]), [0], "c"
    )
    assert f"source '{tmp_path}/my env/bin/activate'" in text.splitlines()


def test_a_short_limit_is_not_all_lead(tmp_path):
    group = Group("train", "train", ["train[0]"])
    assert "--signal=B:USR1@80" in script_of(frozen(tmp_path, time="2"), group, [0], "c")
    assert "--signal=B:USR1@300" in script_of(frozen(tmp_path), group, [0], "c")


@pytest.mark.parametrize(
    ("indices", "text"), [([0], "0"), ([3, 1, 2], "1-3"), ([0, 2, 3, 9], "0,2-3,9"), ([4, 4], "4")]
)
def test_sparse_arrays(indices, text):
    assert sparse(indices) == text


# ------------------------------------------------------------------------------------------- what was submitted


def test_a_frozen_study_is_read_back_as_it_was(tmp_path):
    (tmp_path / "study.yaml").write_text("name: toy\n")
    units = [*layers(2), unit("odd", ["model"], k=None, rate=float("inf"), names=("a", "b"), gates=("model",))]
    options = replace(Options(), base=tmp_path, quota=7, profile=tmp_path / "profile")
    before = replace(frozen(tmp_path, units, time="60", phases={"train": PhaseSlurm(gpus=2)}), options=options)
    freeze(before)
    after = thaw(tmp_path, 1)
    assert identities(after.units) == identities(units)
    assert after.options == options and after.slurm == before.slurm
    assert after.units[-1].spec["rate"] == float("inf") and after.units[-1].gates == ("model",)


def test_an_identity_changes_with_anything_upstream():
    before, after = identities(chain()), identities(chain(left="other"))
    assert {name for name in before if before[name] != after[name]} == {"left", "join", "report"}


def test_a_frozen_study_that_is_gone_is_told(tmp_path):
    with pytest.raises(MechstudyError, match="what was submitted cannot be read"):
        thaw(tmp_path, 3)


# ------------------------------------------------------------------------------------------------- what is saved


def test_what_is_saved_is_read_from_checkpoints_and_files_and_not_from_logs(tmp_path):
    import torch

    from mechstudy.core.checkpoint import save_checkpoint

    assert saved(None) == saved(tmp_path / "nothing") == Saved()
    scratch = tmp_path / ".scratch"
    save_checkpoint(scratch / "checkpoint.safetensors", {"w": torch.zeros(3)}, {"step": 120})
    save_checkpoint(scratch / "train.checkpoint", {"w": torch.zeros(3)}, {"written_rows": 64})
    (scratch / "progress.json").write_text('{"done": 999}')
    (scratch / "sessions.json").write_text("[]")
    (tmp_path / "scalars.jsonl").write_text("{}\n")
    (tmp_path / "results_partial_1.csv").write_text("x\n")
    found = saved(tmp_path)
    assert found == Saved(184, 1) and str(found) == "step 184, 1 files"
    (tmp_path / "scalars.jsonl").write_text("{}\n{}\n")
    assert not saved(tmp_path).beyond(found)
    (tmp_path / "results_partial_2.csv").write_text("x\n")
    assert saved(tmp_path).beyond(found)


def test_a_checkpoint_that_is_not_whole_counts_as_none(tmp_path):
    (tmp_path / ".scratch").mkdir()
    (tmp_path / ".scratch" / "checkpoint.safetensors").write_bytes(b"\xff" * 40)
    assert saved(tmp_path) == Saved()


def test_states_survive_and_names_do_not_collide(tmp_path):
    assert file_name("train[12]") == "train-12" and file_name("report") == "report"
    names = ["variant[1:a]", "variant[1-a]", "capture[corpus:0-9]", "x" * 90 + "[1]", "x" * 90 + "[2]"]
    assert len({file_name(name) for name in names}) == len(names)
    attempt = Attempt(1, "12_3", "node", 7, "now", Saved(3, 1), Saved(5, 1), "later", 75)
    state = UnitState("train[1]", "saved", "asked to stop", attempts=[attempt])
    write_state(tmp_path, state)
    assert read_state(tmp_path, "train[1]") == state
    (tmp_path / "units" / "train-1.json").write_text('{"unit": "tr')
    assert read_state(tmp_path, "train[1]") is None


def test_attempts_in_a_row_that_saved_nothing_are_counted_for_one_submission():
    def attempt(number: int, before: int, after: int) -> Attempt:
        return Attempt(number, "", "", 0, "", Saved(before), Saved(after))

    state = UnitState("u", attempts=[attempt(1, 0, 0), attempt(2, 0, 5), attempt(2, 5, 5), attempt(2, 5, 5)])
    assert (state.futile(1), state.futile(2), state.futile(3)) == (1, 2, 0)


# ------------------------------------------------------------------------------------------ what Slurm prints


def test_the_queue_is_read_with_odd_comments_and_other_peoples_jobs(cluster, monkeypatch):
    use(monkeypatch, layers(2))
    mechstudy("submit", "study.yaml")
    state = cluster.state
    state["jobs"]["7"] = {**state["jobs"]["100"], "asked": {**state["jobs"]["100"]["asked"], "comment": "a|b|c"}}
    cluster.save(state)
    rows = queue_of(["101"], "")
    assert [row.id for row in rows] == ["101_0", "101_1"] and rows[0].waits and rows[0].reason == "Dependency"
    assert len(cluster.calls("squeue")) == 1, "one call"
    assert [row.comment for row in queue_of(["7"], "")] == ["a|b|c"]


def test_accounting_has_every_run_with_its_peak_memory(cluster, monkeypatch):
    use(monkeypatch, layers(2))
    mechstudy("submit", "study.yaml")
    cluster.set("101_0", state="TIMEOUT")
    rows = accounting(["101"])
    assert rows is not None
    expected = Accounted(
        "101_0", "TIMEOUT", 0, 15, 60.0, 120.0, 90.5, 2, 1, 4 << 30, 2048 << 10, "2030-01-01T00:00:00",
        "2030-01-01T00:01:00", "node1",
    )  # fmt: skip
    assert rows[0] == expected and [row.job for row in rows] == ["101_0", "101_1"]
    cluster.behave(sacct="Slurm accounting storage is disabled")
    assert accounting(["101"]) is None
    assert accounting([]) == []


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        ("PENDING", "Resources", "waits (Resources): it is next"),
        ("PENDING", "QOSMaxJobsPerUserLimit", "the QOS is at a limit of its running and waiting jobs of one user"),
        ("PENDING", "AssocGrpCPUMinutesLimit", "the account is at a limit of its time"),
        ("PENDING", "DependencyNeverSatisfied", "mechstudy resume"),
        ("PENDING", "ReqNodeNotAvail, UnavailableNodes:node[1-3]", "waits (ReqNodeNotAvail)"),
        ("PENDING", "Unheard-of", "ask the cluster's staff"),
        ("RUNNING", "None", "runs"),
    ],
)
def test_reasons_are_told_in_words(state, reason, words):
    assert words in in_words(state, reason)


def test_a_stale_handle_is_read_once_more_and_no_more(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    file.write_text("[1]")
    left = 1
    true_read = Path.read_bytes

    def read(path: Path) -> bytes:
        nonlocal left
        if left:
            left -= 1
            raise OSError(errno.ESTALE, "Stale file handle")
        return true_read(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    assert read_json(file) == [1]
    left = 2
    with pytest.raises(MechstudyError, match="Stale"):
        read_json(file)


# -------------------------------------------------------------------------------------------- status, why, logs


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
    assert found == {"model": "done", "train[0]": "pending", "train[1]": "queued", "report": "pending"}
    cluster.behave(squeue="slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    told = json.loads(mechstudy("status", "study.yaml", "--json").stdout)
    assert "the queue cannot be read" in told["notes"][0]
    assert {u["status"] for u in told["units"]} == {"done", "pending"}


def test_a_clock_that_jumps_confuses_nothing(cluster, monkeypatch):
    use(monkeypatch, layers(1))
    mechstudy("submit", "study.yaml")
    cluster.run_all()
    file = RUN / "units" / "train-0.json"
    state = json.loads(file.read_text())
    state["attempts"][0] |= {"started": "2099-01-01T00:00:00+00:00", "ended": "1999-01-01T00:00:00+00:00"}
    file.write_text(json.dumps(state))
    assert {u["status"] for u in json.loads(mechstudy("status", "study.yaml", "--json").stdout)["units"]} == {"done"}
    assert mechstudy("resume", "study.yaml").output.startswith("nothing to submit")


def test_why_shows_the_error_in_full_its_fix_the_log_and_what_to_do(cluster, monkeypatch):
    units = layers(1)
    units[1] = unit("train[0]", ["model"], entry="refuses")
    use(monkeypatch, units)
    mechstudy("submit", "study.yaml")
    cluster.run_all()
    told = mechstudy("why", "study.yaml", "train[0]").output
    expected = (
        "train[0]: failed", "toy.yaml:3: the toy is broken", "mend it", "101_0", "train-101_0.log",
        "mechstudy resume study.yaml",
    )  # fmt: skip
    for text in expected:
        assert text in told, (text, told)
    found = json.loads(mechstudy("why", "study.yaml", "report", "--json").stdout)
    assert "train[0] failed" in found["because"]
    assert "no unit trian" in mechstudy("why", "study.yaml", "trian[0]", code=2).stderr


def test_a_crash_is_told_with_its_traceback_in_the_log(cluster, monkeypatch):
    use(monkeypatch, [unit("model", entry="crashes")])
    mechstudy("submit", "study.yaml")
    assert cluster.run("100_0") == 1
    told = mechstudy("why", "study.yaml", "model").output
    assert "ZeroDivisionError: one over nothing" in told
    assert "Traceback" in mechstudy("logs", "study.yaml", "model").output


def test_logs_of_all_jobs_of_a_unit_and_following_ends_with_it(cluster, monkeypatch, tmp_path):
    mended = tmp_path / "mended"
    use(monkeypatch, [unit("model", entry="broken_until_mended", mended=str(mended))])
    error = mechstudy("logs", "study.yaml", "model", code=2).stderr
    assert "there is no log of model" in error
    mechstudy("submit", "study.yaml")
    cluster.run("100_0")
    mended.touch()
    mechstudy("resume", "study.yaml")
    cluster.run("101_0")
    output = mechstudy("logs", "study.yaml", "model", "-f").output
    assert output.index("model-100_0.log") < output.index("not mended yet") < output.index("model-101_0.log")
    assert "model: done in" in output


# ---------------------------------------------------------------------------------------------- inside a job


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


def test_a_job_whose_input_is_missing_says_which_and_why(cluster, monkeypatch):
    units = layers(2)
    units[1] = unit("train[0]", ["model"], entry="refuses")
    use(monkeypatch, units)
    mechstudy("submit", "study.yaml")
    cluster.run("100_0")
    cluster.run("101_0")
    assert cluster.run("102_0") == 2, "as where a dependency was purged, and Slurm starts a job all the same"
    told = mechstudy("why", "study.yaml", "report").output
    assert "report needs train[0], which is not there" in told and "failed (job 101_0): the toy is broken" in told


def test_payload_is_discarded_once_and_made_again_where_it_is_needed(cluster, monkeypatch):
    capture = unit("capture", ["model"], entry="payload", retention="discard", discard_patterns=("*.bin",))
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


def test_a_file_that_was_changed_since_the_submit_is_refused(cluster, monkeypatch):
    from mechstudy.phases.fingerprints import file_fingerprint

    Path("prompts.jsonl").write_text("one\n")
    use(monkeypatch, [unit("prompts[a]", file="prompts.jsonl", sha256=file_fingerprint(Path("prompts.jsonl")))])
    mechstudy("submit", "study.yaml")
    Path("prompts.jsonl").write_text("two\n")
    assert cluster.run("100_0") == 2
    assert "was changed since the study was submitted" in mechstudy("why", "study.yaml", "prompts[a]").output


def test_another_version_of_mechstudy_is_refused(cluster, monkeypatch):
    made_by_newer = replace(unit("train[0]", version=999), entry="mechstudy.phases.train:run")
    use(monkeypatch, [made_by_newer])
    mechstudy("submit", "study.yaml")
    assert cluster.run("100_0") == 2
    assert "mechstudy was changed since this was submitted" in mechstudy("why", "study.yaml", "train[0]").output


def test_a_worker_that_cannot_start_is_a_failure_that_is_told(cluster, monkeypatch):
    use(monkeypatch, [unit("model", entry="nowhere")])
    mechstudy("submit", "study.yaml")
    assert cluster.run("100_0") == 1
    assert "AttributeError" in mechstudy("why", "study.yaml", "model").output
