"""Phase 0: contrastive prompt pairs of one behaviour, tokenised for the study's model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from mechstudy.behaviours.registry import behaviour
from mechstudy.behaviours.schema import SPLITS, PromptPair, from_jsonl, to_jsonl
from mechstudy.behaviours.user import joined_words, load_jsonl
from mechstudy.core.errors import MechstudyError
from mechstudy.core.work import Estimate
from mechstudy.machine.runtime import Runtime
from mechstudy.store.artifact_writer import ArtifactWriter
from mechstudy.store.digests import file_sha256
from mechstudy.study.phases.base import Command, Flag, Output, Phase, Spec
from mechstudy.study.phases.model import ModelArtifact, ModelPhase
from mechstudy.study.study import BehaviourConfig, Study
from mechstudy.study.unit import Unit
from mechstudy.study.units import StudyPlan


class PromptsSpec(Spec):
    """Prompts of a behaviour: ``n`` per split, from templates or from a file."""

    optional: ClassVar[frozenset[str]] = frozenset({"file", "sha256", "chat_date"})

    behaviour: str
    n: Mapping[str, int]
    seed: int
    file: str | None = None
    sha256: str | None = None
    chat_date: str | None = None  # of a chat template that writes the date


@dataclass(frozen=True)
class PromptsInputs:
    """Prompts are tokenised by the model's tokenizer."""

    model: ModelArtifact


class PromptsArtifact(Output):
    """The prompt pairs of one behaviour: ``train.jsonl``, ``test.jsonl``."""

    @property
    def behaviour(self) -> str:
        """The behaviour's name."""
        return str(self.spec["behaviour"])

    def pairs(self, split: str) -> list[PromptPair]:
        """The prompt pairs of a split."""
        return from_jsonl(self.artifact.file(f"{split}.jsonl"))


def prompts_used(study: Study, n: int) -> list[str]:
    """Overrides that give every behaviour ``n`` prompts in each split."""
    return [f"behaviours.{i}.{split}={n}" for i in range(len(study.behaviours)) for split in ("n_train", "n_test")]


N_SAMPLES = Flag("n_samples", int, "Prompts to use.", metavar="N", overrides=prompts_used)


class PromptsPhase(Phase[PromptsSpec, PromptsInputs]):
    """Makes and tokenises the prompt pairs."""

    kind = name = "prompts"
    per = "behaviour"
    title, report_field = "Prompts", "prompts"
    version = 1
    spec, inputs = PromptsSpec, PromptsInputs
    command = Command(
        "prompts",
        "mechstudy prompts study.yaml --n-samples 50",
        flags=(N_SAMPLES,),
    )

    def units(self, plan: StudyPlan) -> Iterator[Unit]:
        for b in plan.study.behaviours:
            unit = f"prompts[{b.name}]"
            spec = PromptsSpec(
                behaviour=b.name,
                n={"train": b.n_train, "test": b.n_test},
                seed=plan.seed(unit, "prompts"),
                file=b.file,
                sha256=None if b.file is None else file_sha256(plan.base / b.file),
                chat_date=plan.study.model.chat_date if plan.study.model.chat else None,
            )
            yield plan.unit(
                self, unit, spec, plan.inputs("model", ModelPhase), behaviour=b.name, estimate=self.estimate(plan, b)
            )

    def estimate(self, plan: StudyPlan, b: BehaviourConfig) -> Estimate:
        """Text files; the model is loaded for its tokenizer."""
        n = plan.costs.total_prompts(b)
        held = plan.costs.model(plan.study.model.dtype)
        return Estimate(n * 900, held.bytes(), note=f"{n} contrastive pairs", holds=(held,))

    def run(self, spec: PromptsSpec, inputs: PromptsInputs, out: ArtifactWriter, runtime: Runtime) -> None:
        """Writes ``train.jsonl``, ``test.jsonl``, ``tokens.json`` (id -> text) and ``summary.json``."""
        model = inputs.model.load(runtime)
        encode = partial(model.encode, instruction=inputs.model.chat_instruction, date=spec.chat_date)
        if spec.file:
            read = load_jsonl(runtime.base / spec.file, encode)
            pairs: dict[str, list[PromptPair]] = {split: read.get(split, [])[: spec.n[split]] for split in SPLITS}
            description = f"prompts from {spec.file}"
            for split in SPLITS:
                if not pairs[split]:
                    raise MechstudyError(
                        f"{spec.behaviour}: no {split} prompts",
                        where=spec.file,
                        fix=f'give some lines "split": "{split}"',
                    )
        else:
            family = behaviour(spec.behaviour)
            pairs = {str(split): family.generate(encode, spec.n[split], split, spec.seed) for split in SPLITS}
            description = family.description
        everything = [pair for split in SPLITS for pair in pairs[split]]
        if spec.file and (joined := joined_words(everything)):
            first = joined[0]
            runtime.progress.log(
                f"{len(joined)} of {len(everything)} answers continue the prompt's last word, as in"
                f" {first.clean.split()[-1] + '|' + first.answer!r} ({first.id}): give them a leading space"
                " unless that is meant"
            )
        for split in SPLITS:
            out.write_text(f"{split}.jsonl", to_jsonl(pairs[split]))
        used = sorted({t for pair in everything for t in (*pair.clean_tokens, *pair.corrupted_tokens)})
        out.write_json("tokens.json", dict(zip(map(str, used), model.token_strings(used), strict=True)), indent=None)
        out.write_json("summary.json", _summary(spec.behaviour, description, pairs))

    def changed(self, spec: PromptsSpec, base: Path) -> str | None:
        """The prompts' file, if it has changed."""
        if spec.file is None or file_sha256(base / spec.file) == spec.sha256:
            return None
        return str(base / spec.file)

    def obstacle(self, spec: PromptsSpec, base: Path) -> str | None:
        """A prompts' file that is gone or has changed."""
        try:
            changed = self.changed(spec, base)
        except MechstudyError:
            return f"the file it was read from is gone: {Path(spec.file or '').name}"
        return None if changed is None else f"the file it was read from has changed: {Path(changed).name}"


def _summary(name: str, description: str, pairs: Mapping[str, list[PromptPair]]) -> dict[str, Any]:
    everything = [pair for split in pairs.values() for pair in split]
    return {
        "behaviour": name,
        "description": description,
        "n": {split: len(of_split) for split, of_split in pairs.items()},
        "positions": positions_in_order(everything),
        "n_templates": len({pair.template for pair in everything}),
        "token_lengths": dict(sorted(Counter(len(pair.clean_tokens) for pair in everything).items())),
    }


def positions_in_order(pairs: Sequence[PromptPair]) -> list[str]:
    """The named positions from left to right, by their mean index."""
    indices: dict[str, list[int]] = {}
    for pair in pairs:
        for name, index in pair.positions.items():
            indices.setdefault(name, []).append(index)
    return sorted(indices, key=lambda name: sum(indices[name]) / len(indices[name]))
