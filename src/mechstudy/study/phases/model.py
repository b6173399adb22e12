"""Phase 0a: the model, loaded and checked by exact identities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from mechstudy import models
from mechstudy.core.errors import MechstudyError
from mechstudy.core.work import Estimate, Work, flops_of
from mechstudy.machine.runtime import Runtime
from mechstudy.store.artifact_writer import ArtifactWriter
from mechstudy.store.artifacts import Artifact
from mechstudy.store.digests import file_sha256
from mechstudy.store.manifest import hashable_spec
from mechstudy.study.costs import TYPICAL_PROMPT
from mechstudy.study.fingerprints import (
    Content,
    changed_files,
    model_content,
    model_files,
    model_fingerprint,
    newer_than,
)
from mechstudy.study.phases.base import Output, Phase, Spec
from mechstudy.study.unit import Unit
from mechstudy.study.units import StudyPlan

if TYPE_CHECKING:
    from mechstudy.models.language_model import LanguageModel

FILES = "model_files"  # of the manifest's runtime: the sha256 of every file that was read


class ModelSpec(Spec):
    """The model of a study: its source, precision and the identity of its files (`fingerprints.Content`)."""

    optional: ClassVar[frozenset[str]] = frozenset({"chat_instruction", "sha256"})

    source: str
    dtype: str
    trust_remote_code: bool
    chat: bool
    fingerprint: str
    chat_instruction: str | None = None
    sha256: str | None = None

    def matches(self, folder: Path) -> bool:
        """Whether a folder holds this spec's files; one of an earlier version has no ``sha256`` to compare."""
        if self.sha256 is None:
            return model_fingerprint(folder) == self.fingerprint
        now = content_of(self.source, folder, code=self.trust_remote_code)
        return now == Content(self.fingerprint, self.sha256)

    def folder(self, base: Path) -> Path | None:
        """The model's folder on this machine; None where it has to be fetched.

        Of a hub's snapshots it is the one with this spec's files, whatever the branch is now.
        """
        broken: MechstudyError | None = None
        try:
            here = models.local_folder(self.source, base)
        except MechstudyError as error:  # what the branch is now: the study's commit may be whole
            here, broken = None, error
        if here is not None and self.matches(here):
            return here
        other = next(filter(self.matches, models.other_snapshots(self.source)), here)
        if other is None and broken is not None:
            raise broken
        return other


def content_of(source: str, folder: Path, *, code: bool) -> Content:
    """The identity of a source's files; a wheel is pinned by its checksum."""
    return model_content(folder, code=code, pinned=source.startswith("pypi:"))


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
        folder = self.folder(runtime.base)
        self.check_files(folder)
        if key not in runtime.cache:
            loaded = models.load_folder(
                folder, dtype=dtype, device=runtime.device, trust_remote_code=self.spec["trust_remote_code"]
            )
            self.check_files(folder)  # again: they may have been replaced while they were read
            runtime.cache[key] = loaded
        model: LanguageModel = runtime.cache[key]
        model.tf32 = runtime.options.tf32 and not exact
        if model.tf32:
            runtime.chosen["tf32"] = "on"
        return model

    def folder(self, base: Path) -> Path:
        """The model's folder, of the commit that the model's unit used. Fetched where it is not on this machine."""
        source = models.pinned_source(str(self.spec["source"]), self.read_json("model.json").get("revision"))
        return models.local_folder(source, base) or models.resolve_source(source, base=base)

    def check_files(self, folder: Path) -> None:
        """Checks that a folder holds the files that the model's unit checked.

        Raises:
            MechstudyError: files were changed, replaced, added or removed since; it names them.
        """
        manifest = self.artifact.manifest
        recorded = (manifest.get("runtime") or {}).get(FILES)
        code = bool(self.spec.get("trust_remote_code"))
        weights = self.read_json("model.json").get("files_sha256") or {}
        changed = changed_files(folder, {**weights, **(recorded or {})}, code=code, complete=recorded is not None)
        if recorded is None and not changed and model_fingerprint(folder) != self.spec["fingerprint"]:
            # Made before all files were recorded: those written since are named.
            newer = newer_than(model_files(folder, code=code).values(), manifest)
            changed = [path.name for path in newer] or ["its config or tokenizer"]
        if changed:
            raise MechstudyError(
                "the model's files have changed since this run checked them",
                where=str(folder),
                facts={
                    "changed": ", ".join(changed[:6]) + (", ..." if len(changed) > 6 else ""),
                    "model": str(self.spec["source"]),
                    "checked": str(manifest.get("started")),
                },
                fix="put the files back; or study the model as it is now: `mechstudy run` again, on Slurm "
                "`mechstudy cancel` and then `mechstudy resume`: results of the earlier files are kept",
            )


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
            sha256=plan.sha256,
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
        pinned = models.pinned_source(spec.source, runtime.options.model_revision)
        folder = spec.folder(runtime.base) or models.resolve_source(pinned, base=runtime.base)
        files = {n: file_sha256(p) for n, p in model_files(folder, code=spec.trust_remote_code).items()}
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
                "files_sha256": {path.name: files[path.name] for path in models.weight_files(folder)},
            },
        )
        runtime.record[FILES] = files

    def changed(self, spec: ModelSpec, base: Path) -> str | None:
        """The model, if its files have changed."""
        folder = spec.folder(base)
        if folder is None:  # to be fetched: `run` does it, and this is asked again when it has
            return None
        same = spec.matches(folder)
        return None if same else f"the model ({spec.source})"

    def earlier_spec(self, spec: ModelSpec, made: Artifact, base: Path) -> ModelSpec | None:
        """The spec without ``sha256``, where an artifact without it recorded the same weights."""
        earlier = spec.model_copy(update={"sha256": None})
        folder = None if spec.sha256 is None else spec.folder(base)
        if folder is None or hashable_spec(earlier.canonical()) != made.manifest["spec"]:
            return None
        weights = {path.name for path in models.weight_files(folder)}
        others = [p for n, p in model_files(folder, code=spec.trust_remote_code).items() if n not in weights]
        changed = changed_files(folder, made.read_json("model.json")["files_sha256"], complete=False)
        return None if changed or newer_than(others, made.manifest) else earlier
