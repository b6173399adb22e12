"""The cluster itself, and what the tool relies on in Slurm: facts that are nowhere promised, without the tool."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster.cluster import Cluster
from tests.slurm.runs import wait_until

pytestmark = pytest.mark.slurm

FOREVER = "while :; do sleep 1; done"


def sbatch(cluster: Cluster, folder: Path, command: str, *options: str) -> str:
    return cluster.call(
        "sbatch", "--parsable", f"--output={folder}/%A_%a.log", "--open-mode=append", "--mem=50M", *options,
        f"--wrap={command}",
    ).strip()  # fmt: skip


def states(cluster: Cluster, *jobs: str) -> dict[str, list[str]]:
    """job -> the states of its elements in the queue; none where it has ended."""
    rows = [line.split() for line in cluster.call("squeue", "-h", "-r", "-o", "%F %T").splitlines()]
    return {job: [state for of, state in rows if of == job] for job in jobs}


def ended(cluster: Cluster, *jobs: str) -> None:
    try:
        wait_until(lambda: not any(states(cluster, *jobs).values()), f"jobs {jobs} to end")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{cluster.call('squeue', '-r')}{cluster.call('sinfo')}") from None


def accounted(cluster: Cluster, job: str) -> list[tuple[str, str]]:
    """(job id, state) of every run of a job, requeued ones too."""
    rows = cluster.call("sacct", "-D", "-X", "-n", "-P", "-j", job, "-o", "JobID,State").splitlines()
    return [(id, state.split()[0]) for id, _, state in (row.partition("|") for row in rows)]


@pytest.mark.parametrize("kind", ["afterok", "afterany"])
@pytest.mark.parametrize("elements", ["0-2", "1"])
def test_a_requeued_element_keeps_its_dependent_waiting(cluster, tmp_path, kind, elements):
    again = (
        'echo "run ${SLURM_RESTART_COUNT:-0}"; '
        f'if [ "$SLURM_ARRAY_TASK_ID$SLURM_RESTART_COUNT" = 1 ]; then scontrol requeue $SLURM_JOB_ID; {FOREVER}; fi'
    )
    array = sbatch(cluster, tmp_path, again, f"--array={elements}", "--requeue")
    look = f"grep -c run {tmp_path}/{array}_1.log > {tmp_path}/seen"
    dependent = sbatch(cluster, tmp_path, look, f"--dependency={kind}:{array}", "--kill-on-invalid-dep=yes")
    wait_until(lambda: len(states(cluster, array)[array]) == 1, "two of three elements to end")
    assert states(cluster, dependent) == {dependent: ["PENDING"]}
    ended(cluster, array, dependent)
    assert (tmp_path / "seen").read_text() == "2\n", "it ran after both"
    assert (tmp_path / f"{array}_1.log").read_text().count("run ") == 2
    wait_until(lambda: ("COMPLETED") in dict(accounted(cluster, dependent)).values(), "the dependent to be accounted")
    of_element = [state for id, state in accounted(cluster, array) if id == f"{array}_1"]
    assert of_element == ["REQUEUED", "COMPLETED"]


def test_slurm_cancels_afterok_dependents_of_a_failed_element_only(cluster, tmp_path):
    array = sbatch(cluster, tmp_path, "exit $SLURM_ARRAY_TASK_ID", "--array=0-1")
    dependent = sbatch(cluster, tmp_path, "date", f"--dependency=afterok:{array}", "--kill-on-invalid-dep=yes")
    whatever = sbatch(cluster, tmp_path, "date", f"--dependency=afterany:{array}:{dependent}")
    ended(cluster, array, dependent, whatever)
    wait_until(lambda: accounted(cluster, dependent) == [(dependent, "CANCELLED")], "the dependent to be cancelled")
    wait_until(lambda: accounted(cluster, whatever) == [(whatever, "COMPLETED")], "the other to be accounted")


def test_usr1_reaches_the_batch_shell_before_the_limit(cluster, tmp_path):
    """Slurm looks at limits every half minute: of a minute with a lead of 40 seconds, 20 to 50 have passed."""
    job = sbatch(
        cluster, tmp_path, f'trap "echo usr1; exit 0" USR1; {FOREVER}', "--time=1", "--signal=B:USR1@40", "--array=0"
    )
    ended(cluster, job)
    assert (tmp_path / f"{job}_0.log").read_text() == "usr1\n"


def test_gpus_are_handed_out_one_by_one(cluster, tmp_path):
    begun = f"cat {tmp_path}/${{SLURM_ARRAY_JOB_ID}}_*.log | wc -l"
    meet = f"echo $CUDA_VISIBLE_DEVICES; while [ $({begun}) -lt 2 ]; do sleep .2; done"
    job = sbatch(cluster, tmp_path, meet, "--array=0-1", "--gres=gpu:1")
    both = sbatch(cluster, tmp_path, "echo $CUDA_VISIBLE_DEVICES", "--array=0", "--gres=gpu:2")
    ended(cluster, job, both)
    assert sorted((tmp_path / f"{job}_{i}.log").read_text().strip() for i in range(2)) == ["0", "1"]
    assert (tmp_path / f"{both}_0.log").read_text().strip() == "0,1"


def test_a_second_cluster_disturbs_no_other_and_ends_all_it_started(cluster, tmp_path):
    """Down ends a job's process even where it left its session, and leaves processes that are not of its jobs."""
    folder = tmp_path / "c"
    command = [sys.executable, "-m", "tests.slurm.cluster", "--folder", str(folder)]
    root = Path(__file__).parents[2]

    def run_command(*words: str) -> str:
        done = subprocess.run([*command, *words], cwd=root, capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert " is up: " in run_command("up")
    other = Cluster(folder)
    bystander = subprocess.Popen(["sleep", "300"], env=os.environ | {"SLURM_CONF": str(other.layout.slurm_conf)})
    try:
        assert "is up already" in run_command("up")
        sbatch(other, tmp_path, f"setsid sleep 301 & {FOREVER}")
        wait_until(lambda: running("sleep 301"), "the job to run")
        assert "is down" in run_command("down")
        assert not running("sleep 301") and bystander.poll() is None
        assert "no Slurm of ours" in run_command("down")
    finally:
        bystander.kill()
        bystander.wait()
        other.down()
    assert cluster.is_up()
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(folder).encode() in read(path)]


def running(words: str) -> bool:
    return any(
        read(path).replace(b"\0", b" ").strip() == words.encode() for path in Path("/proc").glob("[0-9]*/cmdline")
    )


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_a_restarted_controller_still_knows_its_jobs(cluster, tmp_path):
    go = tmp_path / "go"
    job = sbatch(cluster, tmp_path, f"while [ ! -e {go} ]; do sleep .2; done; echo done", "--array=0-1")
    wait_until(lambda: "RUNNING" in states(cluster, job)[job], "an element to run")
    cluster.restart("slurmctld")
    assert states(cluster, job)[job]
    go.touch()
    ended(cluster, job)
    assert [path.read_text() for path in tmp_path.glob(f"{job}_*.log")] == ["done\n"] * 2
