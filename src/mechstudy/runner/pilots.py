"""Pilots: short units of the study itself, run in one process in the study's order, to measure what longer ones take.

A short and a long study differ in tokens, steps and prompts and keep every shape: batch sizes, widths, k. The two
separate a constant from a rate; repeats show how certain that is.
"""

from __future__ import annotations

import gc
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechstudy.core.progress import Progress
from mechstudy.models.sites import parse_layers
from mechstudy.planning import OpenedStudy, open_study
from mechstudy.planning.calibration import Pilot
from mechstudy.planning.cost_model import held_bytes, kind_of, peak_of, seconds_of, together_bytes
from mechstudy.planning.hardware import Hardware
from mechstudy.runner.completion import job_of
from mechstudy.runner.run_unit import run_unit
from mechstudy.runner.study_run import run_of
from mechstudy.store.artifacts import Artifact
from mechstudy.study.phases.baseline import BaselinePhase
from mechstudy.study.phases.capture import CorpusCapturePhase
from mechstudy.study.phases.stream import StreamPhase
from mechstudy.study.phases.train import TrainPhase
from mechstudy.study.unit import Unit

LAYERS = 3  # dictionaries of each pilot study
_BATCHES = {"short": 1, "long": 4}
_PROMPTS = {"short": 1, "long": 3}
_SAMPLES = {"short": 2, "long": 8}
_PAIRS = {"short": 1, "long": 4}
_STEP_SECONDS = 5.0  # that the long training may take, by estimate
_STEPS = (32, 128)
_BASELINE_SECONDS = 3.0
_BATCH_SECONDS = 3.0


@dataclass(frozen=True)
class Run:
    """A pilot as it went."""

    unit: Unit
    seconds: float
    peak_bytes: int


@dataclass
class PilotRuns:
    """Pilots in the order they ran; units that could not run, with the reason."""

    runs: list[Run]
    failed: dict[str, str]


def run_pilots(opened: OpenedStudy, scratch: Path, hardware: Hardware, progress: Progress) -> PilotRuns:
    """Runs both studies in this process; the roughly known ``hardware`` decides how short they are."""
    pilots = PilotRuns([], {})
    cache: dict[Any, Any] = {}
    for size in ("short", "long"):
        study = open_study(opened.file, [*opened.overrides, *_overrides(opened, size, hardware)], out=scratch)
        for key in [key for key in cache if key[0] != "model"]:
            del cache[key]
        for unit in study.units:
            if unit.phase.concludes and size == "short":
                continue  # one report is enough
            for number in range(unit.phase.pilots):
                artifact = _run(study, unit, cache, pilots, again=number > 0)
                if artifact is None:
                    break
            progress.log(_line(unit, pilots))
    cache.clear()
    gc.collect()
    return pilots


def pilots_of(pilots: PilotRuns, hardware: Hardware) -> list[Pilot]:
    """The measured pilots beside the model's prediction for this hardware."""
    loaded: dict[str, int] = {}
    warm: set[str] = set()
    measured = []
    for run in pilots.runs:
        estimate, kind = run.unit.estimate, kind_of(run.unit)
        modelled = seconds_of(estimate, hardware, loaded)
        own = held_bytes(estimate, hardware)
        models = {key: n for key, n in own.items() if key.startswith("model ")}
        before, loaded = loaded, together_bytes(loaded, models)
        planned = peak_of(estimate, hardware, before).bytes
        net = max(0.0, run.seconds - modelled.load)
        peak = run.peak_bytes or planned
        first = run.unit.phase.warms_up and kind not in warm
        measured.append(Pilot(kind, run.unit.name, net, modelled.work, peak, planned, modelled.load, first))
        warm.add(kind)
    return measured


