"""Profiles of hardware, and this machine as measured."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.planning import machine
from mechstudy.planning.hardware import PROFILES, load_hardware, profile_of_gpu


@pytest.mark.parametrize("name", ["a100-40gb", "a100-80gb", "h100"])
def test_a_profile_says_where_each_of_its_shares_comes_from(name):
    hardware = load_hardware(name)
    assert {"forward", "train", "attribute", "stream", "sparse"} == set(hardware.shares)
    assert all(share.source for share in hardware.shares.values())
    assert hardware.resolved("auto") == "bfloat16"
    assert (PROFILES / f"{name}.yaml").read_text().startswith("# NVIDIA"), "its datasheet"


def test_datasheets_peaks():
    a100, h100 = load_hardware("A100-80GB"), load_hardware("h100")
    assert (a100.flops["bfloat16"], a100.flops["tf32"], a100.flops["float32"]) == (312e12, 156e12, 19.5e12)
    assert (a100.memory_bandwidth, load_hardware("a100-40gb").memory_bandwidth) == (2.039e12, 1.555e12)
    assert (h100.flops["bfloat16"], h100.memory_bandwidth) == (989.4e12, 3.35e12)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("a100", "'a100-40gb' or 'a100-80gb'"), ("A100-8", "'a100-80gb'"), ("a100-80g", "'a100-80gb'"), ("h10", "'h100'"),
     ("h200", "'h100'")],
)  # fmt: skip
def test_an_unknown_profile_is_refused_with_the_likely_ones(name, meant):
    with pytest.raises(MechstudyError, match=f"no hardware profile '{name}'") as error:
        load_hardware(name)
    assert error.value.fix == f"did you mean {meant}?"


def test_one_s_own_profile_is_a_file_and_its_mistakes_have_lines(tmp_path):
    text = (PROFILES / "h100.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("name: H100", "name: mine") + "price_per_su: 0.5\n")
    mine = load_hardware(str(tmp_path / "mine.yaml"))
    assert (mine.name, mine.price_per_su) == ("mine", 0.5)
    (tmp_path / "mine.yaml").write_text(text.replace("memory_bandwidth: 3.35e12", "memory_bandwidth: fast"))
    with pytest.raises(MechstudyError, match="memory_bandwidth"):
        load_hardware(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("described", "name"),
    [
        ("NVIDIA A100-SXM4-40GB, 535.1, 40960 MiB", "A100-40GB"),
        ("NVIDIA A100-SXM4-80GB, 535.1, 81920 MiB", "A100-80GB"),
        ("NVIDIA H100 80GB HBM3, 550.1, 81559 MiB", "H100"),
        ("NVIDIA GeForce GTX 1080, 8192 MiB", None),
    ],
)
def test_a_gpu_is_known_by_its_name(described, name):
    found = profile_of_gpu(described)
    assert (found and found.name) == name


def test_this_machine_is_measured_once_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("MECHSTUDY_CACHE", str(tmp_path))
    monkeypatch.setattr(machine, "SECONDS", 0.01)
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    found = machine.this_machine("cpu", 1)
    assert "other work" not in found.source
    assert found.is_here and found.flops["float32"] > 1e8 and found.memory_bandwidth > 1e8
    monkeypatch.setattr(machine, "quick", lambda threads: pytest.fail("measured again"))
    assert machine.this_machine("cpu", 1) == found


def test_what_is_measured_beside_other_work_is_measured_again_later(tmp_path, monkeypatch):
    monkeypatch.setenv("MECHSTUDY_CACHE", str(tmp_path))
    monkeypatch.setattr(machine, "SECONDS", 0.01)
    now, measured, quick = [1000.0], [], machine.quick
    monkeypatch.setattr(machine.time, "time", lambda: now[0])
    monkeypatch.setattr(machine, "quick", lambda threads: measured.append(now[0]) or quick(threads))
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (9.0 * os.cpu_count(),) * 3)
    assert "other work ran here" in machine.this_machine("cpu", 1).source
    now[0] += 599
    machine.this_machine("cpu", 1)
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    now[0] += 2
    assert "other work" not in machine.this_machine("cpu", 1).source
    now[0] += 1e6
    machine.this_machine("cpu", 1)
    assert measured == [1000.0, 1601.0]


def test_torch_measures_both_precisions_and_the_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("MECHSTUDY_CACHE", str(tmp_path))
    monkeypatch.setattr(machine, "SECONDS", 0.001)
    monkeypatch.setattr(machine, "WIDTHS", (32,))
    monkeypatch.setattr(machine, "BLOCK", 1 << 20)
    found = machine.measure(tmp_path, 48, 96, 1)
    assert set(found.measured) == {"float32", "bfloat16"}
    assert set(found.measured["float32"]) == {"32", "48", "96"}
    assert found.disk_read > 0 and found.auto in ("float32", "bfloat16")
    assert machine.this_machine("cpu", 1).measured == found.measured
    assert [path.name for path in tmp_path.iterdir() if "speed" in path.name] == []


def test_measuring_for_a_plan_needs_no_torch(tmp_path):
    code = (
        "import sys; from mechstudy.planning.machine import this_machine;"
        "this_machine('cpu', 1); sys.exit('torch' in sys.modules)"
    )
    environment = {"MECHSTUDY_CACHE": str(tmp_path), "PATH": "/usr/bin:/bin"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
