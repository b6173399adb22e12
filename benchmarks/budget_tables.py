"""The specification's tables beside the plan's for Qwen2.5-3B and 7B (docs/explanation/specification.md), as Markdown.

Nothing is run: everything follows from examples/specification.yaml and the profile of an A100 with 40 GB.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.peers import HERE
from mechstudy.core.progress import duration
from mechstudy.core.sizes import human
from mechstudy.planning.hardware import load_hardware
from mechstudy.planning.opened_study import open_study
from mechstudy.planning.plan import Plan, make_plan

STUDY = HERE.parent / "examples" / "specification.yaml"
MODELS = ("Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-7B-Instruct")
# Section 2 and 3 of the document: wall time, GPU-hours, memory of the GPU, storage.
DOCUMENT = {
    "baseline": ("2 h", "2", "15 GB", "100 kB"),
    "capture": ("2-3 h", "3", "20 GB", "500 MB, elsewhere 20 GB"),
    "train": ("12 h on 15 GPUs", "180", "10 GB", "7.5 GB, elsewhere 75 GB"),
    "attribute": ("4-6 h", "6", "30 GB", "100 MB"),
    "intervene": ("6-8 h", "8", "25 GB", "500 MB"),
    "total": ("30 h", "220", "30 GB", "100 GB"),
}


def plan_of(model: str, hardware: str, folder: Path) -> Plan:
    opened = open_study(STUDY, [f"model.source=hf:{model}"], out=folder)
    return make_plan(opened.evaluate(), opened.folder, opened.options, hardware=load_hardware(hardware))


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |")


def head(*cells: str) -> None:
    row(*cells)
    row(*("---" for _ in cells))


def weights(plans: list[Plan]) -> None:
    head("", *(f"{name} of {model.split('/')[1]}" for model in MODELS for name in ("fp32", "bf16")))
    counts = [next(r for r in plan.rows if r.unit == "model").shapes["parameters"] for plan in plans]
    numbers = [int(count.replace(",", "")) for count in counts]
    row("parameters", *(text for count in counts for text in (count, "")))
    row("weights", *(human(n * size) for n in numbers for size in (4, 2)))
    for name, phase in (("inference, peak", "baseline"), ("training a dictionary, peak", "train")):
        cells = [plan.phases()[phase].memory for plan in plans]
        row(name, *(human(size) for cell in cells for size in (cell.float32, cell.bfloat16)))


def phases(plans: list[Plan]) -> None:
    columns = ("document", *(model.split("/")[1] for model in MODELS))
    head("phase", *(f"{what}, {name}" for what in ("GPU-hours", "wall time") for name in columns))
    for phase, (wall, hours, _, _) in DOCUMENT.items():
        totals = [plan.total if phase == "total" else plan.phases()[phase] for plan in plans]
        row(
            phase, hours, *(f"{t.gpu_hours:.3f}" for t in totals), wall, *(duration(t.parallel_seconds) for t in totals)
        )


def storage(plans: list[Plan]) -> None:
    columns = ("document", *(model.split("/")[1] for model in MODELS))
    head("phase", *(f"GPU memory, {name}" for name in columns), *(f"disk, {name}" for name in columns))
    for phase, (_, _, memory, disk) in DOCUMENT.items():
        totals = [plan.total if phase == "total" else plan.phases()[phase] for plan in plans]
        kept = [f"{human(t.bytes_on_disk)} written, {human(t.bytes_kept)} kept" for t in totals]
        row(phase, memory, *(human(t.memory.peak) for t in totals), disk, *kept)


def files(plans: list[Plan]) -> None:
    head("file", "formula", *(model.split("/")[1] for model in MODELS))
    found = []
    for plan in plans:
        capture = next(r for r in plan.rows if r.unit.startswith("capture[subject"))
        train = next(r for r in plan.rows if r.unit == "train[15]")
        rows = sum(n for name, n in capture.payload.items() if name.endswith(".bin") and "norms" not in name)
        rows -= capture.payload["train/index.bin"]
        found.append((rows, capture.payload["train/mlp_out.10.bin"], sum(train.payload.values())))
    names = [
        ("activations of a behaviour's prompts", "15 layers x 5 tokens x width x 2 bytes x 80 prompts"),
        ("one layer of them", "5 tokens x width x 2 bytes x 80 prompts"),
        ("one skip transcoder", "2 x width x 4 width x 4 bytes, biases, thresholds, width x width x 4 of the skip"),
    ]
    for i, (name, formula) in enumerate(names):
        row(name, formula, *(f"{sizes[i]:,}" for sizes in found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hardware", default="a100-40gb")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        plans = [plan_of(model, a.hardware, Path(name) / "run") for model in MODELS]
    for table in (weights, files, phases, storage):
        table(plans)
        print()


if __name__ == "__main__":
    main()
