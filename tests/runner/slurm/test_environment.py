"""The environment of Slurm's commands and of jobs: variables of the user's shell, and lines that fail."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mechstudy._version import __version__
from mechstudy.core.errors import MechstudyError
from mechstudy.machine.runtime_options import RunOptions
from mechstudy.runner.slurm.arrays import Group, script_of
from mechstudy.runner.slurm.commands import environment
from mechstudy.runner.slurm.frozen import Frozen
from mechstudy.study.slurm_config import SlurmConfig
from tests.support.slurm_world import RUN, cluster, layers, mechstudy, statuses, unit, use

__all__ = ["cluster"]
REQUESTS = {
    "SBATCH_TIMELIMIT": "1", "SBATCH_MEM_PER_NODE": "100M", "SBATCH_PARTITION": "short", "SBATCH_NO_REQUEUE": "1",
    "SBATCH_SIGNAL": "TERM@5", "SBATCH_EXPORT": "NONE",
}  # fmt: skip
OUTER_JOB = {
    "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1", "SLURM_MEM_PER_CPU": "100", "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
    "CUDA_VISIBLE_DEVICES": "3", "PMIX_RANK": "0", "TMPDIR": "/scratch/7",
}  # fmt: skip


# ----------------------------------------------------------------------------------------------- variables


@pytest.mark.process
def test_variables_of_the_shell_change_no_request_and_are_named(cluster, monkeypatch):
    use(monkeypatch, [unit("model")])
    for name, value in REQUESTS.items():
        monkeypatch.setenv(name, value)
    said = mechstudy("submit", "study.yaml", "--dry-run").stderr
    assert all(f"{name}={value}" in said for name, value in REQUESTS.items())
    said = mechstudy("submit", "study.yaml").stderr
    assert "jobs get what compute.slurm says: SBATCH_EXPORT=NONE, SBATCH_MEM_PER_NODE=100M" in said
    asked = cluster.jobs["100"]["asked"]
    assert (asked["time"], asked["partition"], asked.get("mem")) == ("01:00:00", "cpu", None)
    assert asked["signal"] == "B:USR1@300"


@pytest.mark.process
def test_nothing_of_an_outer_job_leaks_into_jobs(cluster, monkeypatch):
    use(monkeypatch, [unit("model")])
    for name, value in OUTER_JOB.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
    assert "this shell is in job 7" in mechstudy("submit", "study.yaml").stderr
    inherited = cluster.jobs["100"]["environment"]
    assert OUTER_JOB.keys() & inherited.keys() == set()
    assert inherited["SLURM_CONF"] == "/etc/slurm/slurm.conf"


def test_a_shell_outside_of_jobs_keeps_its_devices_and_folders():
    own = {"CUDA_VISIBLE_DEVICES": "0", "TMPDIR": "/scratch/7", "HOME": "/home/me"}
    assert environment(own) == own
    assert environment(own | {"SLURM_JOB_ID": "8"}) == {"TMPDIR": "/scratch/7", "HOME": "/home/me"}


def test_a_job_is_no_rank_of_the_shell_that_submits_it():
    torchrun = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "node1", "MASTER_PORT": "29500",
                "TORCHELASTIC_RUN_ID": "none"}  # fmt: skip
    own = {"MASTER": "x", "RANKING": "y", "NCCL_SOCKET_IFNAME": "ib0"}
    assert environment(own | torchrun) == own


@pytest.mark.parametrize("option", ["--clusters=other", "--cluster other"])
def test_jobs_of_another_cluster_are_refused(option):
    with pytest.raises(MechstudyError, match="cannot be followed from here"):
        SlurmConfig(extra=(option,))


def test_scripts_say_where_models_are_and_hold_no_token(tmp_path, monkeypatch):
    kept = {"HF_HOME": "/data/hf", "HF_HUB_CACHE": "/data/my hub", "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": "/data/c"}
    for name, value in (kept | {"HF_TOKEN": "hf_secret"}).items():
        monkeypatch.setenv(name, value)
    frozen = Frozen(tmp_path, 1, tmp_path / "study.yaml", (), {"name": "toy"}, layers(1), RunOptions(), SlurmConfig())
    text = script_of(frozen, Group("model", "model", ["model"]), [0], "c")
    assert all(f"export {name}={shlex.quote(value)}\n" in text for name, value in kept.items())
    assert "secret" not in text


HIDING = [
    {"SQUEUE_STATES": "RUNNING"},
    {"SQUEUE_PARTITION": "other"},
    {"SQUEUE_NAMES": "x"},
    {"SQUEUE_ACCOUNT": "other"},
    {"SQUEUE_FORMAT2": "jobid", "SLURM_TIME_FORMAT": "relative"},
    {"SLURM_CLUSTERS": "all"},
]


@pytest.mark.process
def test_squeue_defaults_of_the_user_hide_no_job(cluster, monkeypatch):
    use(monkeypatch, [unit("model")])
    mechstudy("submit", "study.yaml")
    for variables in HIDING:
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            assert statuses() == {"model": "queued"}, variables
            assert "1 units are in the queue already" in mechstudy("resume", "study.yaml").output
            assert "jobs of this study are in the queue" in mechstudy("run", "study.yaml", code=2).stderr
    assert len(cluster.calls("sbatch")) == 1


@pytest.mark.process
def test_jobs_of_a_hidden_partition_are_seen(cluster, monkeypatch):
    use(monkeypatch, [unit("model")])
    mechstudy("submit", "study.yaml", "--set", "compute.slurm.partition=hidden")
    assert statuses() == {"model": "queued"}


# ------------------------------------------------------------------------------------ lines that fail


def refused(cluster, *sets: str) -> tuple[str, str]:
    """Submits with these settings and runs the first job, which must refuse; what `why` and `status` say."""
    words = [word for value in sets for word in ("--set", value)]
    mechstudy("submit", "study.yaml", *words)
    assert cluster.run("100_0") == 2
    assert not list(RUN.glob("artifacts/*/*"))
    found = {
        item["name"]: item for item in json.loads(mechstudy("status", "study.yaml", *words, "--json").stdout)["units"]
    }
    assert found["model"]["status"] == "failed"
    return mechstudy("why", "study.yaml", "model").output, found["model"]["detail"]


@pytest.mark.process
@pytest.mark.parametrize("accounting", [True, False])
def test_a_module_that_is_not_there_ends_the_job_with_that_reason(cluster, monkeypatch, accounting):
    use(monkeypatch, layers(1))
    if not accounting:
        cluster.without("sacct")
    why, status = refused(cluster, "compute.slurm.modules=[nosuch/1.0]")
    assert "module load nosuch/1.0 failed: see compute.slurm.modules" in status
    assert "module load nosuch/1.0 failed" in why and "module avail" in why
    assert "waits for model, which failed" in mechstudy("why", "study.yaml", "train[0]").output
    cluster.run_all()  # the report's job, which ends likewise
    mechstudy("resume", "study.yaml", "--set", "compute.slurm.modules=[]")
    cluster.run_all()
    assert set(statuses().values()) == {"done"}


@pytest.mark.process
def test_a_python_without_mechstudy_or_with_another_is_not_used(cluster, monkeypatch, tmp_path):
    use(monkeypatch, layers(1))
    other = tmp_path / "other"
    (other / "mechstudy").mkdir(parents=True)
    (other / "mechstudy" / "__init__.py").touch()
    (other / "mechstudy" / "_version.py").write_text('__version__ = "0.0.1"\n')
    python(tmp_path / "bin", f"PYTHONPATH={other} ")
    _, status = refused(cluster, f"compute.slurm.activate=export PATH={tmp_path / 'bin'}:$PATH")
    assert f"has mechstudy 0.0.1, not {__version__}" in status and str(tmp_path / "bin" / "python") in status


def python(folder: Path, before: str = "") -> None:
    """A ``python`` that is this one, in another environment."""
    folder.mkdir()
    (folder / "python").write_text(f'#!/bin/sh\n{before}exec {sys.executable} "$@"\n')
    (folder / "python").chmod(0o755)


def outcome(tmp_path: Path, shell: str = "", **slurm) -> tuple[str, str]:
    """Runs a group's script with a stand-in for the unit: ``goes on`` or ``stops``, and the reason that was left."""
    study, asked = {"name": "toy"}, SlurmConfig(**slurm)
    frozen = Frozen(tmp_path / "run", 1, tmp_path / "study.yaml", (), study, layers(1), RunOptions(), asked)
    text = script_of(frozen, Group("model", "model", ["model"]), [0], "c")
    text = shell + "\n" + text.replace("mechstudy=(", "mechstudy=(echo UNIT ")
    where = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_JOB_ID": "5"}
    where["PYTHONPATH"] = ":".join(sys.path)
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, env=where, check=False)
    left = tmp_path / "run" / "slurm" / "refused" / "5_0"
    assert (done.returncode == 2) == left.exists() == ("UNIT" not in done.stdout), done.stderr
    return ("stops" if left.exists() else "goes on"), left.read_text() if left.exists() else ""


