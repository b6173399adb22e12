"""Actions on findings about a training's health. Torch-free."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from mechstudy.core.config import Config
from mechstudy.core.errors import MechstudyError, nearest

Action = Literal["off", "warn", "stop"]
CORRECTED = ("mean", "sinks")  # training corrects these: means are subtracted, sinks are left out
_ALL = ("off", "warn", "correct", "stop")


class HealthConfig(Config):
    """The action on each kind of finding: `off` does not check, `warn` reports it, `stop` ends the training.

    `correct` is for findings that training corrects by itself: they are reported, but not as warnings. As one word for
    all kinds, `health: correct` means `warn` for the others.

    About rows: `mean`, a mean many times their spread; `sinks`, many rows left out as sinks, or very long rows that are
    not; `mixing`, batches of few documents. About training: `spike`, the loss jumps; `dead`, features die; `l0`, L0
    misses its target, in training or on held-out rows; `fvu`, no better than the mean.
    """

    mean: Action | Literal["correct"] = "warn"
    """The rows' mean is many times their spread."""
    sinks: Action | Literal["correct"] = "warn"
    """Many rows are left out as sinks, or very long rows are not."""
    mixing: Action = "warn"
    """Batches hold few documents."""
    spike: Action = "warn"
    """The loss jumps."""
    dead: Action = "warn"
    """Features die."""
    l0: Action = "warn"
    """L0 misses its target, in training or on held-out rows."""
    fvu: Action = "warn"
    """The reconstruction is no better than the mean."""

    @model_validator(mode="before")
    @classmethod
    def _one_word(cls, value: Any) -> Any:
        value = "off" if value is False else value  # YAML 1.1's off
        if isinstance(value, str):
            if value not in _ALL:
                guess = nearest(value, _ALL)
                raise MechstudyError(
                    f"{value!r} is not an action on health findings",
                    facts={"actions": ", ".join(_ALL)},
                    fix=f"did you mean {guess!r}?" if guess else "warn",
                )
            return {
                kind: "warn" if value == "correct" and kind not in CORRECTED else value for kind in cls.model_fields
            }
        if isinstance(value, dict) and (
            wrong := [kind for kind, action in value.items() if action == "correct" and kind not in CORRECTED]
        ):
            raise MechstudyError(
                f"nothing corrects {wrong[0]}",
                where=wrong[0],
                fix=f"warn or stop; correct is for {', '.join(CORRECTED)}",
            )
        return value

    def of(self, what: str) -> str:
        """The action on a `Finding.what`."""
        return str(getattr(self, "l0" if what == "held_out_l0" else what))
