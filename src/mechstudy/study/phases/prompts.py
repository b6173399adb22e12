"""Phase 0: contrastive prompt pairs of one behaviour, tokenised for the study's model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from mechstudy.behaviours.hub_files import is_hub
from mechstudy.behaviours.registry import behaviour
from mechstudy.behaviours.remarks import Texts, remarks, too_long
from mechstudy.behaviours.sampling import sample
from mechstudy.behaviours.schema import SPLITS, AnswerSets, PromptPair, from_jsonl, to_jsonl
from mechstudy.behaviours.tokenise import UNEQUAL, Unsuitable, require_positions
from mechstudy.behaviours.user import MAX_NAMED, PromptSource, UserPrompts, count_kinds, first_lines, read_prompts
from mechstudy.core.errors import MechstudyError
from mechstudy.core.work import Estimate
from mechstudy.machine.runtime import Runtime
from mechstudy.models.context import ContextLength, context_length
from mechstudy.models.unknown_token import UnknownToken
from mechstudy.store.artifact_writer import ArtifactWriter
from mechstudy.study.fingerprints import prompts_fingerprint
from mechstudy.study.phases.base import Command, Flag, Output, Phase, Spec
from mechstudy.study.phases.model import ModelArtifact, ModelPhase
from mechstudy.study.study import READING, BehaviourConfig, Study
from mechstudy.study.unit import Unit
from mechstudy.study.units import StudyPlan


class PromptsSpec(Spec):
    """Prompts of a behaviour: ``n`` per split, from templates or from a file.

    ``sample`` where the file has more than that; ``format`` and the fields after it say how the file is read.
    """

    optional: ClassVar[frozenset[str]] = frozenset({"file", "sha256", "chat_date", "sample", *READING})

    behaviour: str
    n: Mapping[str, int]
    seed: int
    file: str | None = None
    sha256: str | None = None
    chat_date: str | None = None  # of a chat template that writes the date
    sample: Literal["proportional"] | None = None
    format: str | None = None
    counterfactual: str | None = None
    columns: dict[str, str] | None = None
    align: Literal["ends"] | None = None
    corrupted: Literal["other-line"] | None = None
    answer_sets: AnswerSets | None = None
    answer_tokens: Literal["first", "all"] | None = None
    strict: bool | None = None

    def source(self, base: Path) -> PromptSource:
        """The file and how to read it."""
        assert self.file is not None, "built-in prompts have no file"
        return PromptSource.named(self.file, base, {name: getattr(self, name) for name in READING}, self.seed)


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
                sha256=None if b.file is None else prompts_fingerprint(b.file, plan.base),
                chat_date=plan.study.model.chat_date if plan.study.model.chat else None,
                sample="proportional" if plan.costs.more_in_file(b) else None,
                **{name: getattr(b, name) for name in READING},
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
        context = context_length(model.hf.config.to_dict())
        more: dict[str, Any] = {}
        if spec.file:
            read = read_prompts(spec.source(runtime.base), encode, context, model.unknown_token)
            pairs = {str(split): chosen(read.pairs[split], spec.n[split], spec) for split in SPLITS}
            description = f"prompts from {spec.file}"
            more = _file_summary(read, pairs) | _unknown_summary(pairs, model.unknown_token)
            counts = {"n": {split: len(of_split) for split, of_split in pairs.items()}}
            for note in [*notes_of(counts | more), *_remarks(pairs, context)]:
                runtime.progress.log(note)
        else:
            family = behaviour(spec.behaviour)
            pairs = {
                str(split): family.generate(encode, spec.n[split], split, spec.seed, model.unknown_token)
                for split in SPLITS
            }
            description = family.description
        everything = [pair for split in SPLITS for pair in pairs[split]]
        for pair in everything if not spec.file else ():
            _require_positions(pair, context)
        for split in SPLITS:
            out.write_text(f"{split}.jsonl", to_jsonl(pairs[split]))
        used = sorted({t for pair in everything for t in (*pair.clean_tokens, *pair.corrupted_tokens)})
        out.write_json("tokens.json", dict(zip(map(str, used), model.token_strings(used), strict=True)), indent=None)
        out.write_json("summary.json", _summary(spec.behaviour, description, pairs) | more)

    def changed(self, spec: PromptsSpec, base: Path) -> str | None:
        """The prompts' file, if it has changed."""
        if spec.file is None or prompts_fingerprint(spec.file, base) == spec.sha256:
            return None
        return spec.file if is_hub(spec.file) else str(base / spec.file)

    def obstacle(self, spec: PromptsSpec, base: Path) -> str | None:
        """A prompts' file that is gone or has changed."""
        try:
            changed = self.changed(spec, base)
        except MechstudyError:
            return f"the file it was read from is gone: {Path(spec.file or '').name}"
        return None if changed is None else f"the file it was read from has changed: {Path(changed).name}"


