"""Phase 2: activations of a behaviour's prompts, and of the corpus, into stores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mechstudy.core.jsonio import read_json, write_json_atomic
from mechstudy.machine.runtime import Runtime
from mechstudy.store.artifacts import Artifact, ArtifactWriter

if TYPE_CHECKING:
    from torch import Tensor

    from mechstudy.models.sites import Site

_CUT = "parts.json"  # in the scratch folder: how a corpus capture by several processes is cut


def run_prompts(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """Writes one store per split: ``train/``, ``test/``."""
    from mechstudy.activations.config import PromptCaptureConfig
    from mechstudy.activations.prompt_capture import capture_prompts
    from mechstudy.activations.quota import Quota
    from mechstudy.study.phases.inputs import loaded_model, prompts_of

    config = PromptCaptureConfig.model_validate(spec)
    model = loaded_model(inputs["model"], runtime)
    quota = None if runtime.quota is None else Quota(runtime.quota, out.store.root)
    if runtime.ranks.size > 1:
        with runtime.ranks.helping():
            share_prompts(spec, inputs, out, runtime)
    for split in config.splits:
        capture_prompts(
            model,
            prompts_of(inputs, split),
            config.resolve_sites(model.n_layers),
            config.positions,
            out.path / split,
            versions=config.versions,
            dtype=config.dtype,
            batch_tokens=runtime.batch_tokens,
            progress=runtime.progress,
            quota=quota,
            kept=out.scratch / split,
        )


def share_prompts(
    spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime
) -> None:
    """One process' share: rows of its batches of prompts, kept in the scratch folder."""
    from mechstudy.activations.config import PromptCaptureConfig
    from mechstudy.activations.prompt_capture import PromptBatches, keep_prompts
    from mechstudy.study.phases.inputs import loaded_model, prompts_of

    config, ranks = PromptCaptureConfig.model_validate(spec), runtime.ranks
    model = loaded_model(inputs["model"], runtime)
    sites = config.resolve_sites(model.n_layers)
    for split in config.splits:
        plan = PromptBatches.of(prompts_of(inputs, split), config.positions, config.versions, runtime.batch_tokens)
        keep_prompts(model, plan, sites, out.scratch / split, ranks.rank, ranks.size, runtime.progress)


def run_corpus(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """Writes two stores, ``train/`` and ``held_out/``, rows permuted; resumes where it was killed."""
    from mechstudy.activations.capture import capture_corpus, site_width
    from mechstudy.activations.config import site_bytes
    from mechstudy.activations.quota import Quota, require_room
    from mechstudy.activations.store import Store
    from mechstudy.activations.striping import stripe
    from mechstudy.activations.writer import merge
    from mechstudy.models.compiling import compiled
    from mechstudy.study.phases.inputs import loaded_model

    model = loaded_model(inputs["model"], runtime, spec["model_dtype"])
    sites = _sites(spec)
    quota = None if runtime.quota is None else Quota(runtime.quota, out.store.root)
    widths = {site: site_width(model, site) for site in sites}
    n_rows = sum(rows.numel() for _, rows in _splits(inputs))
    require_room(out.path, widths, n_rows, spec["dtype"], quota)
    _let_go_of_other_parts(out, runtime)
    for split, rows in _missing(inputs, out):
        largest = site_bytes(rows.numel(), max(widths.values()), spec["dtype"])
        stripe(out.path / split, largest, runtime.stripe, say=runtime.progress.log)
    if runtime.ranks.size > 1:
        with runtime.ranks.helping(runtime.chosen):
            share_corpus(spec, inputs, out, runtime)
    for split, rows in _missing(inputs, out):
        store: Store
        if runtime.ranks.size > 1:
            store = merge(out.path / split)
        else:
            with compiled(model, sites, runtime.compile, runtime.progress.log):
                store = capture_corpus(
                    model,
                    rows,
                    sites,
                    out.path / split,
                    dtype=spec["dtype"],
                    seed=spec["seed"],
                    batch_tokens=runtime.batch_tokens,
                    progress=runtime.progress,
                    quota=quota,
                    checkpoint=out.scratch / f"{split}.checkpoint",
                )
        costs = {str(site): files.quantisation_fvu for site, files in store.sites.items() if files.quantisation_fvu}
        if costs:
            told = ", ".join(f"{site} {cost:.1e}" for site, cost in costs.items())
            runtime.progress.log(f"{split}: 8-bit rows, fraction of variance lost: {told}")
        (out.scratch / f"{split}.done").touch()


def share_corpus(
    spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime
) -> None:
    """One process' part of the stores; what it has finished it does not do again."""
    from mechstudy.activations.capture import capture_corpus_part
    from mechstudy.activations.quota import Quota
    from mechstudy.activations.store_parts import part_file
    from mechstudy.models.compiling import compiled
    from mechstudy.study.phases.inputs import loaded_model

    rank, size = runtime.ranks.rank, runtime.ranks.size
    model = loaded_model(inputs["model"], runtime, spec["model_dtype"])
    quota = None if runtime.quota is None else Quota(runtime.quota, out.store.root)
    for split, rows in _missing(inputs, out):
        if part_file(out.path / split, rank, size).exists():
            continue
        with compiled(model, _sites(spec), runtime.compile, runtime.progress.log):
            capture_corpus_part(
                model,
                rows,
                _sites(spec),
                out.path / split,
                rank,
                size,
                dtype=spec["dtype"],
                seed=spec["seed"],
                batch_tokens=runtime.batch_tokens,
                progress=runtime.progress,
                quota=quota,
                checkpoint=out.scratch / f"{split}.{rank}-of-{size}.checkpoint",
                label=f"capture of {split}",
            )


def _let_go_of_other_parts(out: ArtifactWriter, runtime: Runtime) -> None:
    """Deletes parts that other processes began: of another number, or in other batches.

    All parts of a store have to be cut alike, or their bytes would depend on who wrote them.
    """
    from mechstudy.activations.store_parts import remove_parts

    cut, file = {"processes": runtime.ranks.size, "batch_tokens": runtime.batch_tokens}, out.scratch / _CUT
    before = read_json(file) if file.exists() else None
    if before == cut or (before is None and runtime.ranks.size == 1):
        return
    left = [*out.scratch.glob("*.checkpoint"), *out.path.glob("*/part-*")]
    if left:
        begun = "one process" if before is None else f"{before['processes']} processes"
        runtime.progress.log(f"parts begun by {begun} do not fit what runs now: they are captured again")
    for split in ("train", "held_out"):
        remove_parts(out.path / split)
    for checkpoint in out.scratch.glob("*.checkpoint"):
        checkpoint.unlink()
    write_json_atomic(file, cut)


def _sites(spec: Mapping[str, Any]) -> list[Site]:
    from mechstudy.models.sites import Site

    return [Site(kind, layer) for layer in spec["layers"] for kind in spec["sites"]]


def _splits(inputs: Mapping[str, Artifact]) -> Iterator[tuple[str, Tensor]]:
    from mechstudy.corpus.corpus import Corpus

    corpus = Corpus.load(inputs["corpus"].path)
    yield from (("train", corpus.train), ("held_out", corpus.held_out))


def _missing(inputs: Mapping[str, Artifact], out: ArtifactWriter) -> list[tuple[str, Tensor]]:
    """The splits whose store is not complete."""
    return [(split, rows) for split, rows in _splits(inputs) if not (out.scratch / f"{split}.done").exists()]
