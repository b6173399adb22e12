"""What the interventions allow one to claim, in plain words, and what they do not.

A claim holds only if the effect's confidence interval excludes zero, the multiplicity-adjusted p-value is
below 0.05, and the effect differs from matched controls. All numbers are the intervention artifact's. A test of too
few groups of prompts cannot reach such a p-value and is never more than "not shown".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mechstudy.report import formatting
from mechstudy.report.data import Address, UnitFiles
from mechstudy.statistics.clusters import ALL_EQUAL, ONE_GROUP
from mechstudy.statistics.permutation import smallest_p

ALPHA = 0.05
Verdict = Literal["supported", "caveat", "unspecific", "unsupported"]

VERDICT_WORDS: dict[str, tuple[str, str]] = {
    "supported": ("Holds", "effect differs from zero and from matched controls"),
    "caveat": ("Holds, with a caveat", "effect differs from zero and from controls, but see the caveat"),
    "unspecific": ("Not specific", "effect differs from zero, but not from matched controls"),
    "unsupported": ("Not shown", "these data do not distinguish the effect from zero"),
}

_LOWERING = ("ablation", "resampling")  # kinds of tests that lower the metric if the circuit is necessary


@dataclass(frozen=True)
class Measured:
    """A mean and its confidence interval; None where it was not measured.

    ``missing`` is why a mean has no interval (`statistics.clusters`: one group, equal in every group).
    """

    mean: float | None
    ci95: tuple[float, float] | None
    missing: str | None = None

    @classmethod
    def of(cls, record: Mapping[str, Any], field: str = "effect") -> Measured:
        """The effect of a test or group, its ``control_effect``, or its ``difference`` from the control."""
        interval = {"effect": "ci95", "control_effect": "control_ci95"}.get(field, f"{field}_ci95")
        return cls(record.get(field), *formatting.interval_or_reason(record, interval, field))

    @property
    def constant(self) -> bool:
        """Whether every group of prompts has this mean, so that there is no spread to make an interval of."""
        return self.missing == ALL_EQUAL

    @property
    def interval(self) -> str:
        """``[low, high]``, or ``n/a (one group)``."""
        return formatting.interval(self.ci95) if self.ci95 else formatting.no_interval(self.missing)

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies wholly on one side of zero (an end at zero does not)."""
        if self.constant:
            return bool(self.mean)
        return self.ci95 is not None and (self.ci95[0] > 0 or self.ci95[1] < 0)

    @property
    def has_ends(self) -> bool:
        """Whether it has an interval, or one without width."""
        return self.ci95 is not None or self.constant


@dataclass(frozen=True)
class Claim:
    """One test of a behaviour's circuit, with its verdict and the sentence that states it.

    ``number`` is where the test's numbers are kept; ``why`` explains the verdict; ``share`` is the part of the clean
    metric that the intervention takes away, where it lowers it.
    """

    number: Address
    kind: str
    title: str
    verdict: Verdict
    why: str
    sentence: str
    effect: Measured
    control: Measured
    difference: Measured
    n: int | None
    p_adjusted: float | None
    metric: str
    share: float | None
    caveats: tuple[str, ...]


def claims(interventions: UnitFiles) -> list[Claim]:
    """The claims of one behaviour, in the order of its interventions' tests; empty where there are none."""
    summary = interventions.json("summary.json")
    tests: Mapping[str, Mapping[str, Any]] = summary.get("tests") or {}
    where = interventions.address("summary.json", "/tests")
    return [_claim(where.below(kind), kind, test, summary) for kind, test in tests.items()]


def _claim(number: Address, kind: str, test: Mapping[str, Any], summary: Mapping[str, Any]) -> Claim:
    effect, control, difference = (Measured.of(test, f) for f in ("effect", "control_effect", "difference"))
    verdict = judge(effect, control, difference, test.get("p_adjusted"), test.get("p_difference_adjusted"))
    obstacle = _obstacle(effect, test.get("n_clusters"))
    verdict = "unsupported" if obstacle else verdict
    caveats = _caveats(kind, test, verdict, effect, control)
    if verdict == "supported" and caveats:
        verdict = "caveat"
    label = str(test.get("label") or formatting.title(kind).lower())
    metric = str(test.get("metric") or summary.get("metric") or "logit difference")
    return Claim(
        number=number,
        kind=kind,
        title=formatting.title(label.rstrip(", ")),
        verdict=verdict,
        why=obstacle or VERDICT_WORDS[verdict][1],
        sentence=_sentence(label, metric, test, effect, control, verdict),
        effect=effect,
        control=control,
        difference=difference,
        n=test.get("n"),
        p_adjusted=test.get("p_adjusted"),
        metric=metric,
        share=_share(kind, effect.mean, summary.get("clean_mean")),
        caveats=tuple(caveats),
    )


