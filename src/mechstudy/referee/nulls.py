"""How often a verdict is wrong: studies in which there is nothing to find, and studies in which there is.

Every study is about a circuit that is planted into a model beside a second one, or about a behaviour of a model as it
is, beside another. A null study spoils one thing that a claim rests on; the rule should then not say *holds*. Of a
planted circuit, unspoilt, it should.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.random import Generator
from scipy import stats

from mechstudy.behaviours.prompts import load_prompts
from mechstudy.behaviours.schema import PromptPair
from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.core.seeds import numpy_generator, seed_for, torch_generator
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.neurons import Basis
from mechstudy.dictionaries.stored import DictionaryMeta
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.loading import load_model
from mechstudy.referee.hosts import random_host
from mechstudy.referee.known_circuit import KnownCircuit
from mechstudy.referee.planting import Plan, draw_plan, planted_pair
from mechstudy.verdict.config import VerdictConfig
from mechstudy.verdict.criteria import OUTCOMES
from mechstudy.verdict.result import Verdict
from mechstudy.verdict.verify import verify

TRUE = "true circuits"
CONFIG = VerdictConfig(n_discovery=12, n_samples=12, n_random=3, resamples=100, bootstrap=1000)
_TRIES = 20  # to draw two plans without a shared part
_PROMPTS = 24  # of each split of a behaviour


@dataclass(frozen=True)
class Case:
    """A study of a planted circuit, whole or spoilt.

    ``train`` and ``test`` are its prompts, ``other`` the test prompts of the second circuit, ``bases`` dictionaries.
    """

    model: LanguageModel
    train: Sequence[PromptPair]
    test: Sequence[PromptPair]
    other: Sequence[PromptPair]
    bases: Mapping[int, Basis] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompted:
    """A model and prompts of something that it does; what its circuit is, nobody knows."""

    model: LanguageModel
    train: Sequence[PromptPair]
    test: Sequence[PromptPair]


@dataclass(frozen=True)
class Pair:
    """Two circuits or behaviours of one model, and the same model without them."""

    host: LanguageModel
    first: KnownCircuit | Prompted
    second: KnownCircuit | Prompted

    @classmethod
    def of_seed(cls, host: LanguageModel, seed: int) -> Pair:
        """Two circuits without a common head, MLP, word or direction.

        Raises:
            MechstudyError: no two such circuits can be planted.
        """
        rng = numpy_generator(seed, "nulls", "plans")
        for number in range(_TRIES):
            one, other = draw_plan(host, rng), draw_plan(host, rng)
            if _parts(one) & _parts(other):
                continue
            try:
                first = 2 * (_TRIES * seed + number)
                return cls(host, *planted_pair(host, (first, first + 1), (one, other)))
            except MechstudyError:  # of these words and directions none is clean enough
                continue
        raise MechstudyError(f"no two circuits of seed {seed} fit into {host.name}", fix="more layers or heads")

    @classmethod
    def of_behaviours(cls, model: LanguageModel, names: Sequence[str], seed: int) -> Pair:
        """Two built-in behaviours, by turns the first; without them the model is one with random weights.

        Raises:
            MechstudyError: not two names, or no such behaviour.
        """
        if len(set(names)) != 2:
            raise MechstudyError(f"two behaviours make a study, not {len(set(names))}", fix="name two")
        both = [
            Prompted(
                model, *(load_prompts(name, model, _PROMPTS, split=split, seed=seed) for split in ("train", "test"))
            )
            for name in names
        ]
        first, second = both if seed % 2 == 0 else both[::-1]
        return cls(_random_weights_of(model, seed), first, second)

    @property
    def dictionary_layers(self) -> list[int]:
        """Where random dictionaries are put: at the circuit's MLP, or in every fifth layer."""
        if isinstance(self.first, KnownCircuit):
            return [next(node.layer for node in self.first.nodes if str(node).startswith("mlp"))]
        return list(range(0, self.first.model.n_layers, 5))

    @property
    def whole(self) -> Case:
        """The study as it should be."""
        return Case(self.first.model, self.first.train, self.first.test, self.second.test)


def _parts(plan: Plan) -> set[Any]:
    return {plan.relay, *plan.carriers, plan.mlp}


def _answers_of_others(pair: Pair, rng: Generator) -> Case:
    """Answers are two words that have nothing to do with the prompt."""

    def labels(_: PromptPair) -> Sequence[int]:
        drawn: list[int] = rng.choice(pair.host.vocab_size - 1, 2, replace=False).tolist()
        return [1 + token for token in drawn]

    return _relabelled(pair, labels)


def _permuted_labels(pair: Pair, rng: Generator) -> Case:
    """Of half of the prompts, right and wrong are exchanged."""

    def labels(p: PromptPair) -> Sequence[int]:
        both = (p.answer_tokens[0], p.wrong_tokens[0])
        return both[::-1] if rng.random() < 0.5 else both

    return _relabelled(pair, labels)


def _relabelled(pair: Pair, labels: Callable[[PromptPair], Sequence[int]]) -> Case:
    def relabel(pairs: Sequence[PromptPair]) -> list[PromptPair]:
        return [
            p.model_copy(update={"answer_tokens": (int(right),), "wrong_tokens": (int(wrong),)})
            for p in pairs
            for right, wrong in [labels(p)]
        ]

    whole = pair.whole
    return Case(whole.model, relabel(whole.train), relabel(whole.test), whole.other)


def _random_weights(pair: Pair, rng: Generator) -> Case:
    """The model has no circuit."""
    whole = pair.whole
    return Case(pair.host, whole.train, whole.test, whole.other)


