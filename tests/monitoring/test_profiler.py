"""``--profile``, ``--memory-snapshot`` and the snapshot written when memory runs out."""

from __future__ import annotations

import gc
import json
from pathlib import Path

from mechstudy.machine.runtime import Runtime
from mechstudy.machine.runtime_options import RunOptions
from mechstudy.monitoring.memory_snapshot import Course, describe, live_tensors
from mechstudy.monitoring.profiler import Operator, Recorded, table
from mechstudy.runner.run import Run
from tests.support.toy_units import unit


def test_profile_writes_a_trace_and_a_table_even_of_a_short_unit(tmp_path: Path) -> None:
    options = RunOptions(trace_folder=tmp_path / "profile")
    result = Run(tmp_path, [unit("train[1]", entry="loads_torch"), unit("prompts", entry="digest")], options).execute()
    assert result.exit_code == 0
    trace = json.loads((tmp_path / "profile" / "train-1.trace.json").read_text())
    assert any(event.get("name") == "aten::mm" for event in trace["traceEvents"])
    page = (tmp_path / "profile" / "train-1.txt").read_text()
    assert page.startswith("train[1] on cpu: the first 4 steps, ")
    rows = [line for line in page.splitlines() if "%" in line and line.endswith("[64, 64] x [64, 64]")]
    assert [" 4 " in row for row in rows if "aten::mm" in row] == [True]
    assert "all of it (it counts no steps)" in (tmp_path / "profile" / "prompts.txt").read_text()
    assert max(map(len, page.splitlines())) <= 140


def test_the_table_sums_operators_over_shapes_and_shares_add_up() -> None:
    operators = [
        Operator("aten::mm", "[8, 8] x [8, 8]", 10, 0.6, 0.0, 4000),
        Operator("aten::add", "[8]", 5, 0.3, 0.0, 0),
        Operator("aten::mm", "[2, 2] x [2, 2]", 1, 0.1, 0.0, -10),
    ]
    page = table(Recorded("train[1]", "cpu", 12, 2.0, operators))
    names, shapes = page.split("The same by input shapes")
    assert " 70.0%     700.00       11   63.64 ms    3.99 kB  aten::mm" in names
    assert " 30.0%" in names and " 60.0%" in shapes and " 10.0%" in shapes
    assert "in operators on the CPU      1.000 s   50.0% of the time" in page
    assert "elsewhere                    1.000 s   50.0%" in page
    assert "4 kB  aten::mm" in page.split("Memory allocated")[1]


def test_on_a_gpu_the_table_is_sorted_by_the_gpus_time() -> None:
    page = table(Recorded("u", "cuda", 12, 1.0, [Operator("k", "", 2, 0.1, 0.5, 0)]))
    assert "in kernels on the GPU        0.500 s   50.0% of the time" in page and "GPU ms" in page


def test_live_tensors_are_counted_once_each_by_shape() -> None:
    import torch

    held = [torch.zeros(1234, 7) for _ in range(3)]
    views = [held[0].T, held[0][:5]]
    [group] = [item for item in live_tensors() if "[1234, 7]" in item.what or "[7, 1234]" in item.what]
    assert (group.count, group.bytes) == (3, 3 * 1234 * 7 * 4)
    del held, views
    gc.collect()


def test_memory_snapshot_shows_the_peak_and_its_course(tmp_path: Path) -> None:
    options = RunOptions(snapshot_folder=tmp_path / "profile")
    assert Run(tmp_path, [unit("train[1]", entry="loads_torch")], options).execute().exit_code == 0
    page = (tmp_path / "profile" / "train-1.memory.txt").read_text()
    assert (
        "resident at its peak: " in page and "Tensors alive at the peak" in page and "Resident memory over time" in page
    )
    assert not (tmp_path / "profile" / "train-1.memory.pickle").exists()


def test_when_memory_runs_out_its_content_is_written_and_logged(tmp_path: Path) -> None:
    result = Run(tmp_path, [unit("hungry", entry="hungry", fits=1024)]).execute()
    assert result.exit_code == 0
    page = (tmp_path / "profile" / "hungry.memory.txt").read_text()
    assert page.startswith("hungry on cpu: memory ran out: DefaultCPUAllocator")
    assert "out of memory; what was in it: " in (tmp_path / "log.txt").read_text()


def test_a_long_course_is_at_most_sixty_lines_and_keeps_its_peak() -> None:
    course = Course([(0.05 * i, 10**9 if i == 777 else 10**8) for i in range(5000)], 10**9, 38.85)
    lines = describe("u", Runtime().device, course, "as asked").split("Resident memory over time\n")[1].splitlines()
    assert len(lines) <= 60
    assert sum("#" * 50 in line for line in lines) == 1
