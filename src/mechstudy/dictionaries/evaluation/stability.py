"""Similarity of two dictionaries' feature directions, for example of two seeds of one recipe.

Dictionaries trained on the same rows from different seeds share only part of their features (Paulo and Belrose 2025,
arXiv 2501.16615, who match decoder and encoder directions one to one as here), so a feature that other seeds
find too is better evidence about the model than one that they do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary

ABOVE = (0.7, 0.9)  # |cosine| above which two directions count as similar
EXACT_UP_TO = 8_192  # features; beyond it the matrix of cosines (512 MB in float64) is computed in chunks
NEIGHBOURS = 32  # candidates of every direction beyond that
CHUNK = 1 << 24  # cosines held at a time
_CHANCE_ROWS = 1_024
_CHANCE_SEED = 271_828_182_845  # differs from every training's seed, so that no dictionary starts at these directions


def match_directions(
    a_FD: Float[Tensor, "f d_a"], b_GD: Float[Tensor, "g d_b"], *, exact_up_to: int = EXACT_UP_TO
) -> dict[str, Any]:
    """Compare two sets of directions by |cosine|; a zero row has cosine 0 with everything.

    The one-to-one matching maximises the sum of |cosines| (Hungarian algorithm) and matches the whole smaller set. With
    more than `exact_up_to` directions in the larger one it is the best matching among the `NEIGHBOURS` nearest of every
    direction, and one without a partner there counts as 0: a lower bound, of .596730 instead of .596736 for 8,192
    directions in 576 coordinates of which 60% are shared. Twice 16,384 take 17 s on one core, twice 32,768 a minute.

    Returns:
        nearest_a, nearest_b: {mean, above: {"0.7": share, "0.9": share}} of each row's best |cosine| in the other set;
        matched: the same over pairs, with n (pairs) and exact;
        chance: mean best |cosine| of rows of `a_FD` with as many random directions as there are in `b_GD`.

    Raises:
        MechstudyError: directions of different widths, or none; NaN or infinity (names the row).
    """
    a, b = _unit(a_FD, "first"), _unit(b_GD, "second")
    if a.shape[1] != b.shape[1]:
        raise MechstudyError(
            f"directions of {a.shape[1]} and of {b.shape[1]} coordinates cannot be compared",
            fix="dictionaries of the same site of the same model",
        )
    exact = max(len(a), len(b)) <= exact_up_to
    small, large = (a, b) if len(a) <= len(b) else (b, a)
    if exact:
        cosine = (small.double() @ large.double().T).abs()
        best_small, best_large = cosine.amax(1), cosine.amax(0)
        paired = _hungarian(cosine)
    else:
        neighbours = _Neighbours(small, large)
        best_small, best_large = neighbours.of_small[0][:, 0], neighbours.of_large[0][:, 0]
        paired = neighbours.match()
    best_a, best_b = (best_small, best_large) if small is a else (best_large, best_small)
    draw = torch.Generator().manual_seed(_CHANCE_SEED)
    some = a[:: -(-len(a) // _CHANCE_ROWS)]
    random = _unit(torch.randn(b.shape, generator=draw), "random")
    return {
        "nearest_a": _summary(best_a),
        "nearest_b": _summary(best_b),
        "matched": {**_summary(paired), "n": len(paired), "exact": exact},
        "chance": float((some @ random.T).abs().amax(1).double().mean()),
    }


def compare(a: Dictionary, b: Dictionary, *, exact_up_to: int = EXACT_UP_TO) -> dict[str, Any]:
    """`match_directions` of two dictionaries' decoder rows and of their encoder columns.

    Features that never fire keep their initial directions, which match nothing.

    Returns:
        decoder, encoder (as `match_directions`); n_features [of a, of b]; sites [of a, of b], as their files say.
    """
    return {
        "decoder": match_directions(a.W_dec, b.W_dec, exact_up_to=exact_up_to),
        "encoder": match_directions(a.W_enc.T, b.W_enc.T, exact_up_to=exact_up_to),
        "n_features": [a.cfg.d_sae, b.cfg.d_sae],
        "sites": [f"{d.cfg.site_in} > {d.cfg.site_out}" for d in (a, b)],
    }


def compare_all(
    dictionaries: Mapping[str, Dictionary] | Sequence[Dictionary], *, exact_up_to: int = EXACT_UP_TO
) -> dict[str, Any]:
    """`compare` of all pairs, for example of one recipe's seeds.

    Returns:
        pairs: one dict per pair, with names `a` and `b` (positions where a sequence was given);
        mean: over pairs, {decoder, encoder}: {nearest, matched, above: {"0.7", "0.9"} (of matched), chance}.

    Raises:
        MechstudyError: fewer than two dictionaries.
    """
    named = dict(dictionaries) if isinstance(dictionaries, Mapping) else {str(i): d for i, d in enumerate(dictionaries)}
    if len(named) < 2:
        raise MechstudyError(f"{len(named)} dictionary leaves nothing to compare", fix="at least two")
    pairs = [
        {"a": a, "b": b, **compare(named[a], named[b], exact_up_to=exact_up_to)} for a, b in combinations(named, 2)
    ]
    return {"pairs": pairs, "mean": {part: _mean([pair[part] for pair in pairs]) for part in ("decoder", "encoder")}}


def _mean(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def over(values: Iterator[float]) -> float:
        return float(np.mean(list(values)))

    return {
        "nearest": over((f["nearest_a"]["mean"] + f["nearest_b"]["mean"]) / 2 for f in pairs),
        "matched": over(f["matched"]["mean"] for f in pairs),
        "above": {f"{bound}": over(f["matched"]["above"][f"{bound}"] for f in pairs) for bound in ABOVE},
        "chance": over(f["chance"] for f in pairs),
    }


def _summary(cosines_N: Tensor) -> dict[str, Any]:
    values = cosines_N.double()
    return {
        "mean": float(values.mean()),
        "above": {f"{bound}": float((values >= bound).double().mean()) for bound in ABOVE},
    }


def _unit(rows_FD: Tensor, which: str) -> Tensor:
    """Rows of length one, float32 on the CPU; zero rows stay."""
    rows = rows_FD.detach().cpu().float()
    if not len(rows):
        raise MechstudyError(f"the {which} set has no directions")
    finite = torch.isfinite(rows).all(1)
    if not bool(finite.all()):
        raise MechstudyError(
            f"the {which} set has directions of NaN or infinity", where=f"feature {int((~finite).nonzero()[0])}"
        )
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / lengths.clamp_min(1e-30)


def _hungarian(cosine_FG: Tensor) -> Tensor:
    rows, columns = linear_sum_assignment(cosine_FG.numpy(), maximize=True)
    return cosine_FG[torch.from_numpy(rows), torch.from_numpy(columns)]


class _Neighbours:
    """The nearest of every direction in the other set, from cosines computed in chunks.

    of_small, of_large: (|cosines| [n, NEIGHBOURS], falling, and indices).
    """

    def __init__(self, small_FD: Tensor, large_GD: Tensor) -> None:
        self._sizes = len(small_FD), len(large_GD)
        n_small, n_large = (min(NEIGHBOURS, size) for size in reversed(self._sizes))
        rows: list[tuple[Tensor, Tensor]] = []
        best: tuple[Tensor, Tensor] | None = None
        step = max(1, CHUNK // len(large_GD))
        for first in range(0, len(small_FD), step):
            cosine = (small_FD[first : first + step] @ large_GD.T).abs()
            top, places = cosine.topk(n_small, 1)
            rows.append((top, places))
            index = torch.arange(first, first + len(cosine)).expand(len(large_GD), -1)
            values = cosine.T.contiguous()
            if best is not None:
                values, index = torch.cat([best[0], values], 1), torch.cat([best[1], index], 1)
            top, places = values.topk(min(n_large, values.shape[1]), 1)
            best = top, index.gather(1, places)
        assert best is not None
        self.of_small = torch.cat([values for values, _ in rows]), torch.cat([index for _, index in rows])
        self.of_large = best

    def match(self) -> Tensor:
        """|Cosines| of the best matching among the neighbours; 0 for a direction without a partner."""
        n_small, n_large = self._sizes
        edges: dict[int, float] = {}
        for (values, index), from_small in ((self.of_small, True), (self.of_large, False)):
            own = torch.arange(len(index))[:, None].expand_as(index)
            keys = own * n_large + index if from_small else index * n_large + own
            edges.update(zip(keys.flatten().tolist(), values.flatten().tolist(), strict=True))
        keys_E = np.fromiter(edges.keys(), np.int64, len(edges))
        costs_E = 1.0 - np.fromiter(edges.values(), np.float64, len(edges))
        # Every direction of the smaller set may stay alone, at the cost of cosine 0; a cost of 0 would mean no edge.
        alone = np.arange(n_small)
        rows, columns = np.concatenate([keys_E // n_large, alone]), np.concatenate([keys_E % n_large, n_large + alone])
        costs = np.concatenate([costs_E, np.ones(n_small)]).clip(0.0) + 1e-9
        matched, partner = min_weight_full_bipartite_matching(
            csr_matrix((costs, (rows, columns)), shape=(n_small, n_large + n_small))
        )
        return torch.tensor(
            [edges[int(row) * n_large + int(column)] if column < n_large else 0.0
             for row, column in zip(matched, partner, strict=True)]
        )  # fmt: skip
