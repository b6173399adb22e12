"""`submit`, `resume`, `cancel` against a fake Slurm: what is submitted, once, in which order; refusals and losses."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.core.work import Estimate
from mechstudy.runner.slurm.record import read_record, record_lock
from tests.support.slurm_world import ROOT, RUN, STUDY, arrays, chain, cluster, layers, mechstudy, statuses, unit, use
from tests.support.toy_units import sums

__all__ = ["cluster"]


@pytest.mark.process
def test_one_array_per_phase_each_after_those_it_needs(cluster, monkeypatch):
    use(monkeypatch, layers(3))
    output = mechstudy("submit", "study.yaml").output
    assert arrays(cluster) == {
        "toy-model": "0 ",
        "toy-train": "0-2 afterok:100",
        "toy-report": "0 afterany:100:101",
    }
    assert "5 units in 3 jobs are submitted" in output
    assert cluster.jobs["101"]["asked"]["kill-on-invalid-dep"] == "yes"
    assert (RUN / "study.yaml").read_text() == STUDY


@pytest.mark.process
def test_jobs_make_what_a_local_run_makes(cluster, monkeypatch):
    use(monkeypatch, layers(3))
    mechstudy("submit", "study.yaml")
    assert cluster.run_all() == ["100_0", "101_0", "101_1", "101_2", "102_0"]
    assert set(statuses().values()) == {"done"}
    mechstudy("run", "study.yaml", "--out", "local")
    assert sums(RUN) == sums(RUN.parent.parent / "local")
    assert mechstudy("submit", "study.yaml").output.endswith("\nnothing to submit: 5 units are done\n")


@pytest.mark.process
def test_the_dry_run_submits_nothing_and_shows_what_would_be(cluster, monkeypatch):
    use(monkeypatch, layers(2))
    cluster.without(*cluster.COMMANDS)
    output = mechstudy("submit", "study.yaml", "--dry-run").output
    assert "train=$(sbatch --parsable --dependency=afterok:$model " in output
    assert "2: train[0], train[1]" in output and "partition cpu, time 01:00:00" in output
    assert "#SBATCH --array=0-1" in (RUN / "slurm" / "dry-run" / "train.sbatch").read_text()
    assert "scripts: runs/toy/slurm/dry-run" in output and "#SBATCH" not in output
    assert not (RUN / "slurm" / "submission.json").exists()


@pytest.mark.process
def test_a_second_submit_is_refused_while_jobs_are_alive_and_not_after(cluster, monkeypatch):
    use(monkeypatch, layers(2))
    mechstudy("submit", "study.yaml")
    error = mechstudy("submit", "study.yaml", code=2).stderr
    assert "jobs of this study are in the queue already" in error and "100, 101, 102" in error
    assert "mechstudy cancel study.yaml" in error
    assert len(cluster.calls("sbatch")) == 3
    mechstudy("cancel", "study.yaml")
    mechstudy("submit", "study.yaml")
    assert len(cluster.calls("sbatch")) == 6


@pytest.mark.process
def test_two_submits_at_once_submit_one_study(cluster, monkeypatch):
    use(monkeypatch, layers(2))
    output: list[str] = []

    def other() -> None:
        with record_lock(RUN):
            ready.set()
            time.sleep(0.5)

    ready = threading.Event()
    thread = threading.Thread(target=other)
    thread.start()
    ready.wait()
    output.append(mechstudy("submit", "study.yaml", code=2).stderr)
    thread.join()
    assert "another command is at work on this study's jobs" in output[0] and not cluster.jobs
    mechstudy("submit", "study.yaml")
    assert len(cluster.jobs) == 3


@pytest.mark.process
def test_without_sbatch_the_error_says_what_to_do(cluster, monkeypatch):
    use(monkeypatch, layers(1))
    cluster.without("sbatch")
    monkeypatch.setenv("PATH", str(cluster.folder / "bin"))  # a machine may have a real one
    error = mechstudy("submit", "study.yaml", code=2).stderr
    assert "there is no sbatch on this machine" in error and "login node" in error


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("sbatch: error: invalid partition specified: cpu", "study.yaml:9: compute.slurm.partition (cpu)"),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
         "compute.slurm.account (none is set)"),
        ("sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates "
         "accounting/QOS policy (job submit limit, user's size and/or time limits)", "at its limit"),
        ("sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)",
         "study.yaml:10: compute.slurm.time (01:00:00)"),
        ("sbatch: error: Batch job submission failed: Invalid generic resource (gres) specification",
         "compute.slurm.gpus"),
        ("sbatch: error: Batch job submission failed: Requested node configuration is not available",
         "study.yaml:8: compute.slurm (partition cpu): Slurm refused the job"),
        ("sbatch: error: Batch job submission failed: Invalid feature specification", "compute.slurm.extra (none is"),
        ("sbatch: error: something nobody has seen", "Slurm refused the jobs of phase train"),
    ],
)  # fmt: skip
@pytest.mark.process
def test_a_refusal_quotes_slurm_names_the_field_and_cancels_the_rest(cluster, monkeypatch, said, shown):
    use(monkeypatch, layers(2))
    cluster.behave(sbatch={"2": said})
    error = mechstudy("submit", "study.yaml", code=2).stderr
    assert shown in error and said.splitlines()[-1].strip() in error
    assert {task["state"] for task in cluster.jobs["100"]["tasks"].values()} == {"CANCELLED"}
    cluster.behave()
    mechstudy("submit", "study.yaml")
    assert cluster.run_all()[-1] == "103_0", "100 was taken back; 101, 102 and 103 are the whole study"


@pytest.mark.process
def test_a_missing_partition_is_refused_with_the_existing_ones(cluster, monkeypatch):
    use(monkeypatch, layers(1))
    cluster.behave(sbatch="sbatch: error: invalid partition specified: cpu")
    assert "cpu, gpu" in mechstudy("submit", "study.yaml", code=2).stderr


@pytest.mark.process
def test_an_sbatch_that_does_not_answer_is_asked_again(cluster, monkeypatch):
    use(monkeypatch, layers(1))
    monkeypatch.setenv("MECHSTUDY_SLURM_SECONDS", "1")
    cluster.behave(sbatch={"1": "hang"})
    mechstudy("submit", "study.yaml")
    assert len(cluster.jobs) == 3


@pytest.mark.process
def test_a_job_that_arrived_without_an_answer_is_not_submitted_twice(cluster, monkeypatch):
    use(monkeypatch, layers(1))
    monkeypatch.setenv("MECHSTUDY_SLURM_SECONDS", "1")
    cluster.behave(sbatch={"2": "hang after"})
    mechstudy("submit", "study.yaml")
    assert [job["asked"]["job-name"] for job in cluster.jobs.values()] == ["toy-model", "toy-train", "toy-report"]
    assert cluster.jobs["102"]["asked"]["dependency"] == "afterany:100:101"


@pytest.mark.process
def test_a_controller_that_stays_away_is_an_error_that_leaves_nothing(cluster, monkeypatch):
    use(monkeypatch, layers(1))
    cluster.behave(sbatch="sbatch: error: Unable to contact slurm controller (connect failure)")
    error = mechstudy("submit", "study.yaml", code=2).stderr
    assert "Slurm's controller cannot be reached: " in error and "Unable to contact slurm controller" in error
    assert "try again in a few minutes" in error and "compute.slurm" not in error and not cluster.jobs


@pytest.mark.process
def test_unrecorded_jobs_of_a_killed_submit_are_cancelled_by_the_next(cluster, monkeypatch):
    use(monkeypatch, layers(1))
    mechstudy("submit", "study.yaml")
    record = read_record(RUN)
    lost = record.history[0].jobs.pop()  # sbatch had answered, and then the power went
    with record_lock(RUN):
        record.write()
    mechstudy("resume", "study.yaml")
    assert {task["state"] for task in cluster.jobs[lost.job]["tasks"].values()} == {"CANCELLED"}
    assert [job["asked"]["job-name"] for job in cluster.jobs.values()][-1] == "toy-report"


@pytest.mark.process
def test_later_edits_do_not_change_what_was_submitted(cluster, monkeypatch):
    use(monkeypatch, layers(2))
    mechstudy("submit", "study.yaml")
    (RUN.parent.parent / "study.yaml").write_text("nonsense: [")
    cluster.run_all()
    (RUN.parent.parent / "study.yaml").write_text(STUDY)
    assert set(statuses().values()) == {"done"}


@pytest.mark.process
def test_an_edited_study_is_not_added_to_jobs_of_what_it_was(cluster, monkeypatch):
    use(monkeypatch, layers(2))
    mechstudy("submit", "study.yaml")
    use(monkeypatch, layers(2, value=7))
    error = mechstudy("resume", "study.yaml", code=2).stderr
    assert "the study was changed" in error and "train[0]" in error and "mechstudy cancel" in error
    mechstudy("cancel", "study.yaml")
    mechstudy("resume", "study.yaml")
    cluster.run_all()
    assert set(statuses().values()) == {"done"}


@pytest.mark.process
def test_long_arrays_are_split(cluster, monkeypatch):
    use(monkeypatch, layers(5))
    monkeypatch.setenv("FAKE_MAX_ARRAY", "3")
    mechstudy("submit", "study.yaml")
    assert {k: v.split()[0] for k, v in arrays(cluster).items()} == {
        "toy-model": "0", "toy-train": "0-1", "toy-train-part2": "0-1", "toy-train-part3": "0", "toy-report": "0",
    }  # fmt: skip
    cluster.run_all()
    assert set(statuses().values()) == {"done"}


# ------------------------------------------------------------------------------------------------- exclusion


@pytest.mark.process
def test_a_local_run_is_refused_while_jobs_wait(cluster, monkeypatch):
    use(monkeypatch, layers(1))
    mechstudy("submit", "study.yaml")
    assert "jobs of this study are in the queue" in mechstudy("run", "study.yaml", code=2).stderr
    mechstudy("cancel", "study.yaml")
    mechstudy("run", "study.yaml")


@pytest.mark.process
def test_a_submit_is_refused_while_a_local_run_is_at_it(cluster, monkeypatch):
    from mechstudy.store.lock import RunLock

    use(monkeypatch, layers(1))
    with RunLock(RUN):
        error = mechstudy("submit", "study.yaml", code=2).stderr
    assert "running on this machine, without Slurm" in error and str(os.getpid()) in error


@pytest.mark.process
def test_cancel_takes_some_units_or_all(cluster, monkeypatch):
    use(monkeypatch, layers(3))
    mechstudy("submit", "study.yaml")
    assert mechstudy("cancel", "study.yaml", "train[1]").output.strip() == "cancelled: train[1]"
    states = {i: task["state"] for i, task in cluster.jobs["101"]["tasks"].items()}
    assert states == {"0": "PENDING", "1": "CANCELLED", "2": "PENDING"}
    assert "did you mean train[1]?" in mechstudy("cancel", "study.yaml", "trian[1]", code=2).stderr
    assert "model" in mechstudy("cancel", "study.yaml").output
    assert "nothing of this study is in the queue" in mechstudy("cancel", "study.yaml").output
    assert "cancelled; `mechstudy resume` submits it again" in mechstudy("why", "study.yaml", "train[1]").output
    assert "cancelled; `mechstudy resume` submits it again" in mechstudy("why", "study.yaml", "report").output


@pytest.mark.process
def test_nothing_stays_on_the_login_node(cluster, monkeypatch):
    import psutil

    use(monkeypatch, layers(2))
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    mechstudy("submit", "study.yaml")
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


@pytest.mark.process
def test_what_plan_refuses_is_not_submitted(cluster, monkeypatch):
    """Memory of the jobs, where they ask for no GPU; time and the GPU's memory, where the study names its hardware."""
    big = Estimate(bytes_in_memory=3 * 10**9, flops=3e18)  # hours on a GPU
    use(monkeypatch, [unit("model"), unit("train[0]", ["model"], resumes=True, estimate=big)])
    asks = ("--set", "compute.slurm.memory=2G")
    said = mechstudy("submit", "study.yaml", *asks, code=2).stderr
    assert "train[0] needs 3" in said and "memory: 4G" in said
    said = mechstudy("submit", "study.yaml", "--set", "compute.hardware=a100-40gb", code=2).stderr
    assert (
        "train[0] takes about" in said
        and "more than its time limit allows" in said
        and "time: 133:40:00, or at least" in said
    )
    huge = Estimate(bytes_in_memory=90 * 10**9)
    use(monkeypatch, [unit("model"), unit("train[0]", ["model"], estimate=huge)])
    said = mechstudy("submit", "study.yaml", "--set", "compute.hardware=a100-40gb", code=2).stderr
    assert "the memory of A100-40GB is too small for this study" in said
    assert cluster.jobs == {} and cluster.calls("sbatch") == []


