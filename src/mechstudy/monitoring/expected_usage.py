"""How busy each phase should keep what it runs on."""

from __future__ import annotations

from dataclasses import dataclass

INFERENCE, TRAINING, ATTRIBUTION = (0.60, 0.80), (0.40, 0.60), (0.85, 0.95)
# The specification's ranges are of a GPU. A CPU has nobody to wait for but memory and disk.
_GPU = {
    "baseline": INFERENCE,
    "capture": INFERENCE,
    "features": INFERENCE,
    "intervene": INFERENCE,
    "stream": TRAINING,
    "train": TRAINING,
    "variant": TRAINING,
    "attribute": ATTRIBUTION,
}
_CPU = (0.70, 1.00)


@dataclass(frozen=True)
class Expected:
    """Shares of time between which a phase is as it should be; ``of`` says of what."""

    low: float
    high: float
    of: str

    def __str__(self) -> str:
        return f"{self.low:.0%}-{self.high:.0%} of {self.of}"


def expected(phase: str, *, on_gpu: bool, own: tuple[float, float] | None = None) -> Expected | None:
    """The range of a phase; None for those that are short and do no sums (prompts, corpus, report).

    ``own``, in per cent, goes before it: ``compute.expected_usage``, as it was when the phase ran.
    """
    if own is not None:
        return Expected(own[0] / 100, own[1] / 100, "the GPU" if on_gpu else "its threads")
    if phase not in _GPU:
        return None
    return Expected(*_GPU[phase], "the GPU") if on_gpu else Expected(*_CPU, "its threads")