def _random_dictionaries(pair: Pair, rng: Generator) -> Case:
    """The features that are to carry a step are random directions."""
    model, whole = pair.first.model, pair.whole
    d, n = model.d_model, 4 * model.d_model
    generator = torch_generator(int(rng.integers(2**31)), "nulls", "dictionary")

    def draw(*shape: int) -> torch.Tensor:
        drawn: torch.Tensor = torch.randn(*shape, generator=generator, dtype=torch.float64) * d**-0.5
        return drawn.to(model.device, model.dtype)

    def random(layer: int) -> Dictionary:
        meta = DictionaryMeta("transcoder", "topk", d, d, n, 16, f"mlp_in.{layer}", f"mlp_out.{layer}")
        return Dictionary(meta, W_enc=draw(d, n), b_enc=draw(n), W_dec=draw(n, d), b_dec=draw(d))

    bases = {layer: random(layer) for layer in pair.dictionary_layers}
    return Case(model, whole.train, whole.test, whole.other, bases)


def _another_behaviour(pair: Pair, rng: Generator) -> Case:
    """The circuit of one behaviour is judged on another's prompts, at the positions that both name."""
    whole = pair.whole
    named = {name for p in whole.train for name in p.positions}

    def shared(p: PromptPair) -> PromptPair:
        return p.model_copy(update={"positions": {name: at for name, at in p.positions.items() if name in named}})

    return Case(whole.model, whole.train, [shared(p) for p in whole.other], whole.test)


def _random_weights_of(model: LanguageModel, seed: int) -> LanguageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "nulls", "weights"))
        hf: Any = type(model.hf)(model.hf.config).to(model.device, model.dtype)
    return load_model(hf, model.tokenizer, name=f"{model.name} with random weights", validate=False)


NULLS: Mapping[str, Callable[[Pair, Generator], Case]] = {
    "shuffled answers": _answers_of_others,
    "permuted labels": _permuted_labels,
    "random weights": _random_weights,
    "random dictionaries": _random_dictionaries,
    "another behaviour": _another_behaviour,
}
KINDS = (*NULLS, TRUE)


def null_studies(
    kinds: Sequence[str] = (),
    n: int = 20,
    *,
    seed: int = 0,
    host: LanguageModel | str | None = None,
    behaviours: Sequence[str] = (),
    config: VerdictConfig = CONFIG,
    progress: Progress | None = None,
) -> Iterator[dict[str, Any]]:
    """Verdicts on ``n`` studies of each kind.

    Args:
        kinds: of `KINDS`; by default all, or all null studies of behaviours.
        n: studies of each kind.
        seed: of the first; they count up.
        host: what circuits are planted into, or its source; by default another small random model for each seed.
        behaviours: two built-in behaviours of the host to study as they are, instead of planted circuits.
        config: of the verdicts.
        progress: receives progress.

    Yields:
        kind, seed, outcome, why, size, the value of each criterion, and the states.

    Raises:
        MechstudyError: an unknown kind, behaviours without a host, or true circuits of behaviours.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise MechstudyError(
                f"there is no kind of study {kind!r}", facts={"kinds": ", ".join(KINDS)}, fix=nearest(kind, KINDS)
            )
    if behaviours and host is None:
        raise MechstudyError("behaviours are those of a model", fix="name its source")
    if behaviours and TRUE in kinds:
        raise MechstudyError("of a model's own behaviours nobody knows the true circuits", fix="null studies alone")
    wanted = kinds or (tuple(NULLS) if behaviours else KINDS)
    host = load_model(host) if isinstance(host, str) else host
    with (progress or NullProgress()).bar("studies", n * len(wanted), "studies") as bar:
        for number in range(seed, seed + n):
            if behaviours:
                assert host is not None
                pair = Pair.of_behaviours(host, behaviours, number)
            else:
                pair = Pair.of_seed(host or random_host(number), number)
            for kind in wanted:
                case = pair.whole if kind == TRUE else NULLS[kind](pair, numpy_generator(number, "nulls", kind))
                found = verify(
                    case.model,
                    case.bases,
                    case.train,
                    case.test,
                    config,
                    behaviour="mine",
                    others={"other": case.other},
                )
                yield {"kind": kind, "seed": number} | _row(found)
                bar.advance(1)


def _row(found: Verdict) -> dict[str, Any]:
    criteria = {c.name: c.estimate.value for c in found.criteria}
    states = {c.name: c.state for c in found.criteria}
    about = {"outcome": found.outcome, "why": found.why, "size": found.circuit.size, "n_nodes": len(found.nodes)}
    return about | {"criteria": criteria, "states": states}


def rates(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How often the rule says *holds*: of each kind, of all null studies, with exact 95% intervals.

    Clopper & Pearson 1934.
    """
    groups = {kind: [r for r in rows if r["kind"] == kind] for kind in KINDS}
    true = groups.pop(TRUE)
    groups |= {"all null studies": [r for r in rows if r["kind"] != TRUE], TRUE: true}
    found: list[dict[str, Any]] = []
    for kind, some in groups.items():
        if not some:
            continue
        counts: dict[str, int] = {outcome: sum(r["outcome"] == outcome for r in some) for outcome in OUTCOMES}
        interval = stats.binomtest(counts["holds"], len(some)).proportion_ci(0.95, "exact")
        found.append(
            {"kind": kind, "n": len(some), **counts, "rate": counts["holds"] / len(some),
             "low": float(interval.low), "high": float(interval.high)}
        )  # fmt: skip
    return found
