"""Ctrl-C and SIGTERM to plain runs, by real signals to real processes: saved at a safe point, gone on with, equal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from mechstudy.core.jsonio import read_json
from mechstudy.runner.unit_state import saved
from tests.support.storage_world import make_folder
from tests.support.tiny_study import write_study
from tests.support.toy_units import sums

pytestmark = pytest.mark.process
ROOT = Path(__file__).parents[2]
TOY = """
import sys
from mechstudy.planning import opened_study as opened
from mechstudy.cli import main
from tests.support.toy_units import unit

if __name__ == "__main__":
    opened.build_units = lambda *_: [
        unit("model"),
        *[unit(f"train[{i}]", ["model"], entry="counting", to=80, pause=0.05) for i in range(3)],
    ]
    sys.argv = ["mechstudy", "run", "study.yaml", *sys.argv[1:]]
    main()
"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A folder with a study of three slow units, and the script that runs it."""
    make_folder(tmp_path)
    (tmp_path / "toy.py").write_text(TOY)
    return tmp_path


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *command], cwd=folder, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        text=True, start_new_session=True,
    )  # fmt: skip


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if happened():
            return
        if process.poll() is not None:
            raise AssertionError(process.communicate()[1])
        time.sleep(0.01)
    process.kill()
    raise AssertionError("it did not happen")


def ended(process: subprocess.Popen[str]) -> str:
    """What it said on standard error; none of its processes is left."""
    output = process.communicate(timeout=240)[1]
    end = time.monotonic() + 5  # multiprocessing's own tracker of resources ends when its pipe does
    while (left := [p for p in psutil.process_iter() if _session(p.pid) == process.pid]) and time.monotonic() < end:
        time.sleep(0.05)
    assert not left
    assert "Traceback" not in output, output
    return output


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def states(run: Path, least: int = 3) -> int:
    """How many trainings have saved a few steps."""
    found = [int(path.read_text().split()[0]) for path in run.glob("artifacts/train/*.partial/.scratch/state")]
    return sum(step >= least for step in found)


@pytest.mark.parametrize(
    ("number", "code", "parallel", "everybody"),
    [
        (signal.SIGINT, 130, 1, False),
        (signal.SIGTERM, 143, 2, False),
        (signal.SIGINT, 130, 2, True),
        (signal.SIGTERM, 143, 2, True),
    ],
)
def test_stopped_run_resumes_to_the_same_bytes(
    toy: Path, number: signal.Signals, code: int, parallel: int, everybody: bool
) -> None:
    """``everybody``: the whole process group is signalled, as by a terminal or a batch system."""
    arguments = ["toy.py", "--out", "run", "--set", f"compute.max_parallel={parallel}"]
    process = start(toy, *arguments)
    wait_for(lambda: states(toy / "run") >= parallel, process)
    (os.killpg if everybody else os.kill)(process.pid, number)
    output = ended(process)
    assert process.returncode == code
    n = output.count(": stopped, 1 files saved")
    assert 1 <= n <= parallel and "the same command resumes" in output, output
    assert read_json(toy / "run" / "progress.json")["state"] == "interrupted"
    steps = [int(path.read_text().split()[0]) for path in (toy / "run").glob("artifacts/train/*/.scratch/state")]
    assert len(steps) == n and all(0 < step < 80 for step in steps)
    again = start(toy, *arguments)
    ended(again)
    whole = start(toy, "toy.py", "--out", "whole", "--set", f"compute.max_parallel={parallel}")
    ended(whole)
    assert (again.returncode, whole.returncode) == (0, 0)
    assert sums(toy / "run") == sums(toy / "whole")


@pytest.mark.parametrize("parallel", [1, 2])
def test_second_signal_ends_units_without_a_safe_point(toy: Path, parallel: int) -> None:
    script = (toy / "toy.py").read_text().replace("pause=0.05", "pause=30")
    (toy / "toy.py").write_text(script)
    process = start(toy, "toy.py", "--out", "run", "--set", f"compute.max_parallel={parallel}")
    wait_for(lambda: states(toy / "run", least=1) >= parallel, process)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert "once more ends it at once" in ended(process)
    assert process.returncode == 143 and time.monotonic() - began < 15


def test_unit_without_a_safe_point_finishes_and_no_other_starts(toy: Path) -> None:
    script = TOY.replace('entry="counting", to=80, pause=0.05', 'entry="deaf", pause=1.0')
    (toy / "toy.py").write_text(script)
    process = start(toy, "toy.py", "--out", "run")
    wait_for(lambda: bool(list((toy / "run").glob("artifacts/train/*.partial"))), process)
    process.send_signal(signal.SIGTERM)
    ended(process)
    assert process.returncode == 143
    assert [
        path.name.rpartition("-")[0] for path in (toy / "run" / "artifacts" / "train").iterdir() if path.is_dir()
    ] == ["train-0"]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "n_steps"), [(1, 2000), (2, 300)])
def test_stopped_training_resumes_to_the_same_checksums(tmp_path: Path, size: int, n_steps: int) -> None:
    """The whole command line on a tiny model, in one process and in two that share each unit."""
    write_study(tmp_path, steps=n_steps)
    more = ["--set", f"compute.world_size={size}", "--set", f"compute.threads={size}"]
    more += ["--set", "dictionaries.training.checkpoint_every=100000"]

    def train(out: str) -> subprocess.Popen[str]:
        return start(tmp_path, "-m", "mechstudy", "train", "study.yaml", "--layers", "1", "--out", out, *more)

    def steps(at_least: int) -> bool:
        found = list((tmp_path / "run").glob("artifacts/train/*.partial/.scratch/progress.json"))
        return bool(found) and read_json(found[0]).get("done", 0) >= at_least

    process = train("run")
    wait_for(lambda: steps(10), process)
    process.send_signal(signal.SIGTERM)
    output = ended(process)
    assert process.returncode == 143 and "stopped, step " in output
    [partial] = (tmp_path / "run").glob("artifacts/train/*.partial")
    assert 10 <= saved(partial).steps < n_steps
    for out in ("run", "whole"):
        process = train(out)
        output = ended(process)
        assert process.returncode == 0, output
    assert "resumed at step " in (tmp_path / "run" / "log.txt").read_text()
    assert trained(tmp_path / "run") == trained(tmp_path / "whole")


def trained(run: Path) -> dict[str, str]:
    return {name: sum for name, sum in sums(run).items() if "scalars" not in name and "timing" not in name}