def chosen(pairs: Sequence[PromptPair], n: int, spec: PromptsSpec) -> list[PromptPair]:
    """The pairs that are used: all in the file's order, or a sample of ``n``."""
    if len(pairs) <= n:
        return list(pairs)
    return list(pairs[:n]) if spec.sample is None else sample(pairs, n, spec.seed)


def notes_of(summary: Mapping[str, Any]) -> list[str]:
    """Sentences on the lines that were left out and the samples, of a prompts' ``summary.json``."""
    notes = []
    if left_out := summary.get("left_out"):
        kinds = ", ".join(f"{count} {kind}" for kind, count in left_out["kinds"].items())
        lines = first_lines({entry["line"]: entry["what"] for entry in left_out["lines"]})
        sampled = summary.get("sampled") or {}
        remain = [f"{sampled[split]['of'] if split in sampled else n} {split}" for split, n in summary["n"].items()]
        align = "; `align: ends` uses those of unequal length" if UNEQUAL in left_out["kinds"] else ""
        notes.append(
            f"{left_out['n']} of {left_out['n_lines']} lines are left out: {kinds} ({lines});"
            f" {' and '.join(remain)} prompts remain{align}"
        )
    if unknown := summary.get("unknown"):
        notes.append(
            f"{unknown['n']} of {sum(summary['n'].values())} prompts hold {unknown['token']!r}, which stands for text"
            f" that the tokenizer does not know ({', '.join(unknown['prompts'])}{', ...' * (unknown['n'] > MAX_NAMED)})"
        )
    for split, used in (summary.get("sampled") or {}).items():
        notes.append(
            f"{used['n']} of {used['of']} {split} prompts are used: a seeded sample that keeps the shares of"
            f" templates ({', '.join(f'{name} {count}' for name, count in used['templates'].items())}) and groups"
        )
    return notes


def _remarks(pairs: Mapping[str, list[PromptPair]], context: ContextLength | None) -> Iterator[str]:
    everything = [pair for split in SPLITS for pair in pairs[split]]
    yield from remarks(
        [Texts(pair.id, pair.clean, (*pair.all_answers, *pair.all_wrong_answers)) for pair in everything]
    )
    if (long := too_long(everything, context)) is not None:
        yield long


def _file_summary(read: UserPrompts, pairs: Mapping[str, list[PromptPair]]) -> dict[str, Any]:
    """Lines left out and samples, where there are any."""
    sampled = {
        split: {
            "n": len(pairs[split]),
            "of": len(read.pairs[split]),
            "templates": dict(sorted(Counter(pair.template for pair in pairs[split]).items())),
        }
        for split in SPLITS
        if len(pairs[split]) < len(read.pairs[split])
    }
    left_out = {
        "n": len(read.left_out),
        "n_lines": read.n_lines,
        "kinds": count_kinds(read.left_out),
        "lines": [{"line": n, "what": error.what, "fix": error.fix} for n, error in read.left_out.items()],
    }
    return {
        **({"left_out": left_out} if read.left_out else {}),
        **({"sampled": sampled} if sampled else {}),
    }


def _unknown_summary(pairs: Mapping[str, list[PromptPair]], unknown: UnknownToken | None) -> dict[str, Any]:
    """Prompts that hold a few unknown tokens, where there are any."""
    if unknown is None:
        return {}
    everything = [pair for split in SPLITS for pair in pairs[split]]
    at_start = {pair.clean_tokens[:1] for pair in everything} == {(unknown.id,)}  # the encoding's own
    holding = [
        pair.id
        for pair in everything
        if any(unknown.among(ids[at_start:]) for ids in (pair.clean_tokens, pair.corrupted_tokens))
    ]
    if not holding:
        return {}
    return {"unknown": {"n": len(holding), "token": unknown.text, "prompts": holding[:MAX_NAMED]}}


def _require_positions(pair: PromptPair, context: ContextLength | None) -> None:
    try:
        require_positions(context, len(pair.clean_tokens) + max(map(len, pair.all_answer_tokens)) - 1)
    except Unsuitable as error:
        raise MechstudyError(f"prompt {pair.id}: {error.what}", fix="a model with a longer context") from error


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
