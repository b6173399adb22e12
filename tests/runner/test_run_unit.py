"""Small parts of the engine: the report link, memory between units, devices, which unit starts when."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import NullProgress
from mechstudy.core.work import Estimate
from mechstudy.machine import devices
from mechstudy.machine.devices import resolve_device
from mechstudy.machine.runtime_options import RunOptions
from mechstudy.runner import run as engine
from mechstudy.runner import run_unit as jobs
from mechstudy.runner.run import Run
from mechstudy.runner.run_unit import find_checkpoint, make_room
from mechstudy.store.artifacts import ArtifactStore, artifact_id
from mechstudy.study.phases.baseline import BaselinePhase
from mechstudy.study.run_folder import RunFolder
from tests.support.toy_units import calls, chain, unit


def report_of(folder: Path, value: str):
    return Run(folder, chain(left=value), RunOptions(), NullProgress()).execute().unit("report").artifact


def test_the_report_is_copied_where_links_fail_and_replaced_by_the_newest(tmp_path, monkeypatch):
    first, second = report_of(tmp_path, "1"), report_of(tmp_path, "2")
    assert first is not None and second is not None
    folder = RunFolder(tmp_path)
    link = Path.symlink_to

    def refuse(self, *arguments, **options):
        raise OSError("no links here")

    for make, artifact in ((link, first), (refuse, second), (refuse, first), (link, second)):
        monkeypatch.setattr(Path, "symlink_to", make)
        report = folder.point_report_to(artifact)
        assert (report / "digest").read_bytes() == (artifact.path / "digest").read_bytes()
        assert report.is_symlink() == (make is link)


def test_models_kept_loaded_are_freed_only_when_memory_is_short(monkeypatch):
    large = unit("train[0]", estimate=Estimate(bytes_in_memory=8_000))
    monkeypatch.setattr(jobs, "total_memory_bytes", lambda: 10_000)
    for available, kept in ((9_000, True), (7_000, False)):
        monkeypatch.setattr(jobs, "available_memory_bytes", lambda available=available: available)
        cache, progress = {"model": "large"}, NullProgress()
        make_room(large, cache, progress)
        assert bool(cache) == kept
        assert bool(progress.messages) != kept


@pytest.mark.process
def test_units_run_side_by_side_only_while_their_memory_fits(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "available_memory_bytes", lambda: 50)
    units = [unit(f"a[{i}]", estimate=Estimate(bytes_in_memory=100)) for i in range(3)]
    widths = []
    run = Run(tmp_path, units, RunOptions(max_parallel=3), NullProgress())
    monkeypatch.setattr(run.progress, "log", lambda message: widths.append(message))
    assert run.execute().exit_code == 0
    starts = [line for line in widths if "starts" in line or "done in" in line]
    assert [("starts" in line) for line in starts] == [True, False] * 3, "one at a time, though three may run"
    assert sorted(calls(tmp_path)) == ["a[0]", "a[1]", "a[2]"]


def test_auto_is_the_cpu_without_a_gpu_and_an_absent_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(devices, "_may_have_gpu", lambda: False)
    assert resolve_device("auto") == "cpu"
    with pytest.raises(MechstudyError, match="no device cuda:99"):
        resolve_device("cuda:99")
    with pytest.raises(MechstudyError, match="'gpu' is not a device"):
        resolve_device("gpu")


def test_several_checkpoints_in_a_folder_are_listed(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoint.safetensors").touch()
    with pytest.raises(MechstudyError, match="holds 2 checkpoints") as error:
        find_checkpoint(tmp_path)
    assert "a/checkpoint.safetensors" in str(error.value)
    assert find_checkpoint(tmp_path / "a") == tmp_path / "a" / "checkpoint.safetensors"


@pytest.mark.parametrize(("on_fail", "stops"), [("stop", True), ("continue", False)])
def test_a_baseline_with_on_fail_continue_stops_nothing(tmp_path, on_fail, stops):
    store = ArtifactStore(tmp_path)
    gate = {"passed": False, "on_fail": on_fail, "min_accuracy": 0.8}
    id = artifact_id("baseline", 1, gate, {})
    writer = store.writer("baseline", "baseline[a]", id, version=1, spec=gate, inputs={})
    writer.write_json("summary.json", {"gate": gate, "splits": {}})
    assert (BaselinePhase().gate(writer.publish({})) is not None) == stops
