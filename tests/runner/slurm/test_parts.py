"""The parts behind the Slurm commands: values that cannot inject, scripts, what Slurm prints, what is saved."""

from __future__ import annotations

import errno
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json
from mechstudy.core.work import Estimate
from mechstudy.machine.runtime_options import RunOptions
from mechstudy.runner.slurm.accounting import Accounted, accounting
from mechstudy.runner.slurm.arrays import Group, script_of, sparse
from mechstudy.runner.slurm.frozen import Frozen, freeze, identities, thaw
from mechstudy.runner.slurm.queue import in_words, queue_of
from mechstudy.runner.slurm.settings import profiles_folder
from mechstudy.runner.unit_state import Attempt, Saved, UnitState, file_name, read_state, saved, write_state
from mechstudy.study.slurm_config import PhaseSlurm, SlurmConfig, seconds
from mechstudy.study.study import load_study
from tests.support.slurm_world import ROOT, STUDY, chain, cluster, layers, mechstudy, unit, use

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


@pytest.mark.parametrize(
    ("asked", "slurms"),
    [("32gb", "32G"), ("1.2G", "1229M"), ("0.5T", "524288M"), (1.5, "2M"), ("100K", "100K"), (0, "0")],
)
def test_memory_is_rounded_up_to_what_slurm_takes(asked, slurms):
    assert SlurmConfig(memory=asked).memory == slurms


@pytest.mark.process
def test_every_example_of_the_docs_is_taken(cluster):
    """A block that begins with `compute` is a part of a study."""
    text = (ROOT / "docs" / "how-to" / "slurm.md").read_text()
    blocks = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        Path("study.yaml").write_text(STUDY.partition("compute:")[0] + block)
        study, _ = load_study(Path("study.yaml"))
        assert study.compute.slurm is not None and study.compute.slurm.modules[0] == "2023"


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


@pytest.mark.process
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
    return Frozen(run, 1, run / "study.yaml", (), study, units or layers(3), RunOptions(), SlurmConfig(**slurm))


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
    units = [
        *layers(2),
        unit("odd", ["model"], k=None, names=("a", "b"), gates=("model",), estimate=Estimate(flops=float("inf"))),
    ]
    options = RunOptions(base=tmp_path, quota=7, trace_folder=tmp_path / "profile")
    before = replace(frozen(tmp_path, units, time="60", phases={"train": PhaseSlurm(gpus=2)}), options=options)
    freeze(before)
    after = thaw(tmp_path, 1)
    assert identities(after.units) == identities(units)
    assert after.options == options and after.slurm == before.slurm
    assert after.units[-1].estimate.flops == float("inf") and after.units[-1].gates == ("model",)


def test_an_identity_changes_with_anything_upstream():
    before, after = identities(chain()), identities(chain(left="other"))
    assert {name for name in before if before[name] != after[name]} == {"left", "join", "report"}


def test_a_missing_frozen_study_is_an_error(tmp_path):
    with pytest.raises(MechstudyError, match="what was submitted cannot be read"):
        thaw(tmp_path, 3)


# ------------------------------------------------------------------------------------------------- what is saved


def test_saved_progress_is_read_from_checkpoints_and_files_not_logs(tmp_path):
    import torch

    from mechstudy.store.checkpoint import save_checkpoint

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


def test_futile_attempts_in_a_row_are_counted_for_one_submission():
    def attempt(number: int, before: int, after: int) -> Attempt:
        return Attempt(number, "", "", 0, "", Saved(before), Saved(after))

    state = UnitState("u", attempts=[attempt(1, 0, 0), attempt(2, 0, 5), attempt(2, 5, 5), attempt(2, 5, 5)])
    assert (state.futile(1), state.futile(2), state.futile(3)) == (1, 2, 0)


# ------------------------------------------------------------------------------------------ what Slurm prints


@pytest.mark.process
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


@pytest.mark.process
def test_accounting_has_every_run_with_its_peak_memory(cluster, monkeypatch):
    use(monkeypatch, layers(2))
    mechstudy("submit", "study.yaml")
    cluster.set("101_0", state="TIMEOUT")
    rows = accounting(["101"])
    assert rows is not None
    expected = Accounted(
        "101_0", "TIMEOUT", 0, 15, 60.0, 120.0, 90.5, 2, 1, 4 << 30, 2048 << 10, "2030-01-01T00:00:00",
        "2030-01-01T00:01:00", "node1", "2029-12-31T23:58:30",
    )  # fmt: skip
    assert rows[0].waited == 90.0
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
def test_reasons_are_words(state, reason, words):
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
