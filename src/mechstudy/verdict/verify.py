"""The verdict on a behaviour's circuit: chosen on train prompts, judged on test prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.donors import DonorSource, Replacement
from mechstudy.circuits.effects_table import EffectsTable, ranked
from mechstudy.circuits.mean_changes import mean_changes
from mechstudy.circuits.named_positions import NamedPositions
from mechstudy.circuits.node_attribution import predict_effects
from mechstudy.circuits.recording import Recording, comparable
from mechstudy.circuits.universe import NodeSet
from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.dictionaries.neurons import Basis
from mechstudy.interventions.faithfulness import MIB_FRACTIONS, circuit_sizes, first_kept
from mechstudy.interventions.feature_nodes import active_at
from mechstudy.interventions.keep_only import keep_only_values
from mechstudy.interventions.node_universe import node_set
from mechstudy.models.language_model import LanguageModel
from mechstudy.statistics.bootstrap import Estimate
from mechstudy.verdict.backups import Backups, backups
from mechstudy.verdict.choice import choose, groups_of, kind_of, random_circuits
from mechstudy.verdict.config import VerdictConfig
from mechstudy.verdict.criteria import Criterion, conclude
from mechstudy.verdict.result import Verdict
from mechstudy.verdict.shares import (
    ACTIVATIONS,
    ADVERSARY,
    ALL,
    BACKUPS,
    BOTH,
    CUT,
    DIFFERENCES,
    EAP_IG,
    GRADIENT,
    KEPT,
    NONE,
    WITHOUT_ERRORS,
    First,
    Name,
    Random,
    Shares,
    Specification,
    Without,
)
from mechstudy.verdict.specifications import RANKINGS, robustness
from mechstudy.verdict.specificity import Elsewhere, elsewhere
from mechstudy.verdict.stability import Stability, stability
from mechstudy.verdict.variants import Variant, VariantCircuit, found_again, variant_criteria


def verify(
    model: LanguageModel,
    bases: Mapping[int, Basis],
    train: Sequence[PromptPair],
    test: Sequence[PromptPair],
    config: VerdictConfig | None = None,
    *,
    behaviour: str = "behaviour",
    others: Mapping[str, Sequence[PromptPair]] | None = None,
    texts: Sequence[Sequence[int]] = (),
    variants: Mapping[str, Variant] | None = None,
    batch_tokens: int = 4096,
    checkpointing: str = "auto",
    progress: Progress | None = None,
) -> Verdict:
    """Choose a behaviour's circuit on train prompts, and judge it on test prompts that nothing was chosen on.

    Nodes are features and errors of the bases, heads, and the MLPs of layers without a basis, at named positions.

    Args:
        model: the model.
        bases: transcoders, SAEs or neurons by layer; none for circuits of heads and MLPs.
        train: prompts that the circuit is chosen on.
        test: prompts that it is judged on.
        config: settings.
        behaviour: its name.
        others: test prompts of other behaviours, for specificity.
        texts: documents as token ids, of one length.
        variants: other dictionaries, by name, whose circuits are chosen on the same prompts and compared.
        batch_tokens: tokens run at a time.
        checkpointing: of gradients.
        progress: receives messages.

    Raises:
        MechstudyError: no prompts, or a prompt is among both.
    """
    c = config or VerdictConfig()
    progress = progress or NullProgress()
    train, test = comparable(train)[: c.n_discovery], comparable(test)[: c.n_samples]
    seen = {p.clean_tokens for p in train}
    if both := [p.clean for p in test if p.clean_tokens in seen]:
        raise MechstudyError(
            f"{len(both)} test prompts are train prompts too, such as {both[0]!r}",
            fix="judge on prompts that nothing was chosen on",
        )
    judge = _Judge(model, bases, train, test, c, batch_tokens, checkpointing, progress)
    return judge.verdict(behaviour, others or {}, texts, variants or {})


class _Judge:
    """Runs every check of one behaviour."""

    def __init__(
        self,
        model: LanguageModel,
        bases: Mapping[int, Basis],
        train: Sequence[PromptPair],
        test: Sequence[PromptPair],
        config: VerdictConfig,
        batch_tokens: int,
        checkpointing: str,
        progress: Progress,
    ) -> None:
        self._model, self._bases, self._train, self._test, self._c = model, bases, train, test, config
        self._batch_tokens, self._checkpointing, self._progress = batch_tokens, checkpointing, progress
        has_corrupted = all(pair.has_corrupted for pair in (*train, *test))
        without: tuple[Replacement, ...] = ("mean", "resample")
        self._kinds: tuple[Replacement, ...] = ("corrupted", *without) if has_corrupted else without
        names = NamedPositions.of([*train, *test])
        # Train prompts alone choose the features that are nodes.
        features = active_at(model, bases, names, train, batch_tokens=batch_tokens) if bases else ()
        self._nodes: NodeSet = node_set(model, names, bases, features, errors=bool(bases))
        self._recording = Recording(
            model, self._nodes, train, self._kinds[0], discovery=train, seed=config.seed, batch_tokens=batch_tokens
        )
        self._effects = self._predicted("ig_nodes")
        every = self._donors(self._kinds[0])
        self._circuit = choose(
            model, self._nodes, self._effects, train[::2], every, ranking=config.ranking, aim=config.aim,
            batch_tokens=batch_tokens,
        )  # fmt: skip

    def verdict(
        self,
        behaviour: str,
        others: Mapping[str, Sequence[PromptPair]],
        texts: Sequence[Any],
        variants: Mapping[str, Variant],
    ) -> Verdict:
        c, members = self._c, self._circuit.members
        found = self._backups()
        primary, *further = self._kinds
        shares = {primary: self._run(primary, self._circuits(found))}
        shares |= {kind: self._run(kind, self._specifications()) for kind in further}
        stable = stability(
            self._effects, members, [p.group for p in self._train], [p.template for p in self._train],
            ranking=c.ranking, n_resamples=c.resamples, seed=c.seed, level=c.ci,
        )  # fmt: skip
        away = None
        if others or len(texts):
            chosen = [self._nodes.nodes[i] for i in members]
            away = elsewhere(
                self._model, chosen, self._bases, {behaviour: self._test} | dict(others),
                texts=texts, n_resamples=c.bootstrap, level=c.ci, seed=c.seed, batch_tokens=self._batch_tokens,
            )  # fmt: skip
        of_variants = tuple(self._of_variant(name, one, shares[primary]) for name, one in variants.items())
        criteria = self._criteria(shares, stable, away, behaviour, of_variants)
        outcome, why = conclude(criteria)
        return Verdict(
            behaviour, outcome, why, criteria, self._circuit, self._nodes.nodes, self._effects.effects, shares,
            tuple(self._test), stable, away, found, c, primary, of_variants,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------ what is run

    def _predicted(self, method: str, given: Sequence[int] = ()) -> EffectsTable:
        return predict_effects(
            self._model, self._nodes, self._train, method=method, replace_by=self._kinds[0], discovery=self._train,
            steps=self._c.steps, seed=self._c.seed, batch_tokens=self._batch_tokens,
            checkpointing=self._checkpointing, given=given, recording=self._recording,
        )  # fmt: skip

    @cached_property
    def _first_order(self) -> EffectsTable:
        """Effects by the gradient at the clean prompt alone."""
        return self._predicted("eap")

    def _donors(self, kind: Replacement) -> DonorSource:
        return DonorSource(
            self._model, [self._nodes], kind, self._nodes.positions, self._train, seed=self._c.seed,
            batch_tokens=self._batch_tokens,
        )  # fmt: skip

    def _backups(self) -> Backups:
        members = self._circuit.members
        return backups(self._first_order, self._predicted("eap", given=members), members)

    def _run(self, kind: Replacement, circuits: Mapping[Name, Tensor]) -> Shares:
        self._progress.log(f"{len(circuits)} circuits kept on {len(self._test)} prompts, others by {kind}")
        number: dict[bytes, int] = {}  # of each distinct circuit: some have two names
        row = {name: number.setdefault(kept_N.numpy().tobytes(), len(number)) for name, kept_N in circuits.items()}
        first = {i: circuits[name] for name, i in reversed(row.items())}
        values_CP = keep_only_values(
            self._model, self._test, self._nodes, torch.stack([first[i] for i in range(len(number))]),
            self._donors(kind), batch_tokens=self._batch_tokens, progress=self._progress,
        ).cpu()  # fmt: skip
        c = self._c
        return Shares(
            {name: values_CP[i] for name, i in row.items()}, [pair.group for pair in self._test], c.seed, c.bootstrap,
            c.ci,
        )  # fmt: skip

    def _of_variant(self, name: str, variant: Variant, own: Shares) -> VariantCircuit:
        """The circuit of other dictionaries, chosen and run as this one."""
        self._progress.log(f"the circuit of the dictionaries {name}")
        other = _Judge(
            self._model, variant.bases, self._train, self._test, self._c, self._batch_tokens, self._checkpointing,
            self._progress,
        )  # fmt: skip
        circuit, kept_N = other._circuit, other._circuit.kept()
        at_size_N = first_kept(circuit.order, [min(self._circuit.size, len(kept_N))])[0]
        shares = other._run(
            self._kinds[0],
            {
                ALL: torch.ones_like(kept_N),
                NONE: torch.zeros_like(kept_N),
                KEPT: kept_N,
                First(self._circuit.size): at_size_N,
                WITHOUT_ERRORS: kept_N & ~other._is_error(),
            },
        )
        mine, theirs = ([one._nodes.nodes[i] for i in one._circuit.members] for one in (self, other))
        return VariantCircuit(
            name,
            variant.frozen,
            len(kept_N),
            circuit.size,
            shares.f(KEPT),
            shares.f(First(self._circuit.size)),
            shares.f(WITHOUT_ERRORS),
            own.more_than(WITHOUT_ERRORS, shares, WITHOUT_ERRORS),
            *found_again(self._model, mine, self._bases, theirs, variant.bases),
        )

    def _is_error(self) -> Bool[Tensor, " n"]:
        return torch.tensor([kind_of(node) == "error" for node in self._nodes.nodes])

    def _circuits(self, found: Backups) -> dict[Name, Bool[Tensor, " n"]]:
        """Every circuit that is kept with the first kind of replacement, by name."""
        kept_N, members = self._circuit.kept(), list(self._circuit.members)
        n = len(kept_N)
        circuits = self._specifications() | {ADVERSARY: kept_N | (self._effects.effects >= 0)}
        for k in sorted(set(circuit_sizes(n, MIB_FRACTIONS))):
            circuits[First(k)] = first_kept(self._circuit.order, [k])[0]
        for name, group in groups_of(self._nodes, members).items():
            circuits[Without(name)] = _without(kept_N, group)
        for i, random_N in enumerate(random_circuits(self._nodes, members, self._c.n_random, self._c.seed)):
            circuits[Random(i)], circuits[Random(i, cut=True)] = random_N, ~random_N
        circuits[WITHOUT_ERRORS] = kept_N & ~self._is_error()
        for name, order in self._rival_orders():
            circuits[name] = first_kept(order, [len(members)])[0]
        circuits[BACKUPS] = _without(torch.ones_like(kept_N), found.nodes)
        circuits[BOTH] = _without(~kept_N, found.nodes)
        return circuits

    def _rival_orders(self) -> Iterator[tuple[str, list[int]]]:
        """Orders of nodes by other methods, from the same prompts."""
        yield GRADIENT, self._first_order.order(self._c.ranking)
        yield EAP_IG, self._predicted("eap_ig_inputs").order(self._c.ranking)
        yield ACTIVATIONS, ranked(mean_changes(self._model, self._nodes, self._recording, to_zero=True))
        if self._kinds[0] == "corrupted":
            yield DIFFERENCES, ranked(mean_changes(self._model, self._nodes, self._recording))

    def _specifications(self) -> dict[Name, Bool[Tensor, " n"]]:
        """The circuits that are kept with every kind of replacement."""
        k, n = self._circuit.size, len(self._nodes.nodes)
        kept_N = self._circuit.kept()
        circuits: dict[Name, Tensor] = {
            ALL: torch.ones_like(kept_N),
            NONE: torch.zeros_like(kept_N),
            KEPT: kept_N,
            CUT: ~kept_N,
        }
        for ranking in RANKINGS:
            order = self._effects.order(ranking)
            for size in sorted({min(n, size) for size in (k, -(-3 * k // 2), 2 * k)}):
                circuits[Specification(ranking, size)] = first_kept(order, [size])[0]
        return circuits

    # --------------------------------------------------------------------------------------- what it shows

    def _criteria(
        self,
        shares: Mapping[Replacement, Shares],
        stable: Stability,
        away: Elsewhere | None,
        behaviour: str,
        of_variants: Sequence[VariantCircuit],
    ) -> tuple[Criterion, ...]:
        t, own, n = self._c.thresholds, shares[self._kinds[0]], self._c.n_random
        randoms = [Random(i) for i in range(n)]
        rivals = own.combined([KEPT, *randoms], [1.0, *([-1.0 / n] * n)])
        nothing = Estimate(None, None, 0, 0)
        no_others = away is None or len(away.lost) < 2
        return (
            Criterion("behaviour", own.mean(ALL), 0.0),
            Criterion("sufficiency", own.f(KEPT), t.sufficiency),
            Criterion("necessity", own.lost(CUT), t.necessity),
            Criterion("rivals", rivals, t.rivals),
            Criterion("adversary", own.f(ADVERSARY), t.adversary),
            Criterion(
                "explained",
                own.f(WITHOUT_ERRORS) if self._bases else nothing,
                t.explained,
                missing=None if self._bases else "no nodes are of dictionaries",
            ),
            *variant_criteria(of_variants, t.variants, t.controls),
            Criterion("stability", stable.jaccard, t.stability, itself=True),
            Criterion("robustness", robustness(shares, self._test, t.sufficiency), t.robustness, itself=True),
            Criterion(
                "specificity",
                _on_others(away, behaviour),
                t.specificity,
                at_most=True,
                missing="the study has one behaviour" if no_others else None,
                itself=True,
            ),
        )


def _on_others(away: Elsewhere | None, behaviour: str) -> Estimate:
    """The largest share of another behaviour that is lost, as a share of what is lost of its own."""
    if away is None or len(away.lost) < 2:
        return Estimate(None, None, 0, 0)
    own = away.lost[behaviour].value
    others = [e.value for name, e in away.lost.items() if name != behaviour and e.value is not None]
    if own is None or own <= 0 or not others:
        return Estimate(None, None, 0, 0)
    return Estimate(max(abs(value) for value in others) / own, None, len(others), len(others))


def _without(kept_N: Tensor, nodes: Sequence[int]) -> Tensor:
    kept_N = kept_N.clone()
    kept_N[list(nodes)] = False
    return kept_N
