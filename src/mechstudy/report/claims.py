"""What the interventions allow one to claim, in plain words, and what they do not.

A claim holds only if the effect's confidence interval excludes zero, the multiplicity-adjusted p-value is
below 0.05, and the effect differs from matched controls. Nothing here is computed anew: the numbers are the
intervention artifact's, and this module only reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from . import formatting
from .numbers import Address
from .source import Source

ALPHA = 0.05
Verdict = Literal["supported", "caveat", "unspecific", "unsupported"]

VERDICT_WORDS: dict[str, tuple[str, str]] = {
    "supported": ("Holds", "effect differs from zero and from matched controls"),
    "caveat": ("Holds, with a caveat", "effect differs from zero and from controls, but see the caveat"),
    "unspecific": ("Not specific", "effect differs from zero, but not from matched controls"),
    "unsupported": ("Not shown", "these data do not distinguish the effect from zero"),
}

KIND_WORDS = {
    "ablation": "ablating the circuit's top features",
    "zero_ablation": "zero-ablating the circuit's top features",
    "mean_ablation": "mean-ablating the circuit's top features",
    "necessity": "removing the circuit",
    "sufficiency": "keeping only the circuit",
    "patching": "patching the circuit's features from the corrupted prompt",
    "resampling": "resampling the circuit's features from other prompts",
    "steering": "steering along the circuit's features",
}
_LOWERING = ("ablation", "necessity", "resampl")


@dataclass(frozen=True)
class Claim:
    """One test of a behaviour's circuit, with its verdict and the sentence that states it.

    `share` is the part of the clean metric that the intervention takes away, where it lowers it.
    """

    behaviour: str
    kind: str
    title: str
    verdict: Verdict
    sentence: str
    effect: float | None
    ci95: tuple[float, float] | None
    control_effect: float | None
    control_ci95: tuple[float, float] | None
    difference: float | None
    difference_ci95: tuple[float, float] | None
    n: int | None
    p: float | None
    p_adjusted: float | None
    metric: str
    share: float | None = None
    caveats: tuple[str, ...] = field(default=())

    @property
    def number(self) -> Address:
        """Where the test's numbers are kept."""
        return tests_of(self.behaviour).below(self.kind)

    @property
    def words(self) -> str:
        """The verdict in words."""
        return VERDICT_WORDS[self.verdict][0]


def tests_of(behaviour: str) -> Address:
    """Where the tests of a behaviour are kept."""
    return Address(f"intervene[{behaviour}]", "summary.json", "/tests")


def claims(source: Source, behaviour: str) -> list[Claim]:
    """The claims of one behaviour, in the intervention artifact's order; empty where it did not run."""
    summary = source.json(f"intervene[{behaviour}]", "summary.json") or {}
    metric = str(summary.get("metric") or "logit difference")
    clean = summary.get("clean_mean")
    return [_claim(behaviour, kind, test, metric, clean) for kind, test in (summary.get("tests") or {}).items()]


def _claim(behaviour: str, kind: str, test: Mapping[str, Any], default_metric: str, clean: float | None) -> Claim:
    metric = str(test.get("metric") or default_metric)
    ci, control_ci = _pair(test.get("ci95")), _pair(test.get("control_ci95"))
    difference_ci = _pair(test.get("difference_ci95"))
    verdict = judge(
        test.get("effect"),
        ci,
        test.get("control_effect"),
        control_ci,
        difference_ci,
        test.get("p_adjusted"),
        test.get("p_difference_adjusted"),
    )
    caveats = _caveats(kind, test, verdict, control_ci)
    if verdict == "supported" and caveats:
        verdict = "caveat"
    label = str(test.get("label") or KIND_WORDS.get(kind) or formatting.title(kind).lower())
    return Claim(
        behaviour=behaviour,
        kind=kind,
        title=formatting.title(label.rstrip(", ")),
        verdict=verdict,
        sentence=_sentence(label, metric, test, ci, control_ci, verdict),
        effect=test.get("effect"),
        ci95=ci,
        control_effect=test.get("control_effect"),
        control_ci95=control_ci,
        difference=test.get("difference"),
        difference_ci95=difference_ci,
        n=test.get("n"),
        p=test.get("p"),
        p_adjusted=test.get("p_adjusted"),
        metric=metric,
        share=_share(kind, test.get("effect"), clean),
        caveats=tuple(caveats),
    )


