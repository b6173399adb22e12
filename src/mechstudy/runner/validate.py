"""`mechstudy validate`: tests on the target machine before a long run, each with its numbers and a verdict.

Short pilots of the study's own units calibrate the plan (`budget.calibration`). Memory and speed are measured on the
model itself, convergence by a small SAE trained through the study's own units. All in a temporary folder of the run's.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mechstudy import models
from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import write_json_atomic
from mechstudy.core.progress import Progress, duration
from mechstudy.core.sizes import human
from mechstudy.machine.devices import resolve_device
from mechstudy.machine.memory import available_memory_bytes, peak_rss_bytes, reset_peak_rss
from mechstudy.models.sites import Site
from mechstudy.planning import OpenedStudy, Plan, make_plan, open_study
from mechstudy.planning.calibration import FILE, Calibration, fit_all
from mechstudy.planning.fit import refusal
from mechstudy.planning.hardware import Hardware
from mechstudy.planning.machine import measure, this_machine
from mechstudy.runner.pilots import PilotRuns, pilots_of, run_pilots
from mechstudy.runner.study_run import run_of
from mechstudy.store.artifacts import Artifact
from mechstudy.study.costs import TYPICAL_PROMPT
from mechstudy.study.dag import Evaluation, Graph
from mechstudy.study.phases.base import Phase
from mechstudy.study.phases.corpus import CorpusArtifact, CorpusPhase
from mechstudy.study.phases.prompts import PromptsArtifact, PromptsPhase
from mechstudy.study.phases.train import TrainPhase
from mechstudy.study.run_folder import RunFolder

MIN_R2 = 0.7
MAX_SECONDS = 86_400.0  # a study that would take longer than a day is worth a second thought
_PROMPTS = 10
_TOKENS = 393_216  # with fewer distinct rows, 1,000 steps see each so often that held-out R2 falls behind
_HELD_OUT = 16_384
_BATCH = 2048
_K = 64
_EXPANSION = 4


def validate(opened: OpenedStudy, *, steps: int = 1000, progress: Progress | None = None) -> dict[str, Any]:
    """Runs the tests and writes ``<run>/validate.json``.

    Returns:
        ``{go, layer, tests: [{name, go, text, fix, ...the numbers}], calibration, plan}``.

    Raises:
        MechstudyError: the device does not exist, or a test could not be run at all.
    """
    resolve_device(opened.options.device)
    progress = progress or Progress()
    layer = opened.shapes.n_layers // 2
    folder = RunFolder(opened.folder)
    with folder.lock(), tempfile.TemporaryDirectory(prefix=".validate-", dir=opened.folder) as scratch:
        rough = this_machine(opened.options.device, opened.options.total_threads)
        pilots = run_pilots(opened, Path(scratch) / "pilots", rough, progress)
        hardware = rough
        if rough.device != "cuda":
            progress.log("machine: products, memory, disk")
            sizes = opened.shapes.d_model, opened.shapes.d_mlp
            hardware = measure(Path(scratch), *sizes, opened.options.total_threads)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        calibration = fit_all(pilots_of(pilots, hardware), now, hardware.auto, opened.options.total_threads)
        small = small_study(opened, layer, steps, Path(scratch))
        prompts = _prompts(small, progress)
        tests = _memory_and_speed(opened, prompts, layer, progress)
        gc.collect()
        tests.append(_convergence(small, layer, steps, progress))
    whole = _whole(opened, hardware, calibration)
    tests.append(_budget(opened, whole, pilots))
    verdict = {
        "go": all(test["go"] for test in tests),
        "layer": layer,
        "tests": tests,
        "hardware": hardware.canonical(),
        "calibration": calibration.as_json(),
    }
    write_json_atomic(opened.folder / FILE, verdict)
    return verdict


def _whole(opened: OpenedStudy, hardware: Hardware, calibration: Calibration) -> Plan:
    """The plan of the whole study as if nothing of it were done."""
    with tempfile.TemporaryDirectory(prefix=".validate-", dir=opened.folder) as empty:
        evaluation = Evaluation(Graph(opened.units), RunFolder(Path(empty)).store)
        return make_plan(evaluation, Path(empty), opened.options, hardware=hardware, calibration=calibration)


def _budget(opened: OpenedStudy, plan: Plan, pilots: PilotRuns) -> dict[str, Any]:
    """The whole study by what the pilots took: time with its interval, memory, disk."""
    low, high = plan.interval
    against = refusal(plan, opened)
    short = plan.memory_needed > plan.memory_available and plan.hardware.device == "cpu"
    go = against is None and not short and high <= MAX_SECONDS and not pilots.failed
    failed = [f"{name} cannot run: {why}" for name, why in pilots.failed.items()]
    fixes = [against.fix or against.what] if against is not None else []
    return {
        "name": "budget",
        "go": go,
        "seconds": plan.seconds,
        "low": low,
        "high": high,
        "peak_bytes": plan.memory_needed,
        "available_bytes": plan.memory_available,
        "disk_bytes": plan.disk.needed,
        "pilots": len(pilots.runs),
        "failed": pilots.failed,
        "text": f"the whole study takes {duration(plan.seconds)} [{duration(low)}, {duration(high)}], "
        f"{human(plan.memory_needed)} of {human(plan.memory_available)} of memory, {human(plan.disk.needed)} of disk"
        + "".join(f"; {text}" for text in failed),
        "fix": ", or ".join([*failed, *fixes])
        or "fewer layers, corpus.tokens or training.steps; compute.batch_tokens for memory; or a larger machine",
    }


def small_study(opened: OpenedStudy, layer: int, steps: int, scratch: Path) -> OpenedStudy:
    """The study with one SAE on the middle layer, ten prompts, and at most 400,000 tokens, or what its steps read.

    The bundled corpus is long enough for that, whatever part of it the study uses.
    """
    study = opened.study
    tokens = min(_TOKENS, max(steps, 2) * _BATCH)
    k = study.dictionaries.architecture.k if study.dictionaries.architecture.kind == "sae" else _K
    k = min(k, _EXPANSION * opened.shapes.d_model)
    overrides = [
        *opened.overrides,
        f"dictionaries.layers=[{layer}]",
        "dictionaries.site=mlp_out",
        f"dictionaries.architecture={{kind: sae, activation: topk, expansion: {_EXPANSION}, k: {k}}}",
        f"dictionaries.training.steps={steps}",
        f"dictionaries.training.batch_size={_BATCH}",
        f"corpus.tokens={tokens if study.corpus.source == 'bundled' else min(study.corpus.tokens, tokens)}",
        f"corpus.held_out_tokens={max(min(study.corpus.held_out_tokens, _HELD_OUT), study.corpus.context)}",
        *(f"behaviours.0.n_train={min(b.n_train, _PROMPTS)}" for b in study.behaviours[:1]),
    ]
    return open_study(opened.file, overrides, out=scratch)


def _prompts(small: OpenedStudy, progress: Progress) -> list[Sequence[int]]:
    """Token ids of ten clean prompts of the first behaviour; of a study without any, of as many beginnings of texts."""
    if not small.study.behaviours:
        corpus = CorpusArtifact(_made(small, CorpusPhase, progress)).load()
        rows: list[Sequence[int]] = corpus.train[:_PROMPTS, :TYPICAL_PROMPT].tolist()
        return rows
    pairs = PromptsArtifact(_made(small, PromptsPhase, progress)).pairs("train")
    return [pair.clean_tokens for pair in pairs[:_PROMPTS]]


def _memory_and_speed(
    opened: OpenedStudy, prompts: list[Sequence[int]], layer: int, progress: Progress
) -> list[dict[str, Any]]:
    import torch

    assert opened.model is not None, "the model was fetched when the study was opened"
    options, asked = opened.options, opened.study.model
    torch.set_num_threads(options.total_threads)
    gc.collect()
    reset_peak_rss()
    available = available_memory_bytes()
    device = resolve_device(options.device)
    progress.log("memory: loading the model, one prompt, one layer")
    trusted = asked.trust_remote_code
    model = models.load_folder(opened.model, dtype=asked.dtype, device=device, trust_remote_code=trusted)
    one = torch.tensor([prompts[0]])
    model.forward(one, capture=[Site("mlp_out", layer)], stop_after=layer, logits_at=None)
    memory = _memory(opened, peak_rss_bytes(), available)
    progress.log(f"speed: {len(prompts)} prompts")
    sites = [Site("mlp_out", number) for number in range(model.n_layers)]
    began = time.perf_counter()
    for prompt in prompts:
        model.forward(torch.tensor([prompt]), capture=sites, logits_at="last")
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return [memory, _speed(opened, sum(map(len, prompts)), len(prompts), seconds)]


def _memory(opened: OpenedStudy, peak: int, available: int) -> dict[str, Any]:
    """The measured peak, and what the largest unit takes beside it."""
    largest = max(opened.units, key=lambda unit: unit.estimate.bytes_in_memory)
    overhead = max(0, peak - 4 * opened.shapes.n_parameters)
    needed = overhead + largest.estimate.bytes_in_memory
    return {
        "name": "memory",
        "go": needed <= available,
        "peak_rss_bytes": peak,
        "largest_unit": largest.name,
        "needed_bytes": needed,
        "available_bytes": available,
        "text": f"{human(peak)} at peak for 1 prompt, 1 layer; {largest.name} will take about {human(needed)} of "
        f"{human(available)}",
        "fix": "a smaller model, dictionaries.architecture.expansion or training.batch_size, or more memory",
    }


def _speed(opened: OpenedStudy, n_tokens: int, n_prompts: int, seconds: float) -> dict[str, Any]:
    """The measured rate, and the whole study at it."""
    shapes = opened.shapes
    flops = 2.0 * n_tokens * shapes.n_block_parameters + 2.0 * n_prompts * shapes.vocab_size * shapes.d_model
    rate = flops / seconds
    projected = sum(unit.estimate.flops for unit in opened.units) / rate
    return {
        "name": "speed",
        "go": projected <= MAX_SECONDS,
        "prompts": n_prompts,
        "tokens": n_tokens,
        "seconds": seconds,
        "prompts_per_second": n_prompts / seconds,
        "flops_per_second": rate,
        "projected_seconds": projected,
        "text": f"{n_prompts} prompts in {seconds:.2f}s ({n_prompts / seconds:.3g}/s, {rate / 1e9:.3g} GFLOP/s one by "
        f"one); the whole study at this rate: {duration(projected)}, at most {duration(MAX_SECONDS)} is a go",
        "fix": "fewer layers, corpus.tokens or training.steps, more threads, or a GPU",
    }


def _convergence(small: OpenedStudy, layer: int, steps: int, progress: Progress) -> dict[str, Any]:
    """Held-out R2 of the small SAE."""
    progress.log(f"convergence: an SAE on mlp_out of layer {layer}, {steps:,} steps")
    evaluation = _made(small, TrainPhase, progress, layer=layer).read_json("evaluation.json")
    r2 = evaluation["r2"]
    architecture = small.study.dictionaries.architecture
    return {
        "name": "convergence",
        "go": r2 is not None and r2 > MIN_R2,
        "r2": r2,
        "l0": evaluation["l0"],
        "dead_share": evaluation["dead_share"],
        "steps": steps,
        "k": architecture.k,
        "d_sae": evaluation["d_sae"],
        "text": f"held-out R2 {r2:.3f} after {steps:,} steps ({evaluation['d_sae']:,} features, k={architecture.k}); "
        f"more than {MIN_R2} is a go",
        "fix": "more --steps, another dictionaries.training.lr, or a corpus closer to what the model writes",
    }


def _made(small: OpenedStudy, phase: type[Phase[Any, Any]], progress: Progress, **about: Any) -> Artifact:
    """The artifact of the first such unit, run now, or the error of what failed."""
    name = small.made_by(phase, **about)[0].name
    result = run_of(small, progress, max_parallel=1).execute([name])
    unit = result.unit(name)
    if unit.artifact is not None:
        return unit.artifact
    failure = next(iter(result.failures), None)
    if failure is not None and failure.error is not None:
        raise failure.error
    reason = failure.crash if failure is not None else unit.reason
    raise MechstudyError(f"{name} could not be made: {reason}", facts={"details": failure.trace} if failure else None)
