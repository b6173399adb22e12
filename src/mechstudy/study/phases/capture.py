"""Phase 2: activations of a behaviour's prompts, and of the corpus, into stores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from mechstudy import activations, models
from mechstudy.activations.config import (
    Dtype,
    PromptCaptureConfig,
    same_for_every_prompt,
    site_bytes,
    store_bytes,
    store_files,
)
from mechstudy.activations.quota import Quota, require_room
from mechstudy.core.config import Config
from mechstudy.core.jsonio import read_json, write_json_atomic
from mechstudy.core.work import Estimate, Work
from mechstudy.machine.runtime import Runtime
from mechstudy.models.sites import Site, SiteKind
from mechstudy.monitoring.expected_usage import PhaseProfile
from mechstudy.store.artifact_writer import ArtifactWriter
from mechstudy.study.costs import LENGTHS, TYPICAL_PROMPT
from mechstudy.study.phases.base import Command, Flag, Output, Phase
from mechstudy.study.phases.baseline import BaselinePhase
from mechstudy.study.phases.corpus import CorpusArtifact, CorpusPhase
from mechstudy.study.phases.model import ModelArtifact, ModelPhase
from mechstudy.study.phases.prompts import N_SAMPLES, PromptsArtifact, PromptsPhase
from mechstudy.study.published import layers_of
from mechstudy.study.study import BehaviourConfig
from mechstudy.study.unit import Unit
from mechstudy.study.units import StudyPlan, span

if TYPE_CHECKING:
    from torch import Tensor

    from mechstudy.activations.store import Store

SPLITS = ("train", "held_out")
_PARTS = "parts.json"  # in the scratch folder: how a corpus capture by several processes is divided
_WINDOW_BYTES = 4 << 20  # of each site, waiting to be shuffled


@dataclass(frozen=True)
class PromptCaptureInputs:
    """The model and the prompts it reads."""

    model: ModelArtifact
    prompts: PromptsArtifact


class CaptureArtifact(Output):
    """Activation stores, one per split."""

    def store(self, split: str) -> Store:
        """The store of a split."""
        return activations.Store(self.path / split)


class PromptCapturePhase(Phase[PromptCaptureConfig, PromptCaptureInputs]):
    """Captures chosen positions of a behaviour's prompts."""

    kind = "capture_prompts"
    per = "behaviour"
    name = "capture"
    title = "Capture"
    version = 2  # sums by chunk, checksums
    spec, inputs = PromptCaptureConfig, PromptCaptureInputs
    retention, payload = "regenerate", ("*.bin",)
    resumes = True
    usage = PhaseProfile(gpu=(0.60, 0.80))
    calibrated_as = "capture"
    command = Command(
        "capture",
        "mechstudy capture study.yaml --layers 10-24 --n-samples 40 --prompts",
        flags=(
            Flag("layers", str, "", overrides=lambda _, layers: [f'capture.layers="{layers}"']),
            N_SAMPLES,
            Flag("prompts", bool, "Capture the prompts alone, not the corpus."),
        ),
        by_layer=True,
        shared=True,
        select=lambda unit, values: not values.get("prompts") or unit.behaviour is not None,
    )

    def units(self, plan: StudyPlan) -> Iterator[Unit]:
        layers = layers_of(plan.study.capture.layers, plan.shapes.n_layers, "capture.layers")
        spec = plan.study.capture.model_copy(update={"layers": layers})
        for b in plan.study.behaviours:
            inputs = [*plan.inputs("model", ModelPhase), *plan.inputs("prompts", PromptsPhase, behaviour=b.name)]
            yield plan.unit(
                self,
                f"capture[{b.name}]",
                spec,
                inputs,
                behaviour=b.name,
                gates=plan.gates(BaselinePhase, b),
                estimate=self.estimate(plan, b, layers),
            )

    def estimate(self, plan: StudyPlan, b: BehaviourConfig, layers: Sequence[int]) -> Estimate:
        """A forward pass over every prompt; files are exact where every prompt has as many rows."""
        c, x, costs = plan.study.capture, plan.shapes, plan.costs
        sizes = [costs.n_prompts(b)[split] * len(c.versions) for split in c.splits]
        each = c.positions.count(TYPICAL_PROMPT)
        exact = b.file is None and same_for_every_prompt(c.positions.items)
        sites = {f"{kind}.{layer}": x.width(kind) for layer in layers for kind in c.sites}
        payload: dict[str, int] = {}
        for split, n in zip(c.splits, sizes, strict=True):
            payload |= {f"{split}/{name}": size for name, size in store_files(n * each, sites, c.dtype).items()}
        n, rows = sum(sizes), sum(sizes) * each
        tokens, depth, dtype = n * TYPICAL_PROMPT, max(layers) + 1, plan.study.model.dtype
        work = costs.forward(tokens, depth, dtype, batches=LENGTHS * len(sizes))
        batch = min(tokens, costs.batch)
        estimate = costs.of_model(
            costs.model(dtype, blocks=depth),
            store_bytes(rows, sites.values(), c.dtype),
            costs.block_bytes(batch) + 4 * batch * sum(sites.values()),
            [*work, Work("write", sum(payload.values()))],
        )
        return replace(
            estimate,
            exact=exact,
            payload=payload if exact else {},
            note=f"{n} prompts x {c.positions.value} x {len(layers)} layers",
            shapes={"rows": f"{rows:,} x {len(sites)} sites"},
        )

    def writes(self, spec: Mapping[str, Any]) -> bool:
        """Captures of prompts choose positions."""
        return "positions" in spec

    def run(
        self, spec: PromptCaptureConfig, inputs: PromptCaptureInputs, out: ArtifactWriter, runtime: Runtime
    ) -> None:
        """Writes one store per split: ``train/``, ``test/``."""
        model = inputs.model.load(runtime)
        if runtime.group.size > 1:
            with runtime.group.sharing():
                self.share(spec, inputs, out, runtime)
        for split in spec.splits:
            activations.capture_prompts(
                model,
                inputs.prompts.pairs(split),
                spec.resolve_sites(model.n_layers),
                spec.positions,
                out.path / split,
                versions=spec.versions,
                dtype=spec.dtype,
                batch_tokens=runtime.batch_tokens,
                progress=runtime.progress,
                quota=_quota(out, runtime),
                kept=out.scratch / split,
            )

    def share(
        self, spec: PromptCaptureConfig, inputs: PromptCaptureInputs, out: ArtifactWriter, runtime: Runtime
    ) -> None:
        """Captures this process' batches of prompts into the scratch folder."""
        group, model = runtime.group, inputs.model.load(runtime)
        sites = spec.resolve_sites(model.n_layers)
        for split in spec.splits:
            pairs = inputs.prompts.pairs(split)
            batches = activations.PromptBatches.of(pairs, spec.positions, spec.versions, runtime.batch_tokens)
            activations.keep_prompts(
                model, batches, sites, out.scratch / split, group.rank, group.size, runtime.progress
            )