def _overrides(opened: OpenedStudy, size: str, hardware: Hardware) -> Iterator[str]:
    """What makes the study a short or a long pilot."""
    study, shapes = opened.study, opened.shapes
    d, t, i, c = study.dictionaries, study.dictionaries.training, study.interventions, study.corpus
    layers = parse_layers(d.layers, shapes.n_layers)
    # From the middle of each third. What a graph's row costs grows with its depth: in the last layer only the last
    # position matters, and of the first and the last layer's features nearly all rows would be the first one's.
    some = sorted({layers[len(layers) * (2 * i + 1) // (2 * LAYERS)] for i in range(LAYERS)})
    yield f"dictionaries.layers={list(some)}"
    yield f"dictionaries.layers_per_pass={len(some)}"
    yield "dictionaries.variants=[]"
    yield "dictionaries.controls=null"
    yield f"dictionaries.source={d.source}"
    yield f"behaviours=[{_first_behaviour(opened, hardware) if study.behaviours else ''}]"
    yield "baseline.on_fail=continue"
    yield "storage.quota=null"
    batch = _batch_tokens(opened, hardware)
    rows = max(batch, round(1.2 * t.batch_size))
    yield f"corpus.tokens={min(c.tokens, rows * _BATCHES[size])}"
    yield f"corpus.held_out_tokens={min(c.held_out_tokens, max(d.evaluation_tokens, 2048, c.context))}"
    steps = _train_steps(opened, hardware)
    yield f"dictionaries.training.steps={min(t.steps, steps if size == 'long' else max(4, steps // 8))}"
    yield f"dictionaries.training.dead_after_rows={t.resolved_dead_after()}"
    yield f"dictionaries.training.warmup_steps={t.resolved_warmup()}"
    yield f"attribution.n_prompts={min(study.attribution.n_prompts, _PROMPTS[size])}"
    yield f"features.documents={min(study.features.documents, max(1, batch // c.context) * _PROMPTS[size])}"
    yield f"interventions.n_samples={min(i.n_samples, _SAMPLES[size])}"
    yield f"interventions.patching.n_pairs={min(i.patching.n_pairs, _PAIRS[size])}"
    yield f"interventions.n_edges={min(i.n_edges, 10)}"


def _first_behaviour(opened: OpenedStudy, hardware: Hardware) -> str:
    """The first behaviour as YAML, with fewer prompts where its baseline would take long."""
    b = opened.study.behaviours[0]
    baseline = opened.made_by(BaselinePhase)[0]
    share = min(1.0, _BASELINE_SECONDS / max(1e-9, seconds_of(baseline.estimate, hardware).work))
    fewer = {"n_train": max(4, round(b.n_train * share)), "n_test": max(4, round(b.n_test * share))}
    asked = {"n_train": b.n_train, "n_test": b.n_test}
    return json.dumps(b.canonical() | {name: min(n, asked[name]) for name, n in fewer.items()})


def _batch_tokens(opened: OpenedStudy, hardware: Hardware) -> int:
    """The study's tokens per batch; fewer where one would take long."""
    c, t, tokens = opened.study.corpus, opened.study.dictionaries.training, opened.study.compute.batch_tokens
    captures, streams = opened.made_by(CorpusCapturePhase), opened.made_by(StreamPhase)
    if not captures and not streams:
        return tokens
    all_tokens = c.n_rows * c.context if captures else t.steps * t.batch_size
    took = seconds_of((captures or streams)[0].estimate, hardware).work * tokens / all_tokens
    return max(c.context, min(tokens, round(tokens * _BATCH_SECONDS / max(took, 1e-9))))


def _train_steps(opened: OpenedStudy, hardware: Hardware) -> int:
    """Steps of the long training."""
    trainings = opened.made_by(StreamPhase) or opened.made_by(TrainPhase)
    if not trainings:
        return _STEPS[0]
    a_step = seconds_of(trainings[0].estimate, hardware).work / opened.study.dictionaries.training.steps
    return max(_STEPS[0], min(_STEPS[1], round(_STEP_SECONDS / max(a_step, 1e-9))))


def _run(study: OpenedStudy, unit: Unit, cache: dict[Any, Any], pilots: PilotRuns, *, again: bool) -> Artifact | None:
    """Runs a unit unless it is there; ``again`` although it is. None where it cannot run."""
    run = run_of(study, max_parallel=1, quota=None)
    missing = [name for name in run.graph.required(unit.name) if name in pilots.failed]
    if missing:
        pilots.failed.setdefault(unit.name, f"waits for {missing[0]}")
        return None
    evaluation = run.evaluate([unit.name])
    node = evaluation.nodes[unit.name]
    if node.artifact is not None:
        if not again:
            return node.artifact
        run.folder.store.remove(node.artifact)
    evaluation.refresh(unit.name)
    job = job_of(run.folder, evaluation, unit.name, run.options.replace(stage="off"))
    outcome = run_unit(job, cache, io.StringIO())
    if outcome.failed:
        pilots.failed[unit.name] = outcome.reason
        return None
    artifact = evaluation.refresh(unit.name).artifact
    assert artifact is not None
    gpu = artifact.manifest.get("runtime", {}).get("device", "cpu").startswith("cuda")
    peak = artifact.manifest.get("peak_gpu_bytes", 0) if gpu else outcome.peak_rss_bytes
    pilots.runs.append(Run(node.unit, outcome.seconds, peak))
    return artifact


def _line(unit: Unit, pilots: PilotRuns) -> str:
    if unit.name in pilots.failed:
        return f"pilot {unit.name}: {pilots.failed[unit.name]}"
    took = [f"{run.seconds:.1f}s" for run in pilots.runs if run.unit == unit]
    return f"pilot {unit.name}: {', '.join(took) or 'there already'}"
