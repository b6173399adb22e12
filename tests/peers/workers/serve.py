"""Requests on standard input, answers on the pipe that the first argument numbers, one JSON line each."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def serve(**tasks: Callable[..., Any]) -> None:
    """Answer until the input ends."""
    answers = os.fdopen(int(sys.argv[1]), "w")
    torch.set_num_threads(int(os.environ["PEER_THREADS"]))
    torch.set_grad_enabled(False)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"value": tasks[request.pop("task")](**request)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def randomise(module: torch.nn.Module, seed: int, scale: float = 0.5) -> None:
    """Every parameter drawn anew, biases too; thresholds positive."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale
        parameter.data.copy_((drawn.abs() if "threshold" in name else drawn).to(parameter.dtype))


def rows(folder: str) -> Tensor:
    return load_file(Path(folder) / "rows.safetensors")["x"]


def answer(folder: str, features: Tensor, reconstruction: Tensor) -> None:
    tensors = {"features": features.detach().contiguous(), "reconstruction": reconstruction.detach().contiguous()}
    save_file(tensors, Path(folder) / "answer.safetensors")
