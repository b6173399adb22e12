"""A causal language model as mechstudy sees it: native Hugging Face modules, sites, partial forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mechstudy.core.errors import MechstudyError
from mechstudy.machine.numerics import float32_products
from mechstudy.models.architectures import Architecture, Block, LinearNorm, blocks_of, linear_norm
from mechstudy.models.device_transfer import sent
from mechstudy.models.sites import Site
from mechstudy.models.tokenizer import encode, load_tokenizer

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
Edit = Callable[[Tensor], Tensor]


@dataclass
class Output:
    """What a forward pass was asked for.

    ``logits`` is [B, V] for one position per row, [B, T, V] for all, None when not asked for;
    ``activations[site]`` is [B, T, width].
    """

    logits: Tensor | None
    activations: dict[Site, Tensor] = field(default_factory=dict)


class _StopForward(Exception):
    """Raised by a hook once the deepest block asked for has run."""


class LanguageModel:
    """A loaded causal language model with named sites.

    Forwards run on rows of equal length: there is no padding in the mathematics. Gradients flow only when asked.
    """

    def __init__(self, hf, tokenizer, arch: Architecture, name: str) -> None:
        self.hf = hf.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.arch = arch
        self.name = name
        self.base: nn.Module = hf.base_model
        self.blocks: Sequence[Block] = blocks_of(arch, self.base, hf.config)
        self.final_norm: Any = getattr(self.base, arch.final_norm)
        self.unembedding: nn.Linear = hf.get_output_embeddings()
        self.n_layers = len(self.blocks)
        self.d_model: int = hf.config.hidden_size
        down = self.blocks[0].mlp_down.weight
        self.d_mlp: int = max(down.shape) if down.shape[0] != down.shape[1] else down.shape[0]
        self.vocab_size: int = self.unembedding.weight.shape[0]
        self.tf32 = False  # float32 products of forwards on CUDA
        self.final_softcap: float | None = getattr(hf.config, "final_logit_softcapping", None)

    # ------------------------------------------------------------------ tokens

    @property
    def device(self) -> torch.device:
        return self.unembedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unembedding.weight.dtype

    def encode(self, text: str, *, instruction: str | None = None) -> list[int]:
        """Token ids of ``text``, with BOS exactly where the tokenizer puts it by itself.

        With an ``instruction``, that is the user's turn of the model's chat template and the text is the beginning of
        the reply, so that an answer can follow it.

        Raises:
            MechstudyError: an instruction for a tokenizer without a chat template.
        """
        return encode(self.tokenizer, text, instruction, self.name)

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Each token as text; bytes that are no whole character show as the replacement character."""
        return [self.tokenizer.decode([int(i)]) for i in ids]

    def width(self, site: Site) -> int:
        """Number of coordinates at a site."""
        return self.d_mlp if site.kind == "mlp_act" else self.d_model

    # ----------------------------------------------------------------- forward

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        capture: Sequence[Site] = (),
        edits: Mapping[Site, Edit] | None = None,
        start: tuple[int, Tensor] | None = None,
        stop_after: int | None = None,
        logits_at: str | Tensor | None = "last",
        grad: bool = False,
        checkpointing: bool = False,
    ) -> Output:
        """Run the model, or the part of it that is asked for.

        Args:
            tokens_BT: token ids, rows of equal length.
            capture: sites to return, after any edit of the same site.
            edits: per site, a function from its [B, T, width] tensor to the tensor that replaces it.
            start: ``(layer, resid_pre_BTD)``: blocks below ``layer`` are skipped.
            stop_after: the last block to run; the logits are then None.
            logits_at: ``"last"``, ``"all"``, one position per row [B], or None for no unembedding.
            grad: let gradients flow, to tensors that edits bring in; weights never have any.
            checkpointing: with ``grad``, compute each block again in the backward pass rather than keep its tensors.
                Edits inside a block are then called twice and must do the same both times.
        """
        self._check_sites([*capture, *(edits or {})])
        tokens_BT = sent(tokens_BT, self.device)
        found: dict[Site, Tensor] = {}
        edits = dict(edits or {})
        hidden = None
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(grad))
            if self.device.type == "cuda":
                stack.enter_context(float32_products(self.tf32))
            self._install(stack, set(capture) | set(edits), edits, found, start)
            if grad and checkpointing:
                self._checkpoint(stack, edits, 0 if start is None else start[0])
            if stop_after is not None:
                self._stop_after(stack, stop_after)
            try:
                hidden = self.base(input_ids=tokens_BT, use_cache=False).last_hidden_state
            except _StopForward:
                logits_at = None
            logits = None if logits_at is None or hidden is None else self._unembed(hidden, logits_at)
        return Output(logits, {site: found[site] for site in capture})

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """The residual stream before the first block, [B, T, D] (position embeddings included)."""
        return self.forward(tokens_BT, capture=[Site("resid_pre", 0)], stop_after=0, logits_at=None).activations[
            Site("resid_pre", 0)
        ]

    def unembed(self, normed: Tensor) -> Tensor:
        """Logits of final-normed residuals [..., D] -> [..., V], with the family's soft cap."""
        logits = self.unembedding(normed)
        if self.final_softcap is not None:
            logits = torch.tanh(logits / self.final_softcap) * self.final_softcap
        return logits

    def linear_norm(self, norm: nn.Module, x: Tensor) -> LinearNorm:
        """``norm`` with its scale frozen at ``x``; see `architectures.linear_norm`."""
        return linear_norm(self.arch, norm, x)

    # ------------------------------------------------------------------- hooks

    def _unembed(self, hidden_BTD: Tensor, logits_at: str | Tensor) -> Tensor:
        if isinstance(logits_at, Tensor):
            rows = torch.arange(hidden_BTD.shape[0], device=hidden_BTD.device)
            return self.unembed(hidden_BTD[rows, logits_at.to(hidden_BTD.device)])
        assert logits_at in ("last", "all"), logits_at
        return self.unembed(hidden_BTD[:, -1] if logits_at == "last" else hidden_BTD)

    def _check_sites(self, sites: Sequence[Site]) -> None:
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

    def _install(
        self,
        stack: ExitStack,
        sites: set[Site],
        edits: dict[Site, Edit],
        found: dict[Site, Tensor],
        start: tuple[int, Tensor] | None,
    ) -> None:
        """Hook every site; skipped blocks pass their input through, and `start` enters at its block."""
        if start is not None:
            layer, resid = start
            for block in self.blocks[:layer]:
                block.module.forward = _pass_through  # type: ignore[method-assign]  # instance attribute
                stack.callback(block.module.__dict__.pop, "forward")
            stack.callback(self.blocks[layer].module.register_forward_pre_hook(_replace_input(resid)).remove)
        for site in sorted(sites):
            edit = edits.get(site)
            if site.kind == "resid_mid" and edit is not None:
                raise MechstudyError(f"{site} cannot be edited", fix="edit attn_out or resid_post instead")
            module, is_input = self._module(site)
            hook = _site_hook(site, edit, found, is_input)
            register = module.register_forward_pre_hook if is_input else module.register_forward_hook
            stack.callback(register(hook).remove)

    def _checkpoint(self, stack: ExitStack, edits: dict[Site, Edit], first: int) -> None:
        from mechstudy.models import gradient_checkpointing as checkpointing

        @contextmanager
        def hooks(layer: int) -> Iterator[None]:
            inside = {s: edit for s, edit in edits.items() if s.layer == layer and self._module(s)[0] is not block(s)}
            with ExitStack() as again:
                self._install(again, set(inside), inside, {}, None)
                yield

        def block(site: Site) -> nn.Module:  # its own hooks are called around what is computed again, not in it
            return self.blocks[site.layer].module

        checkpointing.install(stack, self.blocks, first, hooks)

    def _module(self, site: Site) -> tuple[nn.Module, bool]:
        """The module that carries a site, and whether the site is its input."""
        block = self.blocks[site.layer]
        return {
            "resid_pre": (block.module, True),
            "resid_mid": (block.norm_mlp, True),
            "resid_post": (block.module, False),
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


def _replace_input(resid_BTD: Tensor):
    def hook(_module, args):
        return (resid_BTD.to(args[0]), *args[1:])

    return hook


def _site_hook(site: Site, edit: Edit | None, found: dict[Site, Tensor], is_input: bool):
    """A hook that records the site and replaces it by its edit; inputs and outputs may be tuples."""

    def apply(value: Tensor) -> Tensor:
        if edit is not None:
            edited = edit(value)
            assert edited.shape == value.shape, f"{site}: {tuple(value.shape)} -> {tuple(edited.shape)}"
            value = edited.to(value.dtype)
        found[site] = value
        return value

    def pre_hook(_module, args):
        return (apply(args[0]), *args[1:])

    def hook(_module, _args, output):
        if isinstance(output, tuple):
            return (apply(output[0]), *output[1:])
        return apply(output)

    # Capture alone must leave the module's own tensors in place: the hook then returns None.
    if edit is None:

        def capture_input(_module, args) -> None:
            found[site] = args[0]

        def capture_output(_module, _args, output) -> None:
            found[site] = output[0] if isinstance(output, tuple) else output

        return capture_input if is_input else capture_output
    return pre_hook if is_input else hook


def load_model(
    folder: Path,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    attention: str = "sdpa",
    trust_remote_code: bool = False,
    name: str | None = None,
) -> LanguageModel:
    """Load a local Hugging Face folder of a supported family.

    Weights are read from safetensors only; code shipped with the model runs only with ``trust_remote_code``.

    Raises:
        MechstudyError: no config, unsupported family, no weights, truncated or incomplete weights.
    """
    import transformers

    from mechstudy.models.architectures import architecture_for
    from mechstudy.models.sources import check_folder, model_name, read_config

    check_folder(folder)
    arch = architecture_for(read_config(folder)["model_type"])
    transformers.utils.logging.disable_progress_bar()
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=DTYPES[dtype],
            attn_implementation=attention,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
        tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, RuntimeError) as error:
        raise MechstudyError(
            "the model cannot be loaded", where=str(folder), facts={"reason": str(error).splitlines()[0]}
        ) from error
    finally:
        transformers.utils.logging.set_verbosity(before)
    hf, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise MechstudyError(
            f"the weights are incomplete: {len(missing)} tensors are missing",
            where=str(folder),
            facts={"first": missing[0]},
            fix="fetch the model again",
        )
    return LanguageModel(hf.to(device), tokenizer, arch, name or model_name(folder))
