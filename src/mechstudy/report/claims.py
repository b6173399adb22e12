"""What the interventions allow one to claim, in plain words, and what they do not.

A claim holds only if the effect's confidence interval excludes zero, the multiplicity-adjusted p-value is
below 0.05, and the effect differs from matched controls. All numbers are the intervention artifact's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mechstudy.report import formatting
from mechstudy.report.data import Address, UnitFiles

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
    """A mean and its 95% confidence interval; None where it was not measured."""

    mean: float | None
    ci95: tuple[float, float] | None

    @classmethod
    def of(cls, record: Mapping[str, Any], field: str = "effect") -> Measured:
        """The effect of a test or group, its ``control_effect``, or its ``difference`` from the control."""
        interval = {"effect": "ci95", "control_effect": "control_ci95"}.get(field, f"{field}_ci95")
        return cls(record.get(field), formatting.ends_of(record.get(interval)))

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies wholly on one side of zero (an end at zero does not)."""
        return self.ci95 is not None and (self.ci95[0] > 0 or self.ci95[1] < 0)


@dataclass(frozen=True)
class Claim:
    """One test of a behaviour's circuit, with its verdict and the sentence that states it.

    ``number`` is where the test's numbers are kept; ``share`` is the part of the clean metric that the intervention
    takes away, where it lowers it.
    """

    number: Address
    kind: str
    title: str
    verdict: Verdict
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
    overlap. An effect smaller than the controls' is not specific, whatever its p-value; nor is one whose
    difference from them has an adjusted p-value of 0.05 or more.
    """
    ci, control_ci = effect.ci95, control.ci95
    if effect.mean is None or ci is None or not effect.excludes_zero or p_adjusted is None or p_adjusted >= ALPHA:
        return "unsupported"
    if control.mean is None or control_ci is None:
        return "caveat"
    overlap = ci[0] <= control_ci[1] and ci[1] >= control_ci[0]
    apart = difference.excludes_zero if difference.ci95 else not overlap
    apart = apart and (p_difference_adjusted is None or p_difference_adjusted < ALPHA)
    return "supported" if apart and abs(effect.mean) > abs(control.mean) else "unspecific"


def _share(kind: str, effect: float | None, clean: float | None) -> float | None:
    """How much of the clean prompts' metric an intervention takes away; None where that makes no sense."""
    if effect is None or effect >= 0 or clean is None or clean < 0.1 or not kind.startswith((*_LOWERING, "patch")):
        return None
    return -effect / clean


def _caveats(kind: str, test: Mapping[str, Any], verdict: Verdict, effect: Measured, control: Measured) -> list[str]:
    caveats = []
    if control.mean is None or control.ci95 is None:
        caveats.append("No matched control was measured.")
    elif control.excludes_zero:
        share = f", {abs(control.mean / effect.mean):.0%} of the effect" if effect.mean else ""
        share = share if verdict in ("supported", "caveat") else ""
        caveats.append(f"The controls are not null, their CI excludes zero too{share}.")
    if kind.startswith(_LOWERING) and verdict != "unsupported" and (effect.mean or 0) > 0:
        caveats.append("The effect points the other way: a necessary circuit would lower the metric.")
    for field, least, words in (("n", 30, "prompts"), ("n_clusters", 10, "independent clusters of prompts")):
        if test.get(field) is not None and test[field] < least:
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
        verb, sign, by = "does not measurably change", 1, ":"  # a raw interval may exclude zero: see p below
    else:
        verb, by = "lowers" if sign < 0 else "raises", " by"
    body = f"{label}{'' if gerund else ':'} {verb} the {metric}{by} {_signed(effect, sign)}"
    if test.get("n") is not None:
        body += f" on {test['n']} unseen prompts"
    if verdict == "unsupported" and effect.excludes_zero:
        body += f" (adjusted {formatting.p_value(test.get('p_adjusted'))}: not significant among all tests)"
    return body + ("; no matched control" if control.mean is None else f"; matched controls {_signed(control, sign)}")


def _signed(measured: Measured, sign: int) -> str:
    """A mean and its interval, both multiplied by ``sign``."""
    ends = None if measured.ci95 is None else sorted(sign * end for end in measured.ci95)
    assert measured.mean is not None
    return f"{formatting.beside(sign * measured.mean, measured.ci95)} {formatting.interval(ends)}"
