"""Checks of a machine on made-up ones, and a diagnosis of a run that was really recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mechstudy.cli.app import app
from mechstudy.core.notices import counted
from mechstudy.doctor import disks, machine
from mechstudy.doctor.checks import run_checks
from mechstudy.machine import cgroup
from mechstudy.monitoring.record import Sample, Session, to_lines


def group(root: Path, **files: str) -> Path:
    """A cgroup (version 2) /job of these files below ``root``; the file that says a process is in it."""
    (root / "job").mkdir(parents=True)
    for name, content in files.items():
        (root / "job" / name.replace("_", ".", 1)).write_text(content)
    membership = root / "membership"
    membership.write_text("0::/job\n")
    return membership


def test_limits_of_a_cgroup_are_read_and_no_limit_is_none(tmp_path: Path) -> None:
    membership = group(tmp_path / "a", cpu_max="150000 100000\n", memory_max="8000000000\n")
    assert cgroup.cpu_quota(tmp_path / "a", membership) == 1.5
    assert cgroup.memory_limit(tmp_path / "a", membership) == 8_000_000_000
    membership = group(tmp_path / "b", cpu_max="max 100000\n", memory_max="max\n")
    assert cgroup.cpu_quota(tmp_path / "b", membership) is None
    assert cgroup.memory_limit(tmp_path / "b", membership) is None


def test_too_many_threads_are_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "cpu", lambda: {"model": "X", "count": 64, "usable": 64, "flags": ["avx2"]})
    monkeypatch.setattr(cgroup, "cpu_quota", lambda: 4.0)
    monkeypatch.setattr(cgroup, "usable_cores", lambda: 4.0)
    found = {check.name: check for check in machine.cores({"OMP_NUM_THREADS": "64"})}
    assert found["CPU quota"].status == "warn" and "compute.threads: 4" in found["CPU quota"].fix
    assert found["OMP_NUM_THREADS"].found == "64 threads on 4 cores"


def test_a_folder_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    room, speed, locks = disks.folder("run folder", tmp_path / "runs" / "new")
    assert "free" in room.found and "MB/s" in speed.found.replace("GB/s", "MB/s")
    assert locks.status == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_bad(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    [check] = disks.folder("run folder", tmp_path / "runs")
    assert check.status == "bad" and "folder" in check.fix


def test_full_disk_is_bad_and_a_memory_disk_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 10**8

    monkeypatch.setattr(disks.shutil, "disk_usage", lambda _: Usage)
    assert disks.free_space("run folder", tmp_path, "ext4").status == "bad"
    Usage.free = 10**12
    assert disks.free_space("run folder", tmp_path, "ext4").status == "ok"
    assert disks.free_space("run folder", tmp_path, "tmpfs").status == "warn"
    assert "shared by machines" in disks.free_space("run folder", tmp_path, "lustre").found


def test_error_of_an_unreachable_cluster_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no Slurm here" in machine.slurm()[0].found
    for name in ("sbatch", "squeue", "scancel", "scontrol", "sinfo", "sacct"):
        script = tmp_path / name
        script.write_text("#!/bin/sh\necho 'slurm_load_partitions: Unable to contact' >&2\nexit 1\n")
        script.chmod(0o755)
    [check] = machine.slurm()
    assert check.status == "warn" and "Unable to contact" in check.found
    (tmp_path / "sinfo").write_text("#!/bin/sh\necho 'gpu* up 4 64 500000 gpu:a100:4'\n")
    answers, accounting = machine.slurm()
    assert answers.status == "ok" and "gpu* up 4 64 500000 gpu:a100:4" in answers.found
    assert accounting.found.startswith("none (")


def test_a_hub_that_is_not_asked_is_ok_and_one_that_is_not_reached_is_a_warning() -> None:
    assert machine.hub({"HF_HUB_OFFLINE": "1"})[0].status == "ok"
    [check] = machine.hub({"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert check.status == "warn" and "is not reached" in check.found and "path:" in check.fix


def test_a_check_that_fails_is_a_warning_and_the_others_go_on() -> None:
    def broken_check() -> list[Any]:
        raise RuntimeError("no /proc here")

    broken, sound = run_checks({"cores": broken_check, "hub": lambda: machine.hub({"HF_HUB_OFFLINE": "1"})})
    assert (broken.name, broken.status, sound.status) == ("cores", "warn", "ok")
    assert broken.found == "could not be checked: RuntimeError: no /proc here"


# --------------------------------------------------------------------------------------------------- a run

STUDY = "name: mine\nmodel: {source: 'path:model'}\nbehaviours: [{name: antonym}]\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with a training that read slowly, and a study file in it."""
    folder = tmp_path / "artifacts" / "train"
    folder.mkdir(parents=True)
    (tmp_path / "study.yaml").write_text(STUDY)
    samples = [Sample(100.0, cpu=40.0, machine_cpu=42.0, rss=10**9, read=5 * 10**9, write=0, wait_io=60.0)]
    session = Session("train[1]", "train", threads=2, cores=2, usable=2.0, memory_bytes=10**10, samples=samples)
    (folder / "train-1-abc.usage.jsonl").write_text(to_lines([session]))
    return tmp_path


def test_doctor_of_a_run_names_the_cause_the_numbers_and_the_field(run: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", str(run)])
    assert done.exit_code == 0, done.output
    assert "train: 1m40s, threads busy 20%, expected 70%-100% of its threads, low" in done.stdout
    assert "reading data: some process waited for a disk 60% of the time; read 50 MB/s" in done.stdout
    assert "change compute.stage: auto" in done.stdout


def test_usage_of_a_run_as_a_table_and_as_json(run: Path) -> None:
    done = CliRunner().invoke(app, ["usage", str(run), "--json"])
    [phase] = json.loads(done.stdout)["phases"]
    assert (phase["phase"], phase["verdict"], phase["busy"]) == ("train", "low", 0.2)
    assert [cause["name"] for cause in phase["bottlenecks"]] == ["reading data"]
    assert "5 GB" in CliRunner().invoke(app, ["usage", str(run)]).stdout


def test_a_run_without_usage_says_so(run: Path) -> None:
    next(run.glob("artifacts/train/*.usage.jsonl")).unlink()
    assert "no usage is recorded here" in CliRunner().invoke(app, ["doctor", str(run)]).stdout


def test_one_check_is_counted_as_one():
    assert [counted(n, "check") for n in (0, 1, 1200)] == ["0 checks", "1 check", "1,200 checks"]