@pytest.mark.process
def test_the_longest_unit_over_the_limit_is_named_and_a_third_is_for_work(cluster, monkeypatch):
    """The lead is what the script has: 200 of 300 seconds. What goes on in other jobs may take longer than one."""
    model, long, longer = (Estimate(flops=hours * 1e16) for hours in (0.01, 200, 300))
    trains = [
        unit(f"train[{i}]", ["model"], resumes=True, estimate=estimate) for i, estimate in enumerate((long, longer))
    ]
    use(monkeypatch, [unit("model", estimate=model), *trains])
    asks = ("--set", "compute.hardware=a100-80gb", "--set", "compute.slurm.time=00:05:00")
    said = mechstudy("submit", "study.yaml", *asks, code=2).stderr
    assert "train[1] takes about" in said and "train[0]" in said and "model takes" not in said
    assert "5m00s, of which the last 3m20s are for saving" in said and "21 one after another" in said
    use(monkeypatch, [unit("model", estimate=model)])
    mechstudy("submit", "study.yaml", *asks)
    assert "--signal=B:USR1@200" in cluster.jobs["100"]["script"]


@pytest.mark.process
def test_the_node_that_submits_says_nothing_of_those_that_compute(cluster, monkeypatch):
    """A study too large for this machine, and for its speed, goes to GPUs that nobody has described."""
    huge = Estimate(bytes_in_memory=10**13, flops=1e21)
    use(monkeypatch, [unit("model"), unit("train[0]", ["model"], estimate=huge)])
    mechstudy("submit", "study.yaml", "--set", "compute.slurm.gpus=a100:1", "--set", "compute.slurm.memory=64G")
    assert len(cluster.jobs) == 2


