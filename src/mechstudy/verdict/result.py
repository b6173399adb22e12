"""The verdict on a circuit, with everything that was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl
from jaxtyping import Float64
from torch import Tensor

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.donors import Replacement
from mechstudy.verdict.backups import Backups
from mechstudy.verdict.choice import Circuit
from mechstudy.verdict.config import VerdictConfig
from mechstudy.verdict.criteria import Criterion, Outcome
from mechstudy.verdict.hypotheses import Equivalence, equivalence, part_tests
from mechstudy.verdict.shares import ALL, BACKUPS, BOTH, CUT, KEPT, RIVALS, First, Name, Random, Shares, Without
from mechstudy.verdict.specifications import specifications
from mechstudy.verdict.specificity import Elsewhere
from mechstudy.verdict.stability import Stability
from mechstudy.verdict.variants import VariantCircuit


@dataclass(frozen=True)
class Verdict:
    """Whether a circuit's claim holds, with everything that was measured.

    Attributes:
        behaviour: its name.
        outcome: ``holds``, ``partly``, ``not shown`` or ``refuted``, by the rule of `conclude`.
        why: in a sentence.
        criteria: each with its number, interval, threshold and state.
        circuit: the nodes that were judged.
        nodes: all nodes it was chosen from.
        effects: of replacing each, predicted on the train prompts.
        shares: contrasts under every circuit that was run, by what the others are replaced by.
        prompts: the test prompts.
        stability: of the choice.
        elsewhere: what replacing the circuit does to other behaviours and text; None without any.
        backups: nodes that take over.
        settings: that it was made with.
        replaced_by: what nodes are replaced by, where one kind is meant.
        variants: the circuits of other dictionaries.
    """

    behaviour: str
    outcome: Outcome
    why: str
    criteria: tuple[Criterion, ...]
    circuit: Circuit
    nodes: tuple[Any, ...]
    effects: Float64[Tensor, " n"]
    shares: Mapping[Replacement, Shares]
    prompts: tuple[PromptPair, ...]
    stability: Stability
    elsewhere: Elsewhere | None
    backups: Backups
    settings: VerdictConfig
    replaced_by: Replacement
    variants: tuple[VariantCircuit, ...] = ()

    @property
    def primary(self) -> Shares:
        """The shares where nodes are replaced as is meant."""
        return self.shares[self.replaced_by]

    @property
    def frame(self) -> pl.DataFrame:
        """A row for each criterion: name, state, value, low, high, threshold, at_most, question."""
        rows = [
            (c.name, c.state, c.estimate.value, *(c.estimate.ci or (None, None)), c.threshold, c.at_most, c.question)
            for c in self.criteria
        ]
        schema = {"name": pl.String, "state": pl.String} | dict.fromkeys(
            ("value", "low", "high", "threshold"), pl.Float64
        )
        return pl.DataFrame(rows, schema=schema | {"at_most": pl.Boolean, "question": pl.String}, orient="row")

    @property
    def members(self) -> pl.DataFrame:
        """A row for each node of the circuit, the strongest first: node, effect, chosen (share of halves)."""
        numbers = self.circuit.members
        return pl.DataFrame(
            {
                "node": [str(self.nodes[i]) for i in numbers],
                "effect": [float(self.effects[i]) for i in numbers],
                "chosen": self.stability.frequency.tolist(),
            }
        )

    @property
    def curve(self) -> pl.DataFrame:
        """F by size of the circuit: k, fraction, f, low, high."""
        rows = []
        for name in self.primary.values:
            if isinstance(name, First):
                f = self.primary.f(name)
                rows.append((name.size, name.size / len(self.nodes), f.value, *(f.ci or (None, None))))
        schema = {"k": pl.Int64} | dict.fromkeys(("fraction", "f", "low", "high"), pl.Float64)
        return pl.DataFrame(rows, schema=schema, orient="row").sort("k")

    @property
    def parts(self) -> pl.DataFrame:
        """What each group of members adds to f, beside the others: group, f (without it), change, low, high, p, q.

        p and q (adjusted over the groups) are of the hypothesis that leaving it out changes nothing.
        """
        own = self.primary
        names = [name for name in own.values if isinstance(name, Without)]
        p, q = part_tests(own.contrasts(KEPT), [own.contrasts(name) for name in names], own.clusters, own.seed)
        rows = []
        for name, *tests in zip(names, p, q, strict=True):
            change = own.combined([KEPT, name], [1.0, -1.0])
            rows.append((name.group, own.f(name).value, change.value, *(change.ci or (None,) * 2), *tests))
        columns = ("f", "change", "low", "high", "p", "q")
        return pl.DataFrame(rows, schema={"group": pl.String} | dict.fromkeys(columns, pl.Float64), orient="row")

    @property
    def equivalence(self) -> Equivalence:
        """Whether the circuit's contrast is above the model's as often as below it."""
        own = self.primary
        return equivalence(own.contrasts(KEPT), own.contrasts(ALL), own.clusters, own.level)

    @property
    def rivals(self) -> pl.DataFrame:
        """Circuits of equal size: circuit, f, lost (null where not measured), ahead, low, high.

        ``ahead`` is how much more the circuit carries on the same prompts, with its interval.
        """
        p = self.primary
        randoms = [name.number for name in p.values if isinstance(name, Random) and not name.cut]
        rows: list[tuple[Any, ...]] = [(KEPT, p.f(KEPT).value, p.lost(CUT).value, None, None, None)]
        rows += [self._rival(f"random {i}", Random(i), p.lost(Random(i, cut=True)).value) for i in randoms]
        rows += [self._rival(name, name) for name in RIVALS if name in p.values]
        columns = ("f", "lost", "ahead", "low", "high")
        return pl.DataFrame(rows, schema={"circuit": pl.String} | dict.fromkeys(columns, pl.Float64), orient="row")

    def _rival(self, label: str, name: Name, lost: float | None = None) -> tuple[Any, ...]:
        ahead = self.primary.combined([KEPT, name], [1.0, -1.0])
        return (label, self.primary.f(name).value, lost, ahead.value, *(ahead.ci or (None, None)))

    @property
    def specifications(self) -> pl.DataFrame:
        """F of every combination of choices: replaced_by, ranking, size, template, f."""
        return pl.DataFrame(specifications(self.shares, self.prompts))

    @property
    def by_replacement(self) -> pl.DataFrame:
        """The circuit by what other nodes are replaced by: replaced_by, f, low, high, lost, lost_low, lost_high."""
        rows = []
        for kind, of_kind in self.shares.items():
            f, lost = of_kind.f(KEPT), of_kind.lost(CUT)
            rows.append((kind, f.value, *(f.ci or (None, None)), lost.value, *(lost.ci or (None, None))))
        names = ("f", "low", "high", "lost", "lost_low", "lost_high")
        return pl.DataFrame(rows, schema={"replaced_by": pl.String} | dict.fromkeys(names, pl.Float64), orient="row")

    @cached_property
    def record(self) -> dict[str, Any]:
        """As it is written to ``verdict.json``."""
        p = self.primary
        return {
            "behaviour": self.behaviour,
            "outcome": self.outcome,
            "why": self.why,
            "replaced_by": self.replaced_by,
            "n_nodes": len(self.nodes),
            "size": self.circuit.size,
            "reached_on_train": self.circuit.reached,
            "n_train": self.stability.jaccard.n,
            "n_test": len(self.prompts),
            "criteria": [c.record for c in self.criteria],
            "members": self.members.to_dicts(),
            "curve": self.curve.to_dicts(),
            "by_replacement": self.by_replacement.to_dicts(),
            "equivalence": self.equivalence.record,
            "parts": self.parts.to_dicts(),
            "rivals": self.rivals.to_dicts(),
            "variants": [one.record for one in self.variants],
            "specifications": self.specifications.to_dicts(),
            "stability": self.stability.record,
            "elsewhere": self.elsewhere.record if self.elsewhere else None,
            "backups": self.backups.record(
                self.nodes,
                {f"lost_{k}": p.lost(of).value for k, of in (("circuit", CUT), ("backups", BACKUPS), ("both", BOTH))},
            ),
        }  # fmt: skip

    def __repr__(self) -> str:
        lines = [f"{self.outcome}: {self.why} ({self.circuit.size} of {len(self.nodes)} nodes)"]
        for c in self.criteria:
            e = c.estimate
            value = "not measured" if e.value is None else f"{e.value:.2f}"
            interval = f" [{e.ci[0]:.2f}, {e.ci[1]:.2f}]" if e.ci else ""
            sign = "<=" if c.at_most else ">="
            lines.append(f"  {c.name:<12} {c.state:<12} {value}{interval}, asked {sign} {c.threshold:g}")
        return "\n".join(lines)
