"""Criteria of a circuit, each an estimate against a threshold, and the rule that makes a verdict of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mechstudy.statistics.bootstrap import Estimate
from mechstudy.statistics.clusters import ALL_EQUAL

State = Literal["met", "not met", "open", "not measured"]
Outcome = Literal["holds", "partly", "not shown", "refuted"]

OUTCOMES: dict[Outcome, str] = {
    "holds": "every criterion is met",
    "partly": "the circuit carries the behaviour or is needed for it, more than chance, but some criteria are not met",
    "not shown": "these data do not show that the circuit does it",
    "refuted": "the circuit neither carries the behaviour nor is needed for it",
}

QUESTIONS = {
    "behaviour": "Does the model do it on the test prompts? (mean contrast above 0)",
    "sufficiency": "How much of it does the circuit carry when only it is kept?",
    "necessity": "How much is lost when only the circuit is replaced?",
    "rivals": "By how much is it better than random circuits of equal size, kinds and layers?",
    "adversary": "What does it carry when an adversary replaces only those other nodes that help?",
    "explained": "How much does it carry without the errors of dictionaries among its nodes?",
    "variants": "How much do circuits of other dictionaries carry, without their errors, at least?",
    "controls": "By how much more does it carry, without errors, than circuits of frozen random dictionaries?",
    "stability": "How much of it do other prompts of the same kind choose?",
    "robustness": "In what share of specifications does it carry the behaviour?",
    "specificity": "What share of its own effect does it have on another behaviour, at most?",
}


@dataclass(frozen=True)
class Criterion:
    """One question about a circuit.

    Attributes:
        name: of the question, one of `QUESTIONS`.
        estimate: the measured number, with its interval over clusters of prompts.
        threshold: what the interval's lower end must reach, or its upper end with ``at_most``.
        at_most: whether less is better.
        missing: why nothing was measured.
        itself: the number is compared, not an interval: a mean over resamples, a share of specifications.
    """

    name: str
    estimate: Estimate
    threshold: float
    at_most: bool = False
    missing: str | None = None
    itself: bool = False

    @property
    def question(self) -> str:
        """What is asked."""
        return QUESTIONS[self.name]

    @property
    def state(self) -> State:
        """Met where the whole interval is on the right side, not met where it is on the wrong one, else open.

        A value that is equal in every cluster stands for its interval; one of a single cluster shows nothing.
        """
        e = self.estimate
        if e.value is None:
            return "not measured"
        if self.itself or e.missing == ALL_EQUAL:
            low = high = e.value
        elif e.ci is not None:
            low, high = e.ci
        else:
            return "open"
        if self.at_most:
            return "met" if high <= self.threshold else "not met" if low > self.threshold else "open"
        return "met" if low >= self.threshold else "not met" if high < self.threshold else "open"

    @property
    def record(self) -> dict[str, Any]:
        """As it is written to ``verdict.json``."""
        e = self.estimate
        return {
            "name": self.name,
            "question": self.question,
            "value": e.value,
            "ci": list(e.ci) if e.ci else None,
            "n": e.n,
            "n_clusters": e.n_clusters,
            "threshold": self.threshold,
            "at_most": self.at_most,
            "state": self.state,
            **({"missing": self.missing} if self.missing else {}),
            **e.missing_fields("ci"),
        }


def conclude(criteria: Sequence[Criterion]) -> tuple[Outcome, str]:
    """The verdict and its reason in a sentence.

    The rule, in this order:

    1. The model must do what is explained on the test prompts (``behaviour``): else *not shown*.
    2. Neither sufficiency nor necessity is reached, both with their whole intervals: *refuted*.
    3. Neither is met, or the circuit is not better than random ones (``rivals``): *not shown*.
    4. Every criterion is met or could not be asked of this study: *holds*.
    5. Else *partly*.
    """
    by_name: Mapping[str, Criterion] = {c.name: c for c in criteria}
    state = {name: c.state for name, c in by_name.items()}
    if state["behaviour"] != "met":
        return "not shown", "the model does not clearly do it on the test prompts"
    carried = ("sufficiency", "necessity")
    if all(state[name] == "not met" for name in carried):
        return "refuted", "kept alone the circuit does not carry the behaviour, and without it the behaviour stays"
    if not any(state[name] == "met" for name in carried):
        return "not shown", "neither sufficiency nor necessity is met"
    if state["rivals"] != "met":
        return "not shown", "random circuits of equal size do as well, within the interval"
    failed = [c.name for c in criteria if c.state != "met" and not (c.state == "not measured" and c.missing)]
    if failed:
        return "partly", f"not met: {', '.join(failed)}"
    return "holds", OUTCOMES["holds"]
