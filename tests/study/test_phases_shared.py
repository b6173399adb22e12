"""Capture and attribution by several processes: byte for byte one process' artifacts, however it was interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mechstudy.core.jsonio import read_json
from mechstudy.core.progress import NullProgress
from mechstudy.planning.opened_study import open_study
from mechstudy.runner.completion import RunResult
from mechstudy.runner.study_run import execute
from tests.support.tiny_study import write_study

pytestmark = pytest.mark.slow

LOGS = ("scalars.jsonl", "timing.json")
TOKENS = 18_000  # rows of 512 bytes: three windows


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"), tokens=TOKENS, d=256, n_prompts=8, steps=12)


def run(study: Path, folder: Path, size: int, *phases: str) -> RunResult:
    how = {"world_size": size, "threads": size}  # one thread each: what one process has
    opened = open_study(study, [f"compute.{key}={value}" for key, value in how.items()], out=folder)
    targets = [unit.name for unit in opened.units if unit.phase.name in phases]
    return execute(opened, targets, progress=NullProgress())


@pytest.fixture(scope="module")
def one(study, tmp_path_factory) -> Path:
    """A run by one process."""
    folder = tmp_path_factory.mktemp("one")
    assert run(study, folder, 1, "capture", "attribute").exit_code == 0
    return folder


def begun(one: Path, folder: Path, *without: str) -> Path:
    """The run by one process, without the artifacts of some phases."""
    shutil.copytree(one, folder)
    for phase in without:
        shutil.rmtree(folder / "artifacts" / phase)
    return folder


def sums(folder: Path, phase: str) -> dict[str, str]:
    found = {}
    for manifest in folder.glob(f"artifacts/{phase}/*/manifest.json"):
        for name, entry in json.loads(manifest.read_text())["files"].items():
            if not name.startswith(LOGS):
                found[f"{manifest.parent.name}/{name}"] = entry["sha256"]
    return found


def test_two_processes_write_the_artifacts_of_one(study, one, tmp_path):
    folder = begun(one, tmp_path / "run", "capture", "attribute")
    result = run(study, folder, 2, "capture", "attribute")
    assert result.exit_code == 0, result.failures
    assert {"capture[corpus:0-1]", "capture[mine]", "attribute[mine]"} <= set(result.ran)
    for phase in ("capture", "attribute"):
        assert sums(folder, phase) == sums(one, phase)
    for unit in ("capture[corpus:0-1]", "attribute[mine]"):
        artifact = result.unit(unit).artifact
        assert artifact is not None and artifact.manifest["runtime"]["world_size"] == 2
        assert len(artifact.manifest["runtime"]["peak_rss_bytes_of_helpers"]) == 1


def wait_for(found, seconds: float = 180.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.005)
    raise AssertionError("it did not happen")


def kill_a_rank(study: Path, folder: Path, size: int, *phases: str) -> None:
    """Starts a run of several processes and kills one of them, -9, in the midst of its share."""
    code = (
        "import sys; from tests.study.test_phases_shared import run; from pathlib import Path\n"
        "if __name__ == '__main__':\n"
        "    r = run(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])\n"
        "    print(r.failures[0].error); sys.exit(r.exit_code)\n"
    )
    command = [sys.executable, "-c", code, str(study), str(folder), str(size), *phases]
    leader = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)

    def at_work() -> psutil.Process | None:
        for scratch in folder.glob("artifacts/*/*.partial/.scratch"):
            progress = scratch / "ranks" / "1" / "progress.json"
            first = (scratch / "mine-001.json").exists() or "attribute" not in phases  # of a prompt's graphs
            if first and progress.exists() and (state := read_json(progress))["done"] < state["total"]:
                helpers = [p for p in psutil.Process(leader.pid).children() if "spawn_main" in " ".join(p.cmdline())]
                return helpers[0] if helpers else None
        return None

    try:
        os.kill(wait_for(at_work).pid, signal.SIGKILL)
        output, _ = leader.communicate(timeout=180)
    finally:
        leader.kill()
    assert leader.returncode == 2 and "rank 1 of" in output and "killed from outside" in output, output


@pytest.mark.parametrize("after", [1, 3])
def test_a_rank_killed_in_the_midst_of_a_capture_changes_no_byte(study, one, tmp_path, after):
    folder = begun(one, tmp_path / "run", "capture")
    kill_a_rank(study, folder, 2, "capture")
    assert run(study, folder, after, "capture").exit_code == 0
    assert sums(folder, "capture") == sums(one, "capture")


def test_a_rank_killed_in_the_midst_of_attribution_changes_no_byte(study, one, tmp_path):
    folder = begun(one, tmp_path / "run", "attribute")
    kill_a_rank(study, folder, 2, "attribute")
    [partial] = folder.glob("artifacts/attribute/*.partial")
    kept = len(list(partial.glob(".scratch/mine-*.json")))
    assert 0 < kept < 8
    assert run(study, folder, 3, "attribute").exit_code == 0
    assert sums(folder, "attribute") == sums(one, "attribute")


def test_training_by_two_processes_ends_within_rounding_of_one(study, one, tmp_path):
    from mechstudy.dictionaries.dictionary import Dictionary

    two = begun(one, tmp_path / "two", "train", "attribute")
    result = run(study, two, 2, "train")
    assert result.exit_code == 0, result.failures

    def weights(folder: Path) -> Dictionary:
        [found] = folder.glob("artifacts/train/train-0-*/dictionary")
        return Dictionary.load(found)

    a, b = weights(one), weights(two)
    assert float((a.W_dec - b.W_dec).abs().max()) < 1e-3 * float(a.W_dec.abs().max())
    lines = next(two.glob("artifacts/train/train-0-*/scalars.jsonl")).read_text().splitlines()
    assert len(lines) == len(set(lines)), "one rank logs"
