"""Health checks of rows, of a training while it runs, and of the finished dictionary."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, Literal

from mechstudy.core import notices
from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.dictionaries.health_config import CORRECTED

SINKS = 0.02  # share of rows
SINK_RATIO = 10.0  # norm of the longest row over the median: sinks, whether or not they are left out
MIXING = 0.8  # of a batch: stores have .92 to .99 (contexts of 1,024 and 128), one document alone has 0
MEAN_TO_SPREAD = 10.0  # a mean this many times the spread: most stored digits are the same in every row
SPIKE = 3.0  # times the median of the last logged losses
DEAD = 0.5  # share of features
DRIFT = 1.5  # L0 over its target, or target over L0
_MEMORY = 10  # logged losses that a spike is compared with
_SETTLED = 0.25  # share of the steps after which L0 and FVU are judged


class HealthWarning(notices.MechstudyWarning):
    """A health finding of a training without a progress display."""


def warn(text: str) -> None:
    """A `HealthWarning` at the line that called this package."""
    notices.warn(text, HealthWarning)


@dataclass(frozen=True)
class Finding:
    """One problem.

    what: a field of `HealthConfig`, or held_out_l0; value: the number that exceeded its limit; step: 0 if about the
    rows; action: "warned", or "corrected" if training corrects it and the recipe says `correct`.
    """

    step: int
    what: str
    value: float
    text: str
    fix: str
    action: Literal["warned", "corrected"] = "warned"


class Health:
    """Checks of one training at its logged steps. Each kind of problem is reported once.

    The recipe's `HealthConfig` decides what follows: "warn" reports, "stop" raises, "off" does not check, "correct"
    reports without a warning if training corrects the problem (a far-away mean is subtracted, sinks are left out).
    """

    def __init__(self, cfg: DictionaryConfig, train_cfg: TrainConfig) -> None:
        self._cfg, self._train_cfg = cfg, train_cfg
        self._losses: deque[float] = deque(maxlen=_MEMORY)
        self.findings: list[Finding] = []

    def data(self, mean_to_spread: float) -> list[Finding]:
        """Check the rows before the first step: the length of their mean over their spread about it."""
        if mean_to_spread <= MEAN_TO_SPREAD:
            return []
        text = f"the mean of the rows is {mean_to_spread:.0f} times their spread; they are centred, but bf16 rows"
        return self._report(
            Finding(0, "mean", mean_to_spread, f"{text} keep few digits of what differs",
                    "store_dtype: float32, or capture another site")
        )  # fmt: skip

    def sinks(
        self, n_sinks: int, n_rows: int, *, longest_to_median: float | None = None, limited: bool = True
    ) -> list[Finding]:
        """Check the share of rows left out as sinks, and very long rows that are not left out.

        Args:
            n_sinks: rows left out.
            n_rows: all rows.
            longest_to_median: norm of the longest row over the median.
            limited: rows above some norm are left out.
        """
        share = n_sinks / max(1, n_rows)
        if share > SINKS:
            text = f"{share:.1%} of the rows are sinks (norm above {SINK_RATIO:.0f} times the median) and are left out"
            fix = "see which tokens these are: their features are in no dictionary; or capture another site"
            return self._report(Finding(0, "sinks", share, text, fix))
        if not limited and longest_to_median is not None and longest_to_median > SINK_RATIO:
            text = f"the longest row is {longest_to_median:.0f} times as long as the median one, and none is left out"
            fix = "a store or a pass with sink_ratio, else a few rows decide the loss"
            return self._report(Finding(0, "sinks", longest_to_median, text, fix), corrected=False)
        return []

    def mixing(self, mixing: float) -> list[Finding]:
        """Check how well batches mix documents (`activations.mixing`)."""
        if mixing >= MIXING:
            return []
        text = f"batches are {mixing:.2f} as mixed as rows of the whole corpus would be: their rows are alike"
        fix = "a larger dictionaries.window_rows or training.batch_size, source: store, or more and shorter documents"
        return self._report(Finding(0, "mixing", mixing, text, fix))

    def held_out(self, l0: float) -> list[Finding]:
        """Check the finished dictionary's L0 on held-out rows. Never raises: the training is over."""
        k = self._cfg.k
        if 1 / DRIFT <= l0 / k <= DRIFT:
            return []
        text = f"L0 is {l0:.1f} on held-out rows, and {k} is asked for"
        fix = "more training.steps, or look whether the held-out text is of another kind"
        return self._report(Finding(self._train_cfg.steps, "held_out_l0", l0, text, fix), stops=False)

    def step(self, step: int, values: Mapping[str, Any]) -> list[Finding]:
        """Check a logged step by its scalars (loss, fvu, l0, dead_share) and return new findings.

        Raises:
            MechstudyError: a new finding whose action is "stop".
        """
        new: list[Finding] = []
        loss, l0, k = float(values["loss"]), float(values["l0"]), self._cfg.k
        usual = median(self._losses) if len(self._losses) == _MEMORY else math.inf
        if loss > SPIKE * usual:
            text = f"the loss jumped to {loss:.3g}, {loss / usual:.1f} times its usual value"
            new.append(Finding(step, "spike", loss / usual, text, "a smaller training.lr, or a longer warm-up"))
        self._losses.append(loss)
        if values["dead_share"] > DEAD:
            text = f"{values['dead_share']:.0%} of the features are dead"
            new.append(Finding(step, "dead", values["dead_share"], text, "a larger k, a smaller width, or more rows"))
        if step >= _SETTLED * self._train_cfg.steps:
            if self._cfg.activation not in ("topk", "batchtopk") and not 1 / DRIFT <= l0 / k <= DRIFT:
                fix = "leave coefficient out, so that it is found, or more steps"
                new.append(Finding(step, "l0", l0, f"L0 is {l0:.1f}, and {k} is asked for", fix))
            if values["fvu"] >= 1.0:
                text = f"FVU is {values['fvu']:.2f}: the dictionary does no better than the mean"
                new.append(Finding(step, "fvu", values["fvu"], text, "another training.lr, or look at the rows"))
        return [reported for finding in new for reported in self._report(finding)]

    def as_json(self) -> list[dict[str, Any]]:
        """Every finding, for the dictionary's metadata."""
        return [asdict(finding) for finding in self.findings]

    def state(self) -> dict[str, Any]:
        """State for a checkpoint, so that a resumed training reports the same findings."""
        return {"findings": self.as_json(), "losses": list(self._losses)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's `state`."""
        self.findings = [Finding(**finding) for finding in state.get("findings", ())]
        self._losses = deque(state.get("losses", ()), maxlen=_MEMORY)

    def _report(self, finding: Finding, *, stops: bool = True, corrected: bool = True) -> list[Finding]:
        action = self._train_cfg.health.of(finding.what)
        if action == "off" or any(earlier.what == finding.what for earlier in self.findings):
            return []
        if action == "correct" and corrected and finding.what in CORRECTED:
            finding = replace(finding, action="corrected")
        self.findings.append(finding)
        if action == "stop" and stops:
            raise MechstudyError(finding.text, where=f"step {finding.step}", fix=finding.fix)
        return [finding]
