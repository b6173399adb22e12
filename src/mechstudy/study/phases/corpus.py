"""Phase 2a: text for dictionary training, as rows of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from mechstudy import corpus as text
from mechstudy.core.errors import MechstudyError
from mechstudy.core.sizes import safetensors_bytes
from mechstudy.core.work import Estimate, Work
from mechstudy.corpus.config import FILE_KINDS, CorpusConfig
from mechstudy.machine.runtime import Runtime
from mechstudy.store.artifact_writer import ArtifactWriter
from mechstudy.store.artifacts import Artifact
from mechstudy.store.manifest import hashable_spec
from mechstudy.study.fingerprints import Content, corpus_content, corpus_files, newer_than
from mechstudy.study.phases.base import Output, Phase, Spec
from mechstudy.study.phases.model import ModelArtifact, ModelPhase
from mechstudy.study.unit import Unit
from mechstudy.study.units import StudyPlan

if TYPE_CHECKING:
    from mechstudy.corpus.token_rows import Corpus

TOKENS = "tokens.safetensors"


class CorpusSpec(Spec, CorpusConfig):
    """The corpus of a study, and the identity of its text (`fingerprints.Content`)."""

    optional: ClassVar[frozenset[str]] = frozenset({"sha256"})

    fingerprint: str
    sha256: str | None = None


@dataclass(frozen=True)
class CorpusInputs:
    """The model's tokenizer cuts the rows; the model itself samples text where the study asks for it."""

    model: ModelArtifact


class CorpusArtifact(Output):
    """Token rows for training and evaluation."""

    def load(self) -> Corpus:
        """The rows, memory-mapped."""
        return text.Corpus.load(self.path)

    @property
    def n_train_documents(self) -> int:
        """Source documents of the training rows."""
        return int(self.read_json("corpus.json")["n_train_documents"])


class CorpusPhase(Phase[CorpusSpec, CorpusInputs]):
    """Builds the token rows."""

    kind = name = "corpus"
    title = "Corpus"
    version = 1
    spec, inputs = CorpusSpec, CorpusInputs
    retention, payload = "regenerate", (TOKENS,)

    def units(self, plan: StudyPlan) -> Iterator[Unit]:
        c = plan.study.corpus
        values = dict(c) | {"seed": plan.seed(self.kind, f"corpus {c.seed}")}
        content = corpus_content(c, plan.base)
        spec = CorpusSpec(**values, fingerprint=content.fingerprint, sha256=content.sha256)
        yield plan.unit(self, self.kind, spec, plan.inputs("model", ModelPhase), estimate=self.estimate(plan))

    def estimate(self, plan: StudyPlan) -> Estimate:
        """One file of token ids, exactly; for ``self`` also a forward pass for each token of whole batches."""
        c = plan.study.corpus
        size = safetensors_bytes({"tokens": (c.n_rows, c.context)}, "int32")
        files = (Work("write", size), Work("read", size))
        estimate = Estimate(size, 3 * size, work=files)
        if c.parsed().kind == "sampled":
            estimate = _sampling(plan, size, files)
        shapes = {"tokens": f"{c.n_rows:,} x {c.context}"}
        return replace(estimate, exact=True, shapes=shapes, payload={TOKENS: size})

    def run(self, spec: CorpusSpec, inputs: CorpusInputs, out: ArtifactWriter, runtime: Runtime) -> None:
        """Writes ``tokens.safetensors`` and ``corpus.json``."""
        config = CorpusConfig(**{name: getattr(spec, name) for name in CorpusConfig.model_fields})
        source = config.parsed()
        sampled = source.kind == "sampled"
        if source.kind in FILE_KINDS:  # paths of a study are relative to its file
            config = config.model_copy(update={"source": f"{source.kind}:{runtime.base / source.path}"})
        model = inputs.model.load(runtime, "bfloat16" if sampled else None)
        rows = text.build_corpus(
            config,
            model.tokenizer,
            name=model.name,
            model=model if sampled else None,
            scratch=out.scratch / "samples",
            progress=runtime.progress,
        )
        replace(rows, source=spec.source).save(out.path)

    def changed(self, spec: CorpusSpec, base: Path) -> str | None:
        """The corpus, if its text has changed."""
        now, made = corpus_content(spec, base), Content(spec.fingerprint, spec.sha256)
        # A corpus that an earlier version made has no sha256 of a large file (`earlier_spec`).
        same = now == made or (spec.sha256 is None and now.fingerprint == made.fingerprint)
        return None if same else f"corpus.source ({spec.source})"

    def earlier_spec(self, spec: CorpusSpec, made: Artifact, base: Path) -> CorpusSpec | None:
        """The spec without ``sha256``, where no file was written since an artifact without it was begun."""
        earlier = spec.model_copy(update={"sha256": None})
        if spec.sha256 is None or hashable_spec(earlier.canonical()) != made.manifest["spec"]:
            return None
        return None if newer_than(corpus_files(spec, base), made.manifest) else earlier

    def obstacle(self, spec: CorpusSpec, base: Path) -> str | None:
        """A text that is gone, has changed, or comes from a hub without a revision."""
        source = spec.parsed()
        if source.kind == "hf" and source.revision is None:
            return "its text is from a hub, without a revision: it may have changed"
        try:
            changed = self.changed(spec, base)
        except MechstudyError as error:
            return f"the text it was read from is gone ({error.what})"
        text = source.path.name if source.kind in FILE_KINDS else source.kind
        return None if changed is None else f"the text it was read from has changed: {text}"


def _sampling(plan: StudyPlan, size: int, files: tuple[Work, ...]) -> Estimate:
    """Sampling from the model in bfloat16, one token of each of ``sample_batch`` rows at a time."""
    c, x, costs = plan.study.corpus, plan.shapes, plan.costs
    n_batches = -(-c.n_rows // c.sample_batch)
    tokens = n_batches * c.sample_batch * (c.context - 1)
    steps = n_batches * (c.context - 1)
    forward = costs.forward(tokens, x.n_layers, "bfloat16", batches=steps, logits=tokens, context=c.context)
    cache = 2 * 2 * x.n_layers * c.sample_batch * c.context * x.n_kv_heads * x.head_dim
    working = 3 * size + cache + costs.block_bytes(c.sample_batch) + 3 * 4 * c.sample_batch * x.vocab_size
    estimate = costs.of_model(costs.model("bfloat16"), size, working, [*forward, *files])
    return replace(estimate, note=f"{n_batches} batches of text sampled from the model")