MODULE = "module() {{ {body}; }}; export LOADEDMODULES=base"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("LOADEDMODULES=base:$2", "goes on"),
        ("echo 'note: error-free since 2020' >&2; LOADEDMODULES=base:$2", "goes on"),
        ("echo 'a warning' >&2; return 0", "goes on"),
        ("echo 'Lmod has detected the following error: unknown' >&2; return 1", "stops"),
        ("echo 'ERROR:105: Unable to locate a modulefile' >&2; return 0", "stops"),
    ],
)
def test_what_module_says_and_returns_decides(tmp_path, body, expected):
    how, reason = outcome(tmp_path, MODULE.format(body=body), modules=("CUDA/12.1",))
    assert how == expected
    assert expected == "goes on" or "module load CUDA/12.1 failed: see compute.slurm.modules (" in reason


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("conda activate mech", "compute.slurm.activate failed: conda activate mech (exit status 127)"),
        ("~/gone/venv", "compute.slurm.activate failed: ~/gone/venv (exit status 1)"),
        ("source /nowhere/bin/activate", "compute.slurm.activate failed: source /nowhere/bin/activate"),
        ("export PATH=/nowhere", "the python of compute.slurm.activate (none) has no mechstudy"),
        ("false; export PYTHONPATH=", "has no mechstudy: ModuleNotFoundError"),
    ],
)
def test_an_activation_that_fails_stops_the_job(tmp_path, line, says):
    python(tmp_path / "bin")
    if "PYTHONPATH" in line:
        (tmp_path / "bin" / "python").write_text('#!/bin/sh\nexec /usr/bin/python3 -S -E "$@"\n')
    how, reason = outcome(tmp_path, activate=line)
    assert how == "stops" and says in reason


def test_an_activation_that_works_goes_on(tmp_path):
    python(tmp_path / "venv-bin")
    assert outcome(tmp_path, activate=f"export PATH={tmp_path / 'venv-bin'}:$PATH") == ("goes on", "")
    assert outcome(tmp_path) == ("goes on", "")


def test_a_python_that_a_node_lacks_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone" / "python"))
    how, reason = outcome(tmp_path)
    assert how == "stops" and reason.startswith(f"there is no {tmp_path}/gone/python on ")
