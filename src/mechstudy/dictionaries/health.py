"""What goes wrong early in a training, told while it can still be stopped."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig

MEAN_TO_SPREAD = 10.0  # a mean this many times the spread: most of what is stored says nothing
SPIKE = 3.0  # times the median of the last logged losses
DEAD = 0.5  # share of features
DRIFT = 1.5  # times the L0 asked for, or one over it
_MEMORY = 10  # logged losses that a spike is told by
_SETTLED = 0.25  # share of the steps after which L0 and FVU are judged


@dataclass(frozen=True)
class Finding:
    """``what``: mean, spike, dead, l0 or fvu; ``value``: the number that gave it away."""

    step: int
    what: str
    value: float
    text: str
    fix: str


class Health:
    """Watches one training at its logged steps. Each kind of trouble is told once.

    ``train_cfg.health`` says what follows: "warn" tells and goes on, "stop" raises, "off" does not look.
    """

    def __init__(self, cfg: DictionaryConfig, train_cfg: TrainConfig) -> None:
        self._cfg, self._train_cfg = cfg, train_cfg
        self._losses: deque[float] = deque(maxlen=_MEMORY)
        self.findings: list[Finding] = []

    def data(self, mean_to_spread: float) -> list[Finding]:
        """Judge the rows before the first step: the length of their mean over their spread about it."""
        if mean_to_spread <= MEAN_TO_SPREAD:
            return []
        text = f"the mean of the rows is {mean_to_spread:.0f} times their spread; they are centred, but bf16 rows"
        return self._tell(
            Finding(0, "mean", mean_to_spread, f"{text} keep few digits of what differs",
                    "store_dtype: float32, or capture another site")
        )  # fmt: skip

    def step(self, step: int, values: Mapping[str, Any]) -> list[Finding]:
        """Judge a logged step by its scalars (loss, fvu, l0, dead_share); what is new is returned.

        Raises:
            MechstudyError: something is wrong, and the recipe says to stop.
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
        return [told for finding in new for told in self._tell(finding)]

    def as_json(self) -> list[dict[str, Any]]:
        """Every finding, for the dictionary's metadata."""
        return [asdict(finding) for finding in self.findings]

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed training tells no more and no less."""
        return {"findings": self.as_json(), "losses": list(self._losses)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.findings = [Finding(**finding) for finding in state.get("findings", ())]
        self._losses = deque(state.get("losses", ()), maxlen=_MEMORY)

    def _tell(self, finding: Finding) -> list[Finding]:
        if self._train_cfg.health == "off" or any(known.what == finding.what for known in self.findings):
            return []
        self.findings.append(finding)
        if self._train_cfg.health == "stop":
            raise MechstudyError(finding.text, where=f"step {finding.step}", fix=finding.fix)
        return [finding]
