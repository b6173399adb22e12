"""A trained SAE, transcoder, skip transcoder or crosscoder: raw activations in, raw activations out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.arrays import Array, rows_like
from mechstudy.dictionaries.formats import hub, registry, saelens
from mechstudy.dictionaries.formats.recognise import Source
from mechstudy.dictionaries.kernels import top_k
from mechstudy.dictionaries.stored import AnyPath, DictionaryMeta, StoredDictionary, check_tensors


class Dictionary(nn.Module):
    """SAE, transcoder or skip transcoder. Normalisation is folded into the weights.

        reconstruct(x) = encode(x) @ W_dec + b_dec (+ x @ W_skip.T)

    Rows whose L2 norm exceeds `metadata["max_input_norm"]` are sinks. Training dropped them, so they have no
    features, and their reconstruction is b_dec (plus the skip path): the formula above holds for every row.

    A crosscoder is an SAE whose rows hold `n_sites` sites side by side.

    Shapes: W_enc [d_in, F], b_enc [F], W_dec [F, d_out], b_dec [d_out], W_skip [d_out, d_in] or None,
    threshold [F] (jumprelu) or None. Weights do not require gradients; gradients flow to inputs.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    W_skip: Tensor | None
    threshold: Tensor | None

    def __init__(
        self,
        cfg: DictionaryMeta,
        *,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        W_skip: Tensor | None = None,
        threshold: Tensor | None = None,
    ) -> None:
        tensors = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec, "W_skip": W_skip}
        tensors["threshold"] = threshold
        check_tensors(cfg, tensors)
        super().__init__()
        self.cfg = cfg
        for name, tensor in tensors.items():
            parameter = None if tensor is None else nn.Parameter(tensor.detach(), requires_grad=False)
            self.register_parameter(name, parameter)

    @property
    def metadata(self) -> dict[str, Any]:
        """Free-form JSON that is stored with the dictionary."""
        return self.cfg.metadata

    @property
    def n_sites(self) -> int:
        """Sites side by side in a row: 1, except for a crosscoder."""
        return self.cfg.n_sites

    def extra_repr(self) -> str:
        """What `repr` shows: kind, activation, widths, k and sites."""
        cfg = self.cfg
        kind = f"crosscoder of {self.n_sites} sites" if self.n_sites > 1 else cfg.kind
        sites = " -> ".join(dict.fromkeys((cfg.site_in, cfg.site_out)))
        return f"{kind}, {cfg.activation}, {cfg.d_in} -> {cfg.d_sae} -> {cfg.d_out}, k={cfg.k}, {sites}"

    @property
    def max_input_norm(self) -> float:
        """L2 norm of an input row above which it is a sink; infinity if none is recorded."""
        return self.cfg.norm_limit("max_input_norm")

    @property
    def max_output_norm(self) -> float:
        """L2 norm of a target row above which it is a sink; infinity if none is recorded."""
        return self.cfg.norm_limit("max_output_norm")

    def is_valid(
        self, x: Float[Tensor, "*rows d_in"], y: Float[Tensor, "*rows d_out"] | None = None
    ) -> Bool[Tensor, "*rows"]:
        """False for sinks: rows whose input, or target if given, exceeds its norm limit."""
        valid = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
        for rows, limit in ((x, self.max_input_norm), (y, self.max_output_norm)):
            if rows is not None and not math.isinf(limit):
                valid &= torch.linalg.vector_norm(rows.detach().float(), dim=-1) <= limit
        return valid

    def pre_activations(self, x: Array) -> Float[Tensor, "*rows f"]:
        """Pre-activations x @ W_enc + b_enc, for sinks too: x [..., d_in] -> [..., F]."""
        return self._rows(x) @ self.W_enc + self.b_enc

    def encode(self, x: Array) -> Float[Tensor, "*rows f"]:
        """Feature activations, zero where a feature is not active and on sinks: x [..., d_in] -> [..., F].

        Rows of a crosscoder are [..., n_sites, d], or their sites side by side. Tensors and NumPy arrays are converted
        to the dtype of the weights.

        Raises:
            MechstudyError: rows of another width, or of integers.
        """
        x = self._rows(x)
        pre = self.pre_activations(x)
        if self.threshold is not None:
            mask = (pre > self.threshold) & (pre > 0)
        else:
            indices = top_k(pre.detach().reshape(-1, self.cfg.d_sae), self._k)[1]
            chosen = torch.zeros_like(pre, dtype=torch.bool).reshape(-1, self.cfg.d_sae)
            mask = chosen.scatter_(1, indices, True).view_as(pre) & (pre > 0)
        return pre.masked_fill(~(mask & self.is_valid(x).unsqueeze(-1)), 0.0)

    def encode_sparse(self, x_ND: Array) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
        """Active features as (values [N, K], indices [N, K]) of x [N, d_in]; a value of 0 means no feature.

        K is k for topk; for jumprelu it is the largest number of active features of any row (at least 1).
        """
        x_ND = self._rows(x_ND)
        pre = self.pre_activations(x_ND)
        if self.threshold is not None:
            pre = pre.masked_fill(~(pre > self.threshold), 0.0)
            width = max(1, int((pre > 0).sum(1).max())) if len(pre) else 1
        else:
            width = self._k
        values, indices = top_k(pre, width)
        return values.relu().masked_fill(~self.is_valid(x_ND).unsqueeze(-1), 0.0), indices

    def decode(self, f: Float[Tensor, "*rows f"]) -> Float[Tensor, "*rows d_out"]:
        """Decoder output f @ W_dec + b_dec: f [..., F] -> [..., d_out].

        For a skip transcoder the reconstruction adds x @ W_skip.T, which needs x: see `reconstruct`. A crosscoder's
        sites are side by side; ``unflatten(-1, (n_sites, -1))`` separates them.
        """
        return f @ self.W_dec + self.b_dec

    def reconstruct(self, x: Array) -> Float[Tensor, "*rows d_out"]:
        """Reconstruction decode(encode(x)), plus x @ W_skip.T of a skip transcoder: x [..., d_in] -> [..., d_out].

        A crosscoder's [..., n_sites, d] keep their shape. Accepted inputs and errors are those of `encode`.
        """
        rows = self._rows(x)
        out = self.completed(self.encode(rows), rows)
        return out if rows.ndim == x.ndim else out.view(*x.shape)

    def completed(self, f: Float[Tensor, "*rows f"], x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        """The reconstruction from features f of x: `decode`, and the skip path of x if there is one."""
        out = self.decode(f)
        return out if self.W_skip is None else out + x @ self.W_skip.T

    @property
    def inputs_below(self) -> tuple[str, ...]:
        """Sites of lower layers whose rows precede ``site_in``'s in a row: none but for `clt_layer.CltOutput`."""
        return ()

    def forward(self, x: Array) -> Float[Tensor, "*rows d_out"]:
        """Same as `reconstruct`."""
        return self.reconstruct(x)

    def encoder_rows(self, features: Tensor | Sequence[int]) -> Float[Tensor, "n d_in"]:
        """What each of some features reads, [n, d_in]: its column of W_enc."""
        return self.W_enc[:, features].T

    def decoder_rows(self, features: Tensor | Sequence[int]) -> Float[Tensor, "n d_out"]:
        """What each of some features writes, [n, d_out]: its row of W_dec."""
        return self.W_dec[features]

    @property
    def sites_out(self) -> tuple[str, ...]:
        """Sites that its features write, from their own layer up: one, except for a layer of a clt (`clt_layer`)."""
        return (self.cfg.site_out,)

    @property
    def W_dec_all(self) -> Tensor:
        """What features write at all of `sites_out`, side by side: [F, n * d_out]."""
        return self.W_dec

    def writes(self, features: Tensor | Sequence[int]) -> tuple[Float[Tensor, "n d_out"], ...]:
        """What each of some features writes at each of `sites_out`, rows [n, d_out]."""
        return (self.decoder_rows(features),)

    def active(self, x_TD: Array) -> tuple[Int[Tensor, " m"], Int[Tensor, " m"], Float[Tensor, " m"]]:
        """Active features of x [T, d_in] as (positions [M], features [M], values [M]), by position, then by feature."""
        f_TF = self.encode(x_TD)
        positions, features = f_TF.nonzero().unbind(1)
        return positions, features, f_TF[positions, features]

    def save(self, folder: AnyPath) -> None:
        """Write SAELens' cfg.json and sae_weights.safetensors into `folder` (see `formats.saelens`).

        An earlier dictionary of that format is replaced.

        Raises:
            MechstudyError: the folder cannot be written, or holds another tool's dictionary.
        """
        saelens.write(self, folder)

    @classmethod
    def load(cls, folder: AnyPath | Source, device: str = "cpu", dtype: torch.dtype | None = None) -> Dictionary:
        """Read a dictionary of any supported format (docs/reference/dictionaries.md lists them).

        Args:
            folder: a path, or ``hf:owner/name/folder@revision`` (see `formats.registry.read`).
            device: where its tensors go.
            dtype: of its tensors; None keeps the file's.

        Raises:
            MechstudyError: a file or tensor is missing, truncated, misshapen, or of an unknown architecture.
        """
        return cls.of(registry.read(folder)).to(device=device, dtype=dtype)

    @classmethod
    def of(cls, stored: StoredDictionary) -> Dictionary:
        """The dictionary of a config and tensors."""
        return cls(stored.cfg, **stored.tensors())

    def push(self, repo: str, *, path_in_repo: str = "", **options: Any) -> str:
        """Upload it with a model card to a repository of the Hugging Face hub; see `formats.hub.push`."""
        return hub.push(self, repo, path_in_repo=path_in_repo, **options)

    @property
    def _like(self) -> Tensor:
        """A tensor of the weights' dtype, on their device."""
        return self.W_enc

    @property
    def _k(self) -> int:
        assert self.cfg.k is not None  # the constructor checks it for topk
        return self.cfg.k

    def _rows(self, x: Array) -> Tensor:
        """X as a tensor [..., d_in] of the weights' dtype; a NumPy array's also on their device."""
        rows = rows_like(x, self._like, self.cfg.site_in)
        d_in = self.cfg.d_in
        if rows.shape[-1:] != (d_in,):
            by_site = (self.n_sites, d_in // self.n_sites)
            if self.n_sites == 1 or rows.shape[-2:] != by_site:
                raise MechstudyError(
                    f"activations are {rows.shape[-1] if rows.ndim else 0} wide, but this dictionary reads {d_in}",
                    facts={"shape": str(list(rows.shape)), "site": self.cfg.site_in},
                    fix="rows of the site it was trained on"
                    if self.n_sites == 1
                    else f"[..., {by_site[0]}, {by_site[1]}], or [..., {d_in}]",
                )
            rows = rows.flatten(-2)
        return rows