@pytest.mark.process
def test_captures_wait_for_each_other_where_the_disk_is_small(cluster, monkeypatch):
    from mechstudy.runner.slurm.arrays import groups_of
    from mechstudy.study.dag import Graph

    discards = {"phase": "capture", "retention": "discard", "payload": ("*.bin",)}
    units = [unit("model")]
    for i in range(2):
        units += [unit(f"capture[{i}]", ["model"], **discards), unit(f"train[{i}]", [f"capture[{i}]"])]
    units.append(unit("report", ["train[0]", "train[1]"], optional_inputs=True))
    free = {group.key: group.after for group in groups_of(Graph(units))}
    assert free == {"model": [], "capture": ["model"], "train": ["capture"], "report": ["train"]}
    tight = {group.key: group.after for group in groups_of(Graph(units), one_capture_at_a_time=True)}
    assert tight["capture-wave2"] == ["model", "train"] and tight["report"] == ["train", "train-wave2"]


@pytest.mark.parametrize("command", ["submit", "resume", "why", "logs", "cancel"])
def test_every_command_has_help_with_an_example(command):
    assert f"mechstudy {command} study.yaml" in " ".join(mechstudy(command, "--help").output.split())


@pytest.mark.process
def test_the_commands_import_no_torch(cluster):
    code = (
        "import sys; sys.argv = ['mechstudy', 'submit', 'study.yaml', '--dry-run']\n"
        "from mechstudy.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "sys.exit('torch' if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=".")
    assert done.returncode == 0, done.stderr
    assert "train=$(sbatch --parsable " in done.stdout
    assert ROOT and MechstudyError and chain