def judge(
    effect: float | None,
    ci: Sequence[float] | None,
    control_effect: float | None,
    control_ci: Sequence[float] | None,
    difference_ci: Sequence[float] | None,
    p_adjusted: float | None,
    p_difference_adjusted: float | None = None,
) -> Verdict:
    """The verdict of a test.

    Against the controls, the CI of the paired difference decides; where it is missing, the two CIs must not
    overlap. An effect smaller than the controls' is not specific, whatever its p-value; nor is one whose
    difference from them has an adjusted p-value of 0.05 or more.
    """
    if effect is None or ci is None or not excludes_zero(ci) or p_adjusted is None or p_adjusted >= ALPHA:
        return "unsupported"
    if control_effect is None or control_ci is None:
        return "caveat"
    apart = excludes_zero(difference_ci) if difference_ci else ci[0] > control_ci[1] or ci[1] < control_ci[0]
    if p_difference_adjusted is not None and p_difference_adjusted >= ALPHA:
        apart = False
    if not apart or abs(effect) <= abs(control_effect):
        return "unspecific"
    return "supported"


def excludes_zero(ci: Sequence[float | None] | None) -> bool:
    """Whether an interval lies wholly on one side of zero (an end at zero does not)."""
    if not formatting.has_interval(ci):
        return False
    assert ci is not None and ci[0] is not None and ci[1] is not None
    return ci[0] > 0 or ci[1] < 0


def _share(kind: str, effect: float | None, clean: float | None) -> float | None:
    """How much of the clean prompts' metric an intervention takes away; None where that makes no sense."""
    if effect is None or effect >= 0 or clean is None or clean < 0.1 or not kind.startswith((*_LOWERING, "patch")):
        return None
    return -effect / clean


def _caveats(kind: str, test: Mapping[str, Any], verdict: Verdict, control_ci: Sequence[float] | None) -> list[str]:
    caveats = []
    if test.get("control_effect") is None or control_ci is None:
        caveats.append("No matched control was measured.")
    elif excludes_zero(control_ci):
        share = abs(test["control_effect"] / test["effect"]) if test.get("effect") else None
        size = f", {share:.0%} of the effect" if share is not None and verdict in ("supported", "caveat") else ""
        caveats.append(f"The controls are not null, their CI excludes zero too{size}.")
    if kind.startswith(_LOWERING) and verdict != "unsupported" and (test.get("effect") or 0) > 0:
        caveats.append("The effect points the other way: a necessary circuit would lower the metric.")
    n = test.get("n")
    if n is not None and n < 30:
        caveats.append(f"Only {n} prompts, so the interval is rough.")
    clusters = test.get("n_clusters")
    if clusters is not None and clusters < 10:
        caveats.append(f"Only {clusters} independent clusters of prompts, so the interval is rough.")
    return caveats


def _sentence(
    label: str,
    metric: str,
    test: Mapping[str, Any],
    ci: Sequence[float] | None,
    control_ci: Sequence[float] | None,
    verdict: Verdict,
) -> str:
    effect, control = test.get("effect"), test.get("control_effect")
    if effect is None:
        return f"{label}: not measured"
    sign = -1 if effect < 0 else 1
    gerund = label.split(" ", 1)[0].rstrip(":,").endswith("ing")
    if verdict == "unsupported":
        verb, sign, by = "does not measurably change", 1, ":"  # a raw interval may exclude zero: see p below
    else:
        verb, by = "lowers" if sign < 0 else "raises", " by"
    body = f"{label} {verb} the {metric}" if gerund else f"{label}: {verb} the {metric}"
    body += f"{by} {formatting.fixed(sign * effect, formatting.decimals(ci))} {formatting.interval(_flip(ci, sign))}"
    if test.get("n") is not None:
        body += f" on {test['n']} unseen prompts"
    if verdict == "unsupported" and excludes_zero(ci):
        body += f" (adjusted {formatting.p_value(test.get('p_adjusted'))}: not significant among all tests)"
    if control is None:
        return f"{body}; no matched control"
    effect = formatting.fixed(sign * control, formatting.decimals(control_ci))
    return f"{body}; matched controls {effect} {formatting.interval(_flip(control_ci, sign))}"


def _flip(ci: Sequence[float] | None, sign: int) -> list[float] | None:
    return None if ci is None else sorted(sign * v for v in ci)


def _pair(ci: Any) -> tuple[float, float] | None:
    return (float(ci[0]), float(ci[1])) if formatting.has_interval(ci) else None
