"""A causal language model with named sites and partial forward passes, around native Hugging Face modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechstudy.core.errors import MechstudyError
from mechstudy.machine.devices import float32_products
from mechstudy.models.architectures import Block, LinearNorm, blocks_of, linear_norm
from mechstudy.models.device_transfer import to_device
from mechstudy.models.families import Family
from mechstudy.models.gradient_checkpointing import checkpoint_blocks
from mechstudy.models.shapes import shapes_of
from mechstudy.models.sites import Site
from mechstudy.models.tokenizer import encode
from mechstudy.models.unknown_token import UnknownToken, unknown_token

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
Edit = Callable[[Tensor], Tensor]
Hook = Callable[..., Any]


@dataclass
class Output:
    """The logits and activations that a forward pass was asked for.

    ``logits`` is [B, V] for one position per row, [B, T, V] for all positions, None if not asked for.
    """

    logits: Float[Tensor, "b *t v"] | None
    activations: dict[Site, Float[Tensor, "b t width"]] = field(default_factory=dict)


class _StopForward(Exception):
    """Raised by a hook once the deepest block asked for has run."""


class LanguageModel:
    """A loaded causal language model with named sites.

    Forward passes run on rows of equal length, without padding. Gradients flow only when asked for.

    Args:
        hf: a causal language model of transformers; it is put into eval mode, and its weights require no gradients.
        tokenizer: its tokenizer.
        arch: the row of the family table that describes it.
        name: how errors and artifacts name it.
    """

    def __init__(self, hf: Any, tokenizer: Any, arch: Family, name: str) -> None:
        self.hf: Any = hf.eval().requires_grad_(False)
        if arch.experts is not None:
            hf.set_experts_implementation("eager")  # a row's numbers then do not depend on its batch
        self.tokenizer = tokenizer
        self.arch = arch
        self.name = name
        self.base: nn.Module = hf.base_model
        self.blocks: Sequence[Block] = blocks_of(arch, self.base, hf.config)
        self.final_norm: Any = getattr(self.base, arch.final_norm)
        self.unembedding: nn.Linear = hf.get_output_embeddings()
        self.n_layers = len(self.blocks)
        self.d_model: int = hf.config.hidden_size
        shapes = shapes_of(hf.config.to_dict())
        self.d_mlp: int = shapes.d_mlp
        self.n_heads: int = shapes.n_heads
        self.head_dim: int = shapes.head_dim
        self.vocab_size: int = self.unembedding.weight.shape[0]
        self.tf32 = False  # float32 products on CUDA
        self.final_softcap: float | None = getattr(hf.config, "final_logit_softcapping", None)
        self.logit_scale = float(getattr(hf.config, "logit_scale", None) or 1 / getattr(hf.config, "logits_scaling", 1))

    def __repr__(self) -> str:
        size = f"{self.n_layers} layers, d_model {self.d_model}, {self.n_heads} heads"
        return f"LanguageModel {self.name}: {size}, {str(self.dtype).removeprefix('torch.')} on {self.device}"

    # ------------------------------------------------------------------ tokens

    @property
    def device(self) -> torch.device:
        """The device of the unembedding, where forward passes begin and end."""
        return self.unembedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.unembedding.weight.dtype

    def encode(self, text: str, *, instruction: str | None = None, date: str | None = None) -> list[int]:
        """Token ids of ``text``, with a BOS token only where the tokenizer itself adds one.

        An ``instruction`` is the user's turn of the model's chat template; the text is then the beginning of the reply,
        so that an answer can follow it. A template that writes the date writes ``date`` (``YYYY-MM-DD``), or today's.

        Raises:
            MechstudyError: an instruction for a tokenizer without a chat template, or a token without an embedding.
        """
        ids = encode(self.tokenizer, text, instruction, self.name, date)
        rows = self.hf.get_input_embeddings().weight.shape[0]
        if ids and max(ids) >= rows:
            raise MechstudyError(
                f"token {self.tokenizer.convert_ids_to_tokens(max(ids))!r} has no row in the embedding of {self.name}",
                facts={"token": str(max(ids)), "rows": str(rows), "text": text[-60:]},
                fix="a text without it, or the tokenizer that belongs to these weights",
            )
        return ids

    @property
    def unknown_token(self) -> UnknownToken | None:
        """The token of all texts that the tokenizer has none for; None where it has no such token."""
        return unknown_token(self.tokenizer, self.name)

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Each token as text; bytes that are not a whole character become the replacement character."""
        return [self.tokenizer.decode([int(i)]) for i in ids]

    def width(self, site: Site) -> int:
        """Number of coordinates at a site."""
        inside = {"mlp_act": self.d_mlp, "attn_heads": self.n_heads * self.head_dim}
        return inside.get(site.kind, self.d_model)

    # ----------------------------------------------------------------- forward

    def forward(
        self,
        tokens_BT: Int[Tensor, "b t"],
        *,
        capture: Sequence[Site] = (),
        edits: Mapping[Site, Edit] | None = None,
        start: tuple[int, Float[Tensor, "rows t d"]] | None = None,
        cache: Any = None,
        stop_after: int | None = None,
        logits_at: str | int | Int[Tensor, " b"] | None = "last",
        grad: bool = False,
        checkpointing: bool = False,
    ) -> Output:
        """Runs the model, or the part of it that is asked for.

        Args:
            tokens_BT: token ids, rows of equal length.
            capture: sites whose activations are returned, after any edit of the same site.
            edits: for each site, a function from its [B, T, width] activations to their replacement.
            start: ``(layer, resid_pre_BTD)``: blocks below ``layer`` are skipped.
            cache: a Cache of transformers: keys and values of earlier tokens, which ``tokens_BT`` then continue; the
                pass may add its own.
            stop_after: the last block to run; the logits are then None.
            logits_at: ``"last"``, ``"all"``, a number of last positions, one position per row, or None for no
                unembedding.
            grad: let gradients flow to tensors that edits introduce; weights never have gradients.
            checkpointing: with ``grad``, compute each block again in the backward pass instead of keeping its tensors.
                Edits inside a block are then called twice and must do the same both times.

        Raises:
            MechstudyError: a site that this model does not have, or that cannot be edited.
        """
        self.check_sites([*capture, *(edits or {})])
        tokens_BT = to_device(tokens_BT, self.device)
        activations: dict[Site, Tensor] = {}
        edits = dict(edits or {})
        hidden = None
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(grad))
            if self.device.type == "cuda":
                stack.enter_context(float32_products(self.tf32))
            self._install(stack, set(capture) | set(edits), edits, activations, start)
            if grad and checkpointing:
                self._checkpoint(stack, edits, 0 if start is None else start[0])
            if stop_after is not None:
                self._stop_after(stack, stop_after)
            try:
                hidden = self.base(
                    input_ids=tokens_BT, use_cache=cache is not None, past_key_values=cache
                ).last_hidden_state
            except _StopForward:
                logits_at = None
            logits = None if logits_at is None or hidden is None else self._unembed(hidden, logits_at)
        return Output(logits, {site: activations[site] for site in capture})

    def unembed(self, normed: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows v"]:
        """Logits of final-normed residuals, with the family's soft cap."""
        logits = self.linear_logits(normed)
        if self.final_softcap is not None:
            logits = torch.tanh(logits / self.final_softcap) * self.final_softcap
        return logits

    def linear_logits(self, normed: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows v"]:
        """Logits before any soft cap, affine in the final-normed residuals."""
        logits: Tensor = self.unembedding(normed)
        return logits if self.logit_scale == 1 else logits * self.logit_scale

    def linear_norm(self, norm: nn.Module | None, x: Float[Tensor, "*t d"], live: bool = False) -> LinearNorm:
        """``norm`` with its scale frozen at ``x``, or live (see `architectures.linear_norm`)."""
        return linear_norm(self.arch, norm, x, live)

    # ------------------------------------------------------------------- hooks

    def _unembed(self, hidden_BTD: Tensor, logits_at: str | int | Tensor) -> Tensor:
        if isinstance(logits_at, int):
            return self.unembed(hidden_BTD[:, -logits_at:])
        if isinstance(logits_at, Tensor):
            rows = torch.arange(hidden_BTD.shape[0], device=hidden_BTD.device)
            return self.unembed(hidden_BTD[rows, logits_at.to(hidden_BTD.device)])
        assert logits_at in ("last", "all"), logits_at
        return self.unembed(hidden_BTD[:, -1] if logits_at == "last" else hidden_BTD)

    def require_float32(self, reason: str) -> None:
        """Checks that the weights are in float32 or wider.

        Args:
            reason: the first half of the message, such as "attribution needs fp32 weights".

        Raises:
            MechstudyError: they are not.
        """
        if self.dtype not in (torch.float32, torch.float64):
            raise MechstudyError(f"{reason}; the model is loaded as {self.dtype}", fix="set model.dtype: float32")

    def check_sites(self, sites: Sequence[Site]) -> None:
        """Refuse sites that this model does not have.

        Raises:
            MechstudyError: the first of them, and why it does not exist.
        """
        for site in sites:
            if not 0 <= site.layer < self.n_layers:
                raise MechstudyError(
                    f"{site}: layer {site.layer} does not exist",
                    facts={"model": f"{self.name} has layers 0-{self.n_layers - 1}"},
                )
            if site.kind == "resid_mid" and self.blocks[site.layer].parallel:
                raise MechstudyError(
                    f"{site} does not exist: attention and MLP of {self.name} run in parallel",
                    fix="use resid_pre or resid_post",
                )
            if site.kind == "mlp_act" and self.blocks[site.layer].mlp_down is None:
                raise MechstudyError(
                    f"{site} does not exist: the MLP of {self.name} is a mixture of experts",
                    fix="use mlp_in or mlp_out",
                )

    def _install(
        self,
        stack: ExitStack,
        sites: set[Site],
        edits: dict[Site, Edit],
        activations: dict[Site, Tensor],
        start: tuple[int, Tensor] | None,
    ) -> None:
        """Hooks every site. Skipped blocks pass their input on, and ``start`` replaces the input of its block."""
        if start is not None:
            layer, resid = start
            for block in self.blocks[:layer]:
                block.module.forward = _pass_through
                stack.callback(block.module.__dict__.pop, "forward")
            stack.callback(self.blocks[layer].module.register_forward_pre_hook(_replace_input(resid)).remove)
        for site in sorted(sites):
            edit = edits.get(site)
            if site.kind == "resid_mid" and edit is not None:
                raise MechstudyError(f"{site} cannot be edited", fix="edit attn_out or resid_post instead")
            module, is_input = self._module(site)
            factor = self.blocks[site.layer].residual_multiplier if site.kind in ("attn_out", "mlp_out") else 1.0
            hook = _site_hook(site, edit, activations, is_input, factor)
            register = module.register_forward_pre_hook if is_input else module.register_forward_hook
            stack.callback(register(hook).remove)

    def _checkpoint(self, stack: ExitStack, edits: dict[Site, Edit], first: int) -> None:
        @contextmanager
        def hooks(layer: int) -> Iterator[None]:
            inside = {s: edit for s, edit in edits.items() if s.layer == layer and self._module(s)[0] is not block(s)}
            with ExitStack() as recomputation:
                self._install(recomputation, set(inside), inside, {}, None)
                yield

        def block(site: Site) -> nn.Module:  # its own hooks run outside of the recomputation
            return self.blocks[site.layer].module

        checkpoint_blocks(stack, self.blocks, first, hooks)

    def _module(self, site: Site) -> tuple[nn.Module, bool]:
        """The module that carries a site, and whether the site is its input."""
        block = self.blocks[site.layer]
        return {
            "resid_pre": (block.module, True),
            "resid_mid": (block.norm_mlp or block.mlp, True),
            "resid_post": (block.module, False),
            "attn_heads": (block.attn_proj, True),
            "attn_out": (block.norm_attn_post or block.attn, False),
            "mlp_in": (block.mlp, True),
            "mlp_act": (block.mlp_down, True),
            "mlp_out": (block.norm_mlp_post or block.mlp, False),
        }[site.kind]

    def _stop_after(self, stack: ExitStack, layer: int) -> None:
        def stop(*_: object) -> None:
            raise _StopForward

        stack.callback(self.blocks[layer].module.register_forward_hook(stop).remove)


def _pass_through(hidden_states: Tensor, *_: object, **__: object) -> Tensor:
    return hidden_states


def _replace_input(resid_BTD: Tensor) -> Hook:
    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (resid_BTD.to(args[0]), *args[1:])

    return hook


def _site_hook(site: Site, edit: Edit | None, activations: dict[Site, Tensor], is_input: bool, factor: float) -> Hook:
    """A hook that records the site's activations and replaces them with their edit.

    The module's tensor times ``factor`` is what the site holds.
    """

    def record(value: Tensor) -> Tensor:
        activations[site] = value if factor == 1 else value * factor
        return activations[site]

    def apply(value: Tensor) -> Tensor:
        assert edit is not None
        edited = edit(value if factor == 1 else value * factor)
        assert edited.shape == value.shape, f"{site}: {tuple(value.shape)} -> {tuple(edited.shape)}"
        activations[site] = edited.to(value.dtype)
        return activations[site] if factor == 1 else activations[site] / factor

    def edit_input(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (apply(args[0]), *args[1:])

    def edit_output(_module: nn.Module, _args: object, output: Any) -> Any:
        if isinstance(output, tuple):
            return (apply(output[0]), *output[1:])
        return apply(output)

    # A hook that returns None leaves the module's own tensors in place, as capture alone must.
    def capture_input(_module: nn.Module, args: tuple[Any, ...]) -> None:
        record(args[0])

    def capture_output(_module: nn.Module, _args: object, output: Any) -> None:
        record(output[0] if isinstance(output, tuple) else output)

    if edit is None:
        return capture_input if is_input else capture_output
    return edit_input if is_input else edit_output
