"""Temporary replacement of a module's forward, which leaves the hooks on the module in place."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn


def replace_forward(stack: ExitStack, module: nn.Module, forward: Callable[..., Any]) -> None:
    """Replaces ``module.forward`` until the stack is closed, which restores the previous one."""
    own = module.__dict__.get("forward")
    module.forward = forward
    if own is None:
        stack.callback(module.__dict__.pop, "forward")
    else:
        stack.callback(setattr, module, "forward", own)
