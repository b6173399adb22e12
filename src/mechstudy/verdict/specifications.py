"""The specification curve: does the finding survive other choices of analysis?

Simonsohn, Simmons & Nelson 2020: every defensible combination of choices, and the share that agrees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.donors import Replacement
from mechstudy.statistics.bootstrap import Estimate
from mechstudy.verdict.shares import Shares

RANKINGS = ("balance", "magnitude", "support")


def named(ranking: str, size: int) -> str:
    """The name of the circuit of the first nodes of a ranking."""
    return f"{ranking}, first {size}"


def specifications(shares: Mapping[Replacement, Shares], pairs: Sequence[PromptPair]) -> list[dict[str, Any]]:
    """F of every combination of replacement, ranking, size and template, all templates together among them.

    Args:
        shares: with circuits named by `named`, by what others are replaced by.
        pairs: the prompts.
    """
    templates: dict[str, list[int] | None] = {"all": None}
    if len({pair.template for pair in pairs}) > 1:
        for name in sorted({pair.template for pair in pairs}):
            templates[name] = [i for i, pair in enumerate(pairs) if pair.template == name]
    return [
        {"replaced_by": kind, "ranking": ranking, "size": size, "template": template, "f": of_kind.point(name, rows)}
        for kind, of_kind in shares.items()
        for name in of_kind.values
        if (parsed := _parsed(name)) is not None
        for ranking, size in [parsed]
        for template, rows in templates.items()
    ]


def _parsed(name: str) -> tuple[str, int] | None:
    ranking, _, size = name.partition(", first ")
    return (ranking, int(size)) if ranking in RANKINGS and size else None


def robustness(shares: Mapping[Replacement, Shares], pairs: Sequence[PromptPair], reached: float) -> Estimate:
    """The share of specifications in which f is at least ``reached``; one that is undefined does not agree."""
    rows = specifications(shares, pairs)
    agreeing = sum(row["f"] is not None and row["f"] >= reached for row in rows)
    return Estimate(agreeing / len(rows), None, len(rows), len(rows))
