"""Phase 0a: the model, loaded and checked by exact identities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from mechstudy import models
from mechstudy.core.work import Estimate, Work, flops_of
from mechstudy.machine.runtime import Runtime
from mechstudy.store.artifact_writer import ArtifactWriter
from mechstudy.store.manifest import sha256_of
from mechstudy.study.costs import TYPICAL_PROMPT
from mechstudy.study.fingerprints import model_fingerprint
from mechstudy.study.phases.base import Output, Phase, Spec
from mechstudy.study.unit import Unit
from mechstudy.study.units import StudyPlan

if TYPE_CHECKING:
    from mechstudy.models.language_model import LanguageModel


class ModelSpec(Spec):
    """The model of a study: its source, precision and the fingerprint of its files."""

    optional: ClassVar[frozenset[str]] = frozenset({"chat_instruction"})

    source: str
    dtype: str
    trust_remote_code: bool
    chat: bool
    fingerprint: str
    chat_instruction: str | None = None


@dataclass(frozen=True)
class NoInputs:
    """A phase that reads no other unit."""


class ModelArtifact(Output):
    """A validated model: ``model.json``."""

    @property
    def chat_instruction(self) -> str | None:
        """The user's turn that prompts reply to, if prompts are chat replies."""
        instruction: str | None = self.spec.get("chat_instruction")
        return instruction

    def load(self, runtime: Runtime, dtype: str | None = None, *, exact: bool = False) -> LanguageModel:
        """The study's model, in its own precision or another; kept loaded between units of one process.

        ``auto`` is bfloat16 or float32, whichever is faster; the manifest's runtime records it. With ``exact`` it
        never uses TF32, whatever ``compute.tf32`` says, since graphs and interventions measure small differences.
        """
        dtype = dtype or str(self.spec["dtype"])
        if dtype == "auto":
            shapes = self.read_json("model.json")
            measured = runtime.group.broadcast.get("model_dtype")  # by the leader: all processes must agree
            dtype = measured or models.faster_dtype(shapes["d_model"], shapes["d_mlp"], runtime.device)
            runtime.chosen["model_dtype"] = dtype
        key = ("model", self.id, dtype, runtime.device)
        if key not in runtime.cache:
            folder = models.resolve_source(self.spec["source"], base=runtime.base)
            runtime.cache[key] = models.load_folder(
                folder, dtype=dtype, device=runtime.device, trust_remote_code=self.spec["trust_remote_code"]
            )
        model: LanguageModel = runtime.cache[key]
        model.tf32 = runtime.options.tf32 and not exact
        if model.tf32:
            runtime.chosen["tf32"] = "on"
        return model


class ModelPhase(Phase[ModelSpec, NoInputs]):
    """Loads and validates the model."""

    kind = name = "model"
    title, report_field = "Model", "model"
    version = 1
    spec, inputs = ModelSpec, NoInputs

    def units(self, plan: StudyPlan) -> Iterator[Unit]:
        m = plan.study.model
        spec = ModelSpec(
            source=m.source,
            dtype=m.dtype,
            trust_remote_code=m.trust_remote_code,
            chat=m.chat,
            fingerprint=plan.fingerprint,
            chat_instruction=m.chat_instruction if m.chat else None,
        )
        yield plan.unit(self, self.kind, spec, estimate=self.estimate(plan))

    def estimate(self, plan: StudyPlan) -> Estimate:
        """Loading, reading every file for its checksum, and the forward passes of the checks."""
        x, costs = plan.shapes, plan.costs
        held = costs.model(plan.study.model.dtype)
        check = costs.forward(2 * TYPICAL_PROMPT, x.n_layers, "float32", batches=4)
        weights = 4.0 * x.n_parameters
        return Estimate(
            bytes_on_disk=700,
            bytes_in_memory=held.bytes() + costs.block_bytes(TYPICAL_PROMPT) * x.n_layers,
            flops=flops_of(check),
            note="load and validate",
            shapes={"parameters": f"{x.n_parameters:,}", "layers": str(x.n_layers), "width": str(x.d_model)},
            holds=(held,),
            work=(Work("load", weights), Work("read", weights), *check),
        )

    def run(self, spec: ModelSpec, inputs: NoInputs, out: ArtifactWriter, runtime: Runtime) -> None:
        """Writes ``model.json``: what the model is, its files' checksums, and the residual of every check."""
        folder = models.resolve_source(spec.source, base=runtime.base)
        model = models.load_folder(
            folder, dtype=spec.dtype, device=runtime.device, trust_remote_code=spec.trust_remote_code
        )
        runtime.cache["model", out.id, spec.dtype, runtime.device] = model
        config = model.hf.config
        out.write_json(
            "model.json",
            {
                "name": model.name,
                "source": spec.source,
                **({"revision": revision} if (revision := models.hub_revision(folder)) else {}),
                "family": model.arch.name,
                "model_type": models.read_config(folder)["model_type"],
                "n_layers": model.n_layers,
                "d_model": model.d_model,
                "d_mlp": model.d_mlp,
                "n_heads": config.num_attention_heads,
                "n_kv_heads": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
                "vocab_size": model.vocab_size,
                "n_parameters": sum(p.numel() for p in model.hf.parameters()),
                "dtype": spec.dtype,
                "checks": models.validate_model(model),
                "files_sha256": {path.name: sha256_of(path) for path in models.weight_files(folder)},
            },
        )

    def changed(self, spec: ModelSpec, base: Path) -> str | None:
        """The model, if its files have changed."""
        folder = models.local_folder(spec.source, base)
        same = folder is not None and model_fingerprint(folder) == spec.fingerprint
        return None if same else f"the model ({spec.source})"
