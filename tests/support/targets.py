"""One of every kind of target that graphs explain, for tiny models of width 32."""

from __future__ import annotations

import pytest
import torch

from mechstudy.behaviours.contrast import Contrast, WholeAnswers
from mechstudy.circuits.custom_targets import Direction, OfLogits
from mechstudy.circuits.targets import AnswerContrast, AnswerTokens

TARGETS = (
    pytest.param(AnswerContrast(Contrast((7, 20), (99, 5, 6))), id="sets"),
    pytest.param(AnswerTokens(WholeAnswers((4, 7, 9), (4, 12))), id="whole answers"),
    pytest.param(Direction(torch.linspace(-1, 1, 32, dtype=torch.float64), 3), id="direction"),
    pytest.param(OfLogits(lambda z: z[11] - z.logsumexp(0)), id="function"),
)
