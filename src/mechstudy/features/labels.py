"""Labels of features: a rule of what each fires on, induced on some documents and scored on others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy.random import Generator

from mechstudy.core.seeds import numpy_generator
from mechstudy.features.rules import Rows, Rule, Text, balanced_accuracy, induced

CLAIM = 0.75  # balanced accuracy of halves on each other, from which a rule is claimed
FEWEST = 8  # strong activations in each half
MOST = 200  # of a half that are used
SILENT = 0.1  # of the threshold of strong activation
_NEAR = 5  # tokens around a strong activation


@dataclass(frozen=True)
class Label:
    """What a feature fires on, in words, and how far that can be relied on.

    Attributes:
        rule: "on «food», «meal»"; None with fewer than `FEWEST` strong activations in either half of the documents.
        claimed: whether rules induced on each half of these documents separate strong activations from silence on the
            other half (balanced accuracy of at least `CLAIM`).
        score: balanced accuracy (the AUROC of a yes or no) on the other documents, against hard negatives.
        shuffled: the score of another feature's rule on the same rows.
        precision: share of the tokens of those documents for which the rule holds on which it fires strongly; tokens of
            weak activation are not counted.
        recall: share of the strong activations for which the rule holds.
        n: strong activations in those documents.
        sign: -1 if it is about activations below zero, of a neuron.
    """

    rule: str | None
    claimed: bool
    score: float | None
    shuffled: float | None
    precision: float | None
    recall: float | None
    n: int
    sign: int = 1

    @property
    def record(self) -> dict[str, Any]:
        """As it is written to ``features.json``."""
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}


def labels(text: Text, activations: Iterable[Float[np.ndarray, " n"]], *, seed: int = 0) -> list[Label]:
    """Labels of features.

    Documents alternate: rules are induced on the even ones and scored on the odd ones. Strong are the activations
    that make up half of a feature's sum; silent is what is below a tenth of the weakest of these. As many silent rows
    as strong ones are judged with them: a half of the same tokens where there are so many, a quarter from around strong
    activations, the rest at random. So a rule that names tokens scores well only where the feature fires on them
    whatever the context. A rule is claimed where rules induced on each half of the even documents tell the other half.

    Args:
        text: the documents.
        activations: of each feature on each row of the documents; 0 at first positions.
        seed: of drawn rows.

    Formula: detection with hard negatives (Paulo et al. 2410.13928), the rule in the place of a model's explanation.
    """
    found = [_Rows.of(text, acts_N, numpy_generator(seed, "labels", str(i))) for i, acts_N in enumerate(activations)]
    rules = [one.rule(text) if one else None for one in found]
    ruled = [i for i, rule in enumerate(rules) if rule]
    other = dict(zip(ruled, np.roll(ruled, len(ruled) // 2 or 1).tolist(), strict=True))
    made = []
    for i, (one, rule) in enumerate(zip(found, rules, strict=True)):
        if one is None or rule is None:
            made.append(Label(None, False, None, None, None, None, len(one.all_scored()[0]) if one else 0))
            continue
        wrong = rules[other[i]] if other[i] != i else None
        strong, silent = (rule.holds(text, rows) for rows in one.all_scored())
        made.append(
            Label(
                str(rule),
                one.agreed(text) >= CLAIM,
                separation(text, rule, one.scored_on),
                separation(text, wrong, one.scored_on) if wrong else None,
                float(strong.sum() / max(1, strong.sum() + silent.sum())),
                float(strong.mean()),
                len(strong),
                one.sign,
            )
        )
    return made


@dataclass(frozen=True)
class _Rows:
    """Strong and silent rows of a feature: to induce on, to score on, and all of the documents that are scored.

    The last as packed bits, since there are as many of them as tokens, of every feature.
    """

    induced_on: tuple[Rows, Rows]
    scored_on: tuple[Rows, Rows]
    scored_bits: tuple[UInt8[np.ndarray, " b"], UInt8[np.ndarray, " b"]]
    sign: int

    @classmethod
    def of(cls, text: Text, acts_N: Float[np.ndarray, " n"], rng: Generator) -> _Rows | None:
        sign = 1 if np.maximum(acts_N, 0).sum() >= np.maximum(-acts_N, 0).sum() else -1
        size_N = np.maximum(sign * acts_N, 0)
        places = np.arange(len(size_N))
        even_N, inside_N = places // text.length % 2 == 0, places % text.length > 0
        threshold = _half_of_the_sum(size_N[even_N])
        halves = []
        for half_N in (even_N, ~even_N):
            strong = places[half_N & (size_N >= threshold)]
            silent = places[half_N & inside_N & (np.abs(acts_N) < SILENT * threshold)]
            if len(strong) < FEWEST or len(silent) < FEWEST:
                return None
            halves.append((strong, silent))
        induced_on, scored_on = (_sampled(text, strong, silent, rng) for strong, silent in halves)
        bits = [np.packbits(np.isin(places, rows)) for rows in halves[1]]
        return cls(induced_on, scored_on, (bits[0], bits[1]), sign)

    def all_scored(self) -> tuple[Rows, Rows]:
        """All strong and all silent rows of the documents that are scored."""
        strong, silent = (np.flatnonzero(np.unpackbits(bits)) for bits in self.scored_bits)
        return strong, silent

    def rule(self, text: Text) -> Rule | None:
        """Of all documents that rules are induced on."""
        return induced(text, *self.induced_on)

    def agreed(self, text: Text) -> float:
        """How well rules induced on each half of these documents tell the other half, on average."""
        folds = [[rows[rows // text.length // 2 % 2 == fold] for rows in self.induced_on] for fold in (0, 1)]
        if not all(len(rows) for fold in folds for rows in fold):
            return 0.0
        rules = [induced(text, *fold) for fold in folds]
        return float(
            np.mean(
                [
                    separation(text, rule, (*fold,)) if rule else 0.5
                    for rule, fold in zip(rules, folds[::-1], strict=True)
                ]
            )
        )


def separation(text: Text, rule: Rule, rows: tuple[Rows, Rows]) -> float:
    """Balanced accuracy of a rule on strong and silent rows."""
    return balanced_accuracy(*(rule.holds(text, some) for some in rows))


def _half_of_the_sum(size_N: Float[np.ndarray, " n"]) -> float:
    """The activation from which on the larger ones make up half of the sum; infinite where nothing is active."""
    falling = np.sort(size_N)[::-1]
    sums = falling.cumsum(dtype=np.float64)
    return float(falling[np.searchsorted(sums, sums[-1] / 2)]) if sums[-1] > 0 else np.inf


def _sampled(text: Text, strong: Rows, silent: Rows, rng: Generator) -> tuple[Rows, Rows]:
    """Up to `MOST` strong rows and as many silent ones, hard ones first."""
    positives = np.sort(rng.choice(strong, min(len(strong), MOST), replace=False))
    n = len(positives)
    near = np.zeros(len(silent), bool)
    for step in range(1, _NEAR + 1):
        near |= np.isin(silent - step, positives) | np.isin(silent + step, positives)
    same = text.same_token(silent, positives)
    negatives: list[int] = []
    for pool, wanted in ((silent[same], n // 2), (silent[near & ~same], n // 4), (silent, n)):
        left = np.setdiff1d(pool, negatives)
        take = min(len(left), wanted, n - len(negatives))
        negatives += rng.choice(left, take, replace=False).tolist()
    return positives, np.sort(np.array(negatives, dtype=np.int64))


def claims(made: Sequence[Label]) -> dict[str, Any]:
    """How many of some features have a label, how good it is, and how much better than another feature's.

    Returns:
        n, n_claimed, share_claimed, median_score of all that have a rule, median_claimed and median_shuffled of those
        claimed, and ``auroc``: the share of pairs (a claimed rule's score, another's on the same rows) in which the
        right one is ahead, ties counting half.
    """
    ruled, claimed = [x for x in made if x.score is not None], [x for x in made if x.claimed]
    right = np.array([x.score for x in claimed], dtype=float)
    wrong = np.array([x.shuffled for x in claimed if x.shuffled is not None], dtype=float)
    ahead = (right[:, None] > wrong) + 0.5 * (right[:, None] == wrong)

    def median(values: Sequence[float | None] | np.ndarray) -> float | None:
        return float(np.median(np.array(values, dtype=float))) if len(values) else None

    return {
        "n": len(made),
        "n_claimed": len(claimed),
        "share_claimed": len(claimed) / len(made) if made else None,
        "median_score": median([x.score for x in ruled]),
        "median_claimed": median(right),
        "median_shuffled": median(wrong),
        "auroc": float(ahead.mean()) if ahead.size else None,
    }
