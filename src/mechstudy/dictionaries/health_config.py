"""What follows when a training looks ill. Torch-free."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from mechstudy.core.config import Config
from mechstudy.core.errors import MechstudyError, nearest

Action = Literal["off", "warn", "stop"]
CORRECTED = ("mean", "sinks")  # what training mends by itself: means are subtracted, sinks are left out
_ALL = ("off", "warn", "correct", "stop")


class HealthConfig(Config):
    """What follows on each kind of trouble: `off` does not look, `warn` tells and goes on, `stop` ends the training.

    `correct`, for what training mends by itself, is content with that: it is told, but is no warning. One word for all,
    `health: correct`, means `warn` for the others.

    The rows: `mean`, a mean many times their spread; `sinks`, many rows left out as sinks, or very long ones that are
    not; `mixing`, batches of few documents. The training: `spike`, the loss jumps; `dead`, features die; `l0`, the L0
    asked for is not reached, there or on held-out rows; `fvu`, no better than the mean.
    """

    mean: Action | Literal["correct"] = "warn"
    sinks: Action | Literal["correct"] = "warn"
    mixing: Action = "warn"
    spike: Action = "warn"
    dead: Action = "warn"
    l0: Action = "warn"
    fvu: Action = "warn"

    @model_validator(mode="before")
    @classmethod
    def _one_word(cls, value: Any) -> Any:
        value = "off" if value is False else value  # YAML 1.1's off
        if isinstance(value, str):
            if value not in _ALL:
                guess = nearest(value, _ALL)
                raise MechstudyError(
                    f"{value!r} says nothing about health",
                    facts={"words": ", ".join(_ALL)},
                    fix=f"did you mean {guess!r}?" if guess else "warn",
                )
            return {
                kind: "warn" if value == "correct" and kind not in CORRECTED else value for kind in cls.model_fields
            }
        if isinstance(value, dict) and (
            wrong := [kind for kind, what in value.items() if what == "correct" and kind not in CORRECTED]
        ):
            raise MechstudyError(
                f"nothing corrects {wrong[0]}",
                where=wrong[0],
                fix=f"warn or stop; correct is for {', '.join(CORRECTED)}",
            )
        return value

    def of(self, what: str) -> str:
        """What follows on a `Finding.what`."""
        return str(getattr(self, "l0" if what == "held_out_l0" else what))
