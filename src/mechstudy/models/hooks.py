"""A module's forward replaced for a while, with the hooks on the module left as they are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn


def replace_forward(stack: ExitStack, module: nn.Module, forward: Callable[..., Any]) -> None:
    """Until the stack is closed. What the instance had as its own forward, where it had one, comes back then."""
    own = module.__dict__.get("forward")
    module.forward = forward  # type: ignore[method-assign]  # instance attribute
    if own is None:
        stack.callback(module.__dict__.pop, "forward")
    else:
        stack.callback(setattr, module, "forward", own)
