"""torch.compile for captures, applied between a model's sites so that their hooks keep working."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from mechstudy.core.errors import MechstudyError
from mechstudy.models.hooks import replace_forward
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site


@contextmanager
def compiled(model: LanguageModel, sites: Sequence[Site], setting: str, say: Callable[[str], None]) -> Iterator[None]:
    """Inside the block, the model's attention, MLPs and norms are compiled, each one separately.

    Sites are the inputs and outputs of these parts, so hooks on them run outside of the compiled code. ``mlp_act`` is
    inside an MLP and ``attn_heads`` inside attention: if one is captured, these are not compiled. The first batch takes
    longer. Sums may be formed in another order, so activations agree within rounding.

    Args:
        model: the model that is captured from.
        sites: the sites that will be captured.
        setting: ``off``; ``on``, which compiles on CUDA only; ``force``, which compiles anywhere.
        say: receives what was compiled, or why nothing was.

    Raises:
        MechstudyError: ``force`` without a C++ compiler.
    """
    why_not = _why_not(model, setting)
    if why_not is not None and setting == "force":
        raise MechstudyError(f"compute.compile: {why_not}", fix="compile: off, or install a C++ compiler (g++)")
    if why_not is not None and setting == "on":
        say(f"not compiled: {why_not}")
    if why_not is not None or setting == "off":
        yield
        return
    parts = list(_parts(model, {site.kind for site in sites}))
    with ExitStack() as stack:
        for module in parts:
            replace_forward(stack, module, torch.compile(module.forward))
        say(f"{len(parts)} parts of the model are compiled: the first batch takes longer")
        yield


def _parts(model: LanguageModel, kinds: Set[str]) -> Iterator[nn.Module]:
    yielded: set[int] = set()
    for block in model.blocks:
        attn = None if "attn_heads" in kinds else block.attn
        mlp = None if "mlp_act" in kinds else block.mlp
        candidates: tuple[Any, ...] = (
            block.norm_attn, attn, block.norm_attn_post, block.norm_mlp, mlp, block.norm_mlp_post,
        )  # fmt: skip
        for module in candidates:
            if module is not None and id(module) not in yielded:
                yielded.add(id(module))
                yield module


def _why_not(model: LanguageModel, setting: str) -> str | None:
    if setting == "off":
        return None
    if model.device.type == "cuda":
        new_enough = torch.cuda.get_device_capability(model.device) >= (7, 0)
        return None if new_enough else "the GPU is older than Triton needs"
    if setting == "on":
        return f"compute.compile: on is for CUDA, and the model is on {model.device.type} (force: anywhere)"
    return None if any(map(shutil.which, ("g++", "c++", "clang++"))) else "there is no C++ compiler on the PATH"