class CorpusCaptureSpec(Config):
    """Sites of several layers, captured in one pass over the corpus."""

    layers: tuple[int, ...]
    sites: tuple[SiteKind, ...]
    dtype: Dtype
    model_dtype: Literal["auto", "float32", "bfloat16", "float16"]
    seed: int

    def resolved_sites(self) -> list[Site]:
        """Every site, by layer."""
        return [Site(kind, layer) for layer in self.layers for kind in self.sites]


@dataclass(frozen=True)
class CorpusCaptureInputs:
    """The model and the token rows it reads."""

    model: ModelArtifact
    corpus: CorpusArtifact


class CorpusCapturePhase(Phase[CorpusCaptureSpec, CorpusCaptureInputs]):
    """Captures rows for dictionary training, shuffled as they are written."""

    kind = name = "capture"
    title = "Capture"
    version = 2
    spec, inputs = CorpusCaptureSpec, CorpusCaptureInputs
    retention, payload = "discard", ("*.bin",)
    resumes = True
    usage = PhaseProfile(
        gpu=(0.60, 0.80),
        when_writing="dictionaries.store_dtype: int8 (half the bytes), or dictionaries.source: stream (none)",
    )
    calibrated_as = "capture corpus"
    pilots, warms_up = 2, True
    command = PromptCapturePhase.command

    def units(self, plan: StudyPlan) -> Iterator[Unit]:
        """One unit per group of layers, if the study stores rows."""
        d = plan.study.dictionaries
        if d.source != "store":
            return
        for wave, layers in enumerate(plan.layer_groups):
            spec = CorpusCaptureSpec(
                layers=layers,
                sites=tuple(dict.fromkeys(d.sites())),
                dtype=d.store_dtype,
                model_dtype=d.model_dtype,
                seed=plan.seed("capture[corpus]", "permutation"),
            )
            inputs = [*plan.inputs("model", ModelPhase), *plan.inputs("corpus", CorpusPhase)]
            unit = f"capture[corpus:{span(layers)}]"
            yield plan.unit(self, unit, spec, inputs, wave=wave, estimate=self.estimate(plan, layers))

    def estimate(self, plan: StudyPlan, layers: Sequence[int]) -> Estimate:
        """A forward pass over the corpus, and files that are exact."""
        d, c, x, costs = plan.study.dictionaries, plan.study.corpus, plan.shapes, plan.costs
        kinds = list(dict.fromkeys(d.sites()))
        sites = {f"{kind}.{layer}": x.width(kind) for layer in layers for kind in kinds}
        payload: dict[str, int] = {}
        for split, rows in (("train", c.train_rows), ("held_out", c.held_out_rows)):
            files = store_files(rows * c.context, sites, d.store_dtype)
            payload |= {f"{split}/{name}": size for name, size in files.items() if rows}
        tokens, depth = c.n_rows * c.context, max(layers) + 1
        size, batch = sum(payload.values()), min(tokens, costs.batch)
        batches = -(-tokens // costs.batch)
        work = [
            *costs.forward(tokens, depth, d.model_dtype, batches=batches, context=c.context),
            Work("write", size),
            Work("stream", 2.0 * size),  # checksums
        ]
        working = costs.block_bytes(batch) + 4 * batch * sum(sites.values()) + 2 * _WINDOW_BYTES * len(sites)
        held = costs.model(d.model_dtype, blocks=depth, embedding=True)
        estimate = costs.of_model(held, size, working, work)
        shapes = {"rows": f"{tokens:,} x {len(sites)} sites x {next(iter(sites.values()))}"}
        return replace(estimate, exact=True, payload=payload, shapes=shapes)

    def writes(self, spec: Mapping[str, Any]) -> bool:
        """Captures of a corpus have every position."""
        return "positions" not in spec

    def run(self, spec: CorpusCaptureSpec, inputs: CorpusCaptureInputs, out: ArtifactWriter, runtime: Runtime) -> None:
        """Writes two stores, ``train/`` and ``held_out/``, rows permuted; an interrupted capture resumes."""
        model = inputs.model.load(runtime, spec.model_dtype)
        sites, quota = spec.resolved_sites(), _quota(out, runtime)
        widths = {site: model.width(site) for site in sites}
        n_rows = sum(rows.numel() for _, rows in _splits(inputs))
        require_room(out.path, widths, n_rows, spec.dtype, quota)
        _remove_foreign_parts(out, runtime)
        for split, rows in _missing(inputs, out):
            largest = site_bytes(rows.numel(), max(widths.values()), spec.dtype)
            activations.stripe(out.path / split, largest, runtime.options.stripe, say=runtime.progress.log)
        if runtime.group.size > 1:
            with runtime.group.sharing(runtime.chosen):
                self.share(spec, inputs, out, runtime)
        for split, rows in _missing(inputs, out):
            if runtime.group.size > 1:
                store = activations.merge(out.path / split)
            else:
                with models.compiled(model, sites, runtime.options.compile, runtime.progress.log):
                    store = activations.capture_corpus(
                        model,
                        rows,
                        sites,
                        out.path / split,
                        dtype=spec.dtype,
                        seed=spec.seed,
                        batch_tokens=runtime.batch_tokens,
                        progress=runtime.progress,
                        quota=quota,
                        checkpoint=out.scratch / f"{split}.checkpoint",
                    )
            lost = {str(site): files.quantisation_fvu for site, files in store.sites.items() if files.quantisation_fvu}
            if lost:
                shares = ", ".join(f"{site} {cost:.1e}" for site, cost in lost.items())
                runtime.progress.log(f"{split}: 8-bit rows, fraction of variance lost: {shares}")
            (out.scratch / f"{split}.done").touch()

    def share(
        self, spec: CorpusCaptureSpec, inputs: CorpusCaptureInputs, out: ArtifactWriter, runtime: Runtime
    ) -> None:
        """Captures this process' part of the stores; a finished part is not captured again."""
        rank, size = runtime.group.rank, runtime.group.size
        model, sites = inputs.model.load(runtime, spec.model_dtype), spec.resolved_sites()
        for split, rows in _missing(inputs, out):
            if activations.part_file(out.path / split, rank, size).exists():
                continue
            with models.compiled(model, sites, runtime.options.compile, runtime.progress.log):
                activations.capture_corpus_part(
                    model,
                    rows,
                    sites,
                    out.path / split,
                    rank,
                    size,
                    dtype=spec.dtype,
                    seed=spec.seed,
                    batch_tokens=runtime.batch_tokens,
                    progress=runtime.progress,
                    quota=_quota(out, runtime),
                    checkpoint=out.scratch / f"{split}.{rank}-of-{size}.checkpoint",
                    label=f"capture of {split}",
                )


def _quota(out: ArtifactWriter, runtime: Runtime) -> Quota | None:
    return None if runtime.options.quota is None else Quota(runtime.options.quota, out.root)


def _remove_foreign_parts(out: ArtifactWriter, runtime: Runtime) -> None:
    """Deletes parts begun by another number of processes, or in other batches.

    Parts of a store must be divided alike: its bytes may not depend on the process that wrote them.
    """
    division = {"processes": runtime.group.size, "batch_tokens": runtime.batch_tokens}
    file = out.scratch / _PARTS
    before = read_json(file) if file.exists() else None
    if before == division or (before is None and runtime.group.size == 1):
        return
    checkpoints = list(out.scratch.glob("*.checkpoint"))
    if checkpoints or any(out.path.glob("*/part-*")):
        begun = "one process" if before is None else f"{before['processes']} processes"
        runtime.progress.log(f"parts begun by {begun} do not fit this run: they are captured again")
    for split in SPLITS:
        activations.remove_parts(out.path / split)
    for checkpoint in checkpoints:
        checkpoint.unlink()
    write_json_atomic(file, division)


def _splits(inputs: CorpusCaptureInputs) -> Iterator[tuple[str, Tensor]]:
    rows = inputs.corpus.load()
    yield from zip(SPLITS, (rows.train, rows.held_out), strict=True)


def _missing(inputs: CorpusCaptureInputs, out: ArtifactWriter) -> list[tuple[str, Tensor]]:
    """The splits whose store is not complete."""
    return [(split, rows) for split, rows in _splits(inputs) if not (out.scratch / f"{split}.done").exists()]
