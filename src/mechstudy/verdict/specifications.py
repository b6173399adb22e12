"""The specification curve: does the finding survive other choices of analysis?

Simonsohn, Simmons & Nelson 2020: every defensible combination of choices, and the share that agrees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.donors import Replacement
from mechstudy.statistics.bootstrap import Estimate
from mechstudy.verdict.shares import Shares, Specification

RANKINGS = ("balance", "magnitude", "support")


def specifications(shares: Mapping[Replacement, Shares], pairs: Sequence[PromptPair]) -> list[dict[str, Any]]:
    """F of every combination of replacement, ranking, size and template, all templates together among them.

    Args:
        shares: with the circuits of `Specification`s, by what others are replaced by.
        pairs: the prompts.
    """
    templates: dict[str, list[int] | None] = {"all": None}
    if len({pair.template for pair in pairs}) > 1:
        for name in sorted({pair.template for pair in pairs}):
            templates[name] = [i for i, pair in enumerate(pairs) if pair.template == name]
    return [
        {"replaced_by": kind, "ranking": s.ranking, "size": s.size, "template": template, "f": of_kind.point(s, rows)}
        for kind, of_kind in shares.items()
        for s in of_kind.values
        if isinstance(s, Specification)
        for template, rows in templates.items()
    ]


def robustness(shares: Mapping[Replacement, Shares], pairs: Sequence[PromptPair], reached: float) -> Estimate:
    """The share of specifications in which f is at least ``reached``; one that is undefined does not agree."""
    rows = specifications(shares, pairs)
    agreeing = sum(row["f"] is not None and row["f"] >= reached for row in rows)
    return Estimate(agreeing / len(rows), None, len(rows), len(rows))
