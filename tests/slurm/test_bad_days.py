"""What a cluster refuses or forgets: a clear message, nothing half submitted, and a state that `resume` mends."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster.cluster import Cluster
from tests.slurm.runs import Submitted, units, wait_until
from tests.slurm.study import write_study

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def fragile(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose controller may be stopped and robbed of its memory without harm to other tests."""
    found = Cluster(tmp_path_factory.mktemp("c") / "c")
    found.up()
    yield found
    found.down()


def recorded(submitted: Submitted) -> list[str]:
    history = json.loads((submitted.run / "slurm" / "submission.json").read_text())["history"]
    return [job["job"] for entry in history for job in entry["jobs"]]


def test_an_unknown_partition_is_named_with_its_line_and_those_there_are(submitted):
    submitted.file.write_text(submitted.file.read_text().replace("slurm: {", "slurm: {partition: gpu_long, "))
    shown = submitted.mechstudy("submit", code=2)
    line = next(i for i, text in enumerate(submitted.file.read_text().splitlines(), 1) if "gpu_long" in text)
    assert f"study.yaml:{line}" in shown and "gpu_long" in shown and "debug" in shown and "short" in shown
    assert submitted.queue() == []


@pytest.fixture
def account(cluster: Cluster) -> Iterator[str]:
    """An account that lets three jobs be submitted and none run."""
    name = "tight"
    cluster.call("sacctmgr", "-i", "add", "account", name, "Description=tests", "Organization=tests", check=False)
    cluster.call("sacctmgr", "-i", "add", "user", "root", f"Account={name}", "MaxSubmitJobs=3", "MaxJobs=0")
    wait_until(lambda: name in cluster.call("scontrol", "show", "assoc_mgr", "flags=assoc"), "the account to be known")
    yield name
    cluster.call("sacctmgr", "-i", "delete", "user", "root", f"Account={name}", check=False)
    cluster.call("sacctmgr", "-i", "delete", "account", name, check=False)


def test_an_account_at_its_limit_cancels_the_rest_and_is_named(submitted, account):
    shown = submitted.mechstudy("submit", "--set", f"compute.slurm.account={account}", code=2)
    assert account in shown and "limit" in shown and "AssocMaxSubmitJobLimit" in shown
    wait_until(lambda: not submitted.queue(), "what was submitted to be cancelled")
    submitted.cluster.call("sacctmgr", "-i", "modify", "user", "root", "where", f"account={account}",
                           "set", "MaxSubmitJobs=-1")  # fmt: skip
    wait_until(lambda: not refused(submitted.mechstudy("resume", code=None)), "the limit to be lifted")
    wait_until(lambda: any("Assoc" in row.reason for row in submitted.queue()), "the limit to be felt")
    assert "account" in submitted.mechstudy("why", "model", code=None)
    submitted.mechstudy("cancel")
    wait_until(lambda: not submitted.queue(), "the jobs to be cancelled")


def refused(shown: str) -> bool:
    return "Slurm refused" in shown


def test_of_two_submits_at_once_one_submits_and_the_other_says_so(submitted):
    command = [sys.executable, "-m", "mechstudy", "submit", str(submitted.file), "--out", str(submitted.run)]
    both = [
        subprocess.Popen(command, env=submitted.environment, cwd=submitted.folder, text=True, stderr=subprocess.PIPE,
                         stdout=subprocess.PIPE)
        for _ in range(2)
    ]  # fmt: skip
    errors = [process.communicate(timeout=400)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2], errors
    error = errors[codes.index(2)]
    assert "another command is at work" in error or "in the queue already" in error
    assert [row.name for row in submitted.queue()].count("tiny-model") == 1
    assert "in the queue already" in submitted.mechstudy("submit", code=2)


def test_a_silent_controller_is_refused_and_a_late_job_is_recovered(fragile, model, tmp_path):
    """The job of an sbatch that timed out may arrive once the controller goes on: it is not to run beside a second."""
    submitted = Submitted(fragile, write_study(tmp_path / "study", model))
    hasty = {"MECHSTUDY_SLURM_SECONDS": "2"}
    fragile.signal("slurmctld", signal.SIGSTOP)
    try:
        shown = submitted.mechstudy("submit", code=2, environment=hasty)
    finally:
        fragile.signal("slurmctld", signal.SIGCONT)
    assert "did not answer in 2 seconds" in shown and "fix" in shown
    wait_until(lambda: "is UP" in fragile.call("scontrol", "ping"), "the controller")
    submitted.mechstudy("submit")
    queued = [row for row in submitted.queue() if row.state != "COMPLETING"]  # the late job is cancelled, and ending
    assert [row.name for row in queued].count("tiny-model") == 1
    assert {row.job for row in queued} <= set(recorded(submitted))
    submitted.cancel_jobs()


def test_jobs_that_slurm_forgot_are_submitted_again_unless_done(fragile, model, tmp_path):
    submitted = Submitted(fragile, write_study(tmp_path / "study", model))
    submitted.mechstudy("submit")
    wait_until(lambda: {"model", "corpus"} <= units(submitted.run), "the first units")
    fragile.signal("slurmctld", signal.SIGKILL)
    forget(fragile)
    wait_until(lambda: not submitted.workers(), "workers of forgotten jobs to end")
    done = units(submitted.run)
    assert submitted.queue() == []
    shown = submitted.mechstudy("why", "report", code=None)
    assert "resume" in shown, shown
    submitted.mechstudy("resume")
    names = {row.name for row in submitted.queue()}
    assert "tiny-report" in names and not names & {f"tiny-{name}" for name in done}
    submitted.cancel_jobs()


def forget(cluster: Cluster) -> None:
    """Starts the controller with no memory of any job."""
    for path in Path(cluster.layout.folder / "state").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    cluster.restart("slurmctld")