def judge(
    effect: Measured,
    control: Measured,
    difference: Measured,
    p_adjusted: float | None,
    p_difference_adjusted: float | None = None,
) -> Verdict:
    """The verdict of a test.

    Against the controls, the CI of the paired difference decides; where it is missing, the two CIs must not
    overlap. Controls whose effects are all equal count as an interval without width. An effect smaller than the
    controls' is not specific, whatever its p-value; nor is one whose difference from them has an adjusted p-value of
    0.05 or more.
    """
    ci, control_ci = effect.ci95, control.ci95
    if control.constant and control.mean is not None:
        control_ci = (control.mean, control.mean)
    if effect.mean is None or ci is None or not effect.excludes_zero or p_adjusted is None or p_adjusted >= ALPHA:
        return "unsupported"
    if control.mean is None or control_ci is None:
        return "caveat"
    overlap = ci[0] <= control_ci[1] and ci[1] >= control_ci[0]
    apart = difference.excludes_zero if difference.has_ends else not overlap
    apart = apart and (p_difference_adjusted is None or p_difference_adjusted < ALPHA)
    return "supported" if apart and abs(effect.mean) > abs(control.mean) else "unspecific"


def _obstacle(effect: Measured, n_clusters: int | None) -> str | None:
    """Why the data cannot show the effect, whatever its size; None where they can."""
    if effect.mean is None:
        return None
    if n_clusters == 1 or (effect.missing == ONE_GROUP and not n_clusters):
        return "too few groups: all prompts are of one group, so an effect cannot be distinguished from chance"
    if n_clusters and (least := smallest_p(n_clusters)) >= ALPHA:
        return f"too few groups: with {n_clusters} groups of prompts p cannot fall below {least:.2g}"
    if effect.constant and effect.mean == 0:
        return "every effect is exactly zero"
    if effect.constant:
        return "the effect is equal in every group, so there is no spread to judge it by"
    return None


def _share(kind: str, effect: float | None, clean: float | None) -> float | None:
    """How much of the clean prompts' metric an intervention takes away; None where that makes no sense."""
    if effect is None or effect >= 0 or clean is None or clean < 0.1 or not kind.startswith((*_LOWERING, "patch")):
        return None
    return -effect / clean


def _caveats(kind: str, test: Mapping[str, Any], verdict: Verdict, effect: Measured, control: Measured) -> list[str]:
    caveats = []
    if control.mean is None:
        caveats.append("No matched control was measured.")
    elif effect.ci95 is not None and not control.has_ends:
        caveats.append("The controls have no interval.")
    elif control.excludes_zero:
        share = ""
        if effect.mean and verdict in ("supported", "caveat"):
            of_effect = abs(control.mean / effect.mean)
            share = f", {f'{of_effect:.0%}' if of_effect >= 0.005 else 'less than 1%'} of the effect"
        caveats.append(f"The controls are not null, their CI excludes zero too{share}.")
    if kind.startswith(_LOWERING) and verdict != "unsupported" and (effect.mean or 0) > 0:
        caveats.append("The effect points the other way: a necessary circuit would lower the metric.")
    for field, least, words in (("n", 30, "prompts"), ("n_clusters", 10, "independent clusters of prompts")):
        if test.get(field) is not None and test[field] < least and effect.ci95 is not None:
            caveats.append(f"Only {test[field]} {words}, so the interval is rough.")
    return caveats


def _sentence(
    label: str, metric: str, test: Mapping[str, Any], effect: Measured, control: Measured, verdict: Verdict
) -> str:
    if effect.mean is None:
        return f"{label}: not measured"
    sign = -1 if effect.mean < 0 else 1
    gerund = label.split(" ", 1)[0].rstrip(":,").endswith("ing")
    if verdict == "unsupported":
        # A raw interval may exclude zero where the corrected p does not: then the p is what decided.
        verb = "is not shown to change" if effect.excludes_zero else "does not measurably change"
        sign, by = 1, ":"
    else:
        verb, by = "lowers" if sign < 0 else "raises", " by"
    body = f"{label}{'' if gerund else ':'} {verb} the {metric}{by} {_signed(effect, sign)}"
    if test.get("n") is not None:
        body += f" on {test['n']} unseen prompts"
    if verdict == "unsupported" and effect.excludes_zero:
        body += f" (adjusted {formatting.p_value(test.get('p_adjusted'))}: not significant among all tests)"
    return body + (
        "; no matched control" if control.mean is None else f"; matched controls change it by {_signed(control, 1)}"
    )


def _signed(measured: Measured, sign: int) -> str:
    """A mean and its interval, both multiplied by ``sign``."""
    assert measured.mean is not None
    value = formatting.beside(sign * measured.mean, measured.ci95)
    if measured.ci95 is None:
        return f"{value}, interval {formatting.no_interval(measured.missing)}"
    return f"{value} {formatting.interval(sorted(sign * end for end in measured.ci95))}"
