"""The circuit that is judged: the smallest that does what the model does, on train prompts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.donors import DonorSource
from mechstudy.circuits.effects_table import EffectsTable
from mechstudy.circuits.universe import NodeSet
from mechstudy.core.seeds import numpy_generator
from mechstudy.interventions.faithfulness import MIB_FRACTIONS, circuit_sizes, first_kept
from mechstudy.interventions.keep_only import keep_only_values
from mechstudy.models.language_model import LanguageModel

BETWEEN = 6  # sizes that are tried between two of MIB's


@dataclass(frozen=True)
class Circuit:
    """The first ``size`` nodes of an order, and why that many.

    Attributes:
        order: node numbers, the strongest first.
        size: of the circuit.
        reached: its f on the prompts it was chosen on; None where f is undefined.
    """

    order: tuple[int, ...]
    size: int
    reached: float | None

    @property
    def members(self) -> tuple[int, ...]:
        """The numbers of its nodes, the strongest first."""
        return self.order[: self.size]

    def kept(self) -> Bool[Tensor, " n"]:
        """Which of all nodes it has."""
        return first_kept(self.order, [self.size])[0]


def choose(
    model: LanguageModel,
    nodes: NodeSet,
    effects: EffectsTable,
    pairs: Sequence[PromptPair],
    replacements: DonorSource,
    *,
    ranking: str = "balance",
    aim: float = 0.9,
    batch_tokens: int = 4096,
) -> Circuit:
    """The smallest circuit whose f on ``pairs`` reaches ``aim``: of MIB's sizes, then of some between it and the last.

    Where none does, that of MIB's sizes with the largest f up to a tenth of the nodes.
    """
    n = len(nodes.nodes)
    order = effects.order(ranking)
    sizes = sorted({k for k in circuit_sizes(n, MIB_FRACTIONS) if 0 < k < n} or {1})

    def means(sizes: Sequence[int]) -> list[float]:
        kept_CN = first_kept(order, sizes)
        values_CP = keep_only_values(model, pairs, nodes, kept_CN, replacements, batch_tokens=batch_tokens)
        return [float(mean) for mean in values_CP.mean(1)]

    none, *of_sizes, every = means([0, *sizes, n])
    effect = every - none
    if abs(effect) < 1e-9:
        return Circuit(tuple(order), sizes[0], None)
    shares = {k: (mean - none) / effect for k, mean in zip(sizes, of_sizes, strict=True)}
    for i, k in enumerate(sizes):
        if shares[k] >= aim:
            if between := sizes_between(sizes[i - 1] if i else 0, k):
                shares |= {size: (mean - none) / effect for size, mean in zip(between, means(between), strict=True)}
            least = next(size for size in (*between, k) if shares[size] >= aim)
            return Circuit(tuple(order), least, shares[least])
    small = [k for k in sizes if k <= max(sizes[0], n // 10)]
    best = max(small, key=lambda k: shares[k])
    return Circuit(tuple(order), best, shares[best])


def sizes_between(low: int, high: int) -> list[int]:
    """Sizes between two others, at most `BETWEEN`, in equal ratios; every one where there are as few."""
    if high - low - 1 <= BETWEEN:
        return list(range(low + 1, high))
    ratio = (high / max(low, 1)) ** (1 / (BETWEEN + 1))
    return sorted({round(max(low, 1) * ratio**step) for step in range(1, BETWEEN + 1)} - {low, high, 0})


def kind_of(node: Any) -> str:
    """Feature, error, head or mlp."""
    name = str(node).partition(".")[0]
    return "feature" if name == "f" else name


def random_circuits(nodes: NodeSet, members: Sequence[int], n: int, seed: int) -> list[Bool[Tensor, " n"]]:
    """``n`` circuits with as many nodes of each kind and layer as ``members`` have, drawn from the others.

    Where a layer has too few others of a kind, its members are drawn from too.
    """
    wanted = Counter((kind_of(nodes.nodes[i]), nodes.nodes[i].layer) for i in members)
    own = set(members)
    others: dict[tuple[str, int], list[int]] = defaultdict(list)
    for i, node in enumerate(nodes.nodes):
        others[kind_of(node), node.layer].append(i)
    circuits = []
    for draw in range(n):
        rng = numpy_generator(seed, "verdict", f"random circuit {draw}")
        kept_N = torch.zeros(len(nodes.nodes), dtype=torch.bool)
        for place, count in sorted(wanted.items()):
            free = [i for i in others[place] if i not in own]
            pool = free if len(free) >= count else others[place]
            kept_N[torch.from_numpy(rng.choice(pool, count, replace=False))] = True
        circuits.append(kept_N)
    return circuits


def groups_of(nodes: NodeSet, members: Sequence[int], most: int = 8) -> dict[str, list[int]]:
    """The members in at most ``most`` groups by kind and neighbouring layers, named as ``heads 17-23``."""
    plural = {"feature": "features", "error": "errors", "head": "heads", "mlp": "MLPs"}
    of_kind: dict[str, list[int]] = defaultdict(list)
    for i in members:
        of_kind[kind_of(nodes.nodes[i])].append(i)
    groups: dict[str, list[int]] = {}
    for kind, some in sorted(of_kind.items()):
        share = max(1, round(most * len(some) / len(members)))
        some.sort(key=lambda i: nodes.nodes[i].layer)
        for part in torch.tensor_split(torch.arange(len(some)), min(share, len(some))):
            of_part = [some[i] for i in part.tolist()]
            low, high = nodes.nodes[of_part[0]].layer, nodes.nodes[of_part[-1]].layer
            name = f"{plural[kind]} {low}" + (f"-{high}" if high > low else "")
            groups.setdefault(name, []).extend(of_part)
    return groups
