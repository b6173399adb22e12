"""A sparse dictionary as the rest of the package uses it: raw activations in, raw activations out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.arrays import Array, rows_like
from mechstudy.dictionaries.kernels import top_k
from mechstudy.dictionaries.paths import AnyPath

DictionaryKind = Literal["sae", "transcoder", "skip_transcoder"]


@dataclass(frozen=True)
class DictionaryMeta:
    """What a dictionary is. `metadata` is free-form JSON; `max_input_norm` and `max_output_norm` mark sinks.

    `k` is exact for topk; for jumprelu it is the average the threshold was calibrated to, or None if unknown.
    """

    kind: DictionaryKind
    activation: Literal["topk", "jumprelu"]
    d_in: int
    d_out: int
    d_sae: int
    k: int | None
    site_in: str
    site_out: str
    metadata: dict[str, Any] = field(default_factory=dict)


class Dictionary(nn.Module):
    """SAE, transcoder or skip transcoder. Normalisation is folded into the weights.

        reconstruct(x) = encode(x) @ W_dec + b_dec (+ x @ W_skip.T)

    Rows whose L2 norm exceeds `metadata["max_input_norm"]` are sinks: training dropped them, so what the encoder
    says there means nothing, and they have no features. Their reconstruction is b_dec (+ skip), which keeps the
    line above true for every row and the skip path linear everywhere; callers carry the rest as error.

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
        super().__init__()
        self.cfg = cfg
        given = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
        given |= {"W_skip": W_skip, "threshold": threshold}  # type: ignore[dict-item]  # None where absent
        shapes = expected_shapes(cfg)
        for name, tensor in given.items():
            if (tensor is None) != (name not in shapes):
                wanted = "needs" if name in shapes else "has no"
                raise MechstudyError(f"a {cfg.kind} with {cfg.activation} {wanted} {name}")
            if tensor is None:
                self.register_parameter(name, None)
                continue
            if tuple(tensor.shape) != shapes[name]:
                raise MechstudyError(
                    f"{name} has the wrong shape",
                    facts={"found": str(list(tensor.shape)), "expected": str(list(shapes[name]))},
                )
            self.register_parameter(name, nn.Parameter(tensor.detach(), requires_grad=False))
        if cfg.activation == "topk" and not (cfg.k and 1 <= cfg.k <= cfg.d_sae):
            raise MechstudyError(f"k = {cfg.k} active features out of d_sae = {cfg.d_sae} is impossible")

    @property
    def metadata(self) -> dict[str, Any]:
        return self.cfg.metadata

    @property
    def n_sites(self) -> int:
        """Sites side by side in a row: 1, but for a crosscoder."""
        n_sites = self.cfg.metadata.get("n_sites")
        return 1 if n_sites is None else int(n_sites)

    def extra_repr(self) -> str:
        """What `repr` shows: kind, activation, widths, k and sites."""
        cfg = self.cfg
        kind = f"crosscoder of {self.n_sites} sites" if self.n_sites > 1 else cfg.kind
        sites = " -> ".join(dict.fromkeys((cfg.site_in, cfg.site_out)))
        return f"{kind}, {cfg.activation}, {cfg.d_in} -> {cfg.d_sae} -> {cfg.d_out}, k={cfg.k}, {sites}"

    @property
    def max_input_norm(self) -> float:
        """L2 norm of an input row above which it is a sink; infinity if nothing was recorded."""
        limit = self.cfg.metadata.get("max_input_norm")
        return math.inf if limit is None else float(limit)

    @property
    def max_output_norm(self) -> float:
        """L2 norm of a target row above which it is a sink; infinity if nothing was recorded."""
        limit = self.cfg.metadata.get("max_output_norm")
        return math.inf if limit is None else float(limit)

    def is_valid(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """x[..., d_in] -> bool[...]: False for sinks; those told by their target alone need ``y`` [..., d_out]."""
        valid = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
        for rows, limit in ((x, self.max_input_norm), (y, self.max_output_norm)):
            if rows is not None and not math.isinf(limit):
                valid &= torch.linalg.vector_norm(rows.detach().float(), dim=-1) <= limit
        return valid

    def pre_activations(self, x: Array) -> Tensor:
        """x[..., d_in] -> [..., F] = x @ W_enc + b_enc; sinks are not treated apart here."""
        return self._rows(x) @ self.W_enc + self.b_enc

    def encode(self, x: Array) -> Tensor:
        """x[..., d_in] -> [..., F], zero where a feature is not active and on sinks.

        Of a crosscoder x is [..., n_sites, d], or its sites side by side. NumPy arrays are as good as tensors; either
        is taken in the dtype of the weights.

        Raises:
            MechstudyError: rows of another width, or of whole numbers.
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

    def encode_sparse(self, x_ND: Array) -> tuple[Tensor, Tensor]:
        """x[N, d_in] -> (values [N, K], indices [N, K]); a value of 0 means there is no feature in that place.

        K is k for topk. For jumprelu it is the largest number of active features of any row (at least 1).
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

    def decode(self, f: Tensor) -> Tensor:
        """f[..., F] -> [..., d_out] = f @ W_dec + b_dec.

        Of a skip transcoder this is not the reconstruction: x @ W_skip.T, which needs x, comes on top. A crosscoder's
        sites are side by side: ``unflatten(-1, (n_sites, -1))`` takes them apart.
        """
        return f @ self.W_dec + self.b_dec

    def reconstruct(self, x: Array) -> Tensor:
        """x[..., d_in] -> [..., d_out]: decode(encode(x)), plus x @ W_skip.T for a skip transcoder.

        Of a crosscoder's [..., n_sites, d], the same shape. Takes and refuses what `encode` does.
        """
        rows = self._rows(x)
        out = self.decode(self.encode(rows))
        if self.W_skip is not None:
            out = out + rows @ self.W_skip.T
        return out if rows.ndim == x.ndim else out.view(*x.shape)

    def forward(self, x: Array) -> Tensor:
        """Same as `reconstruct`."""
        return self.reconstruct(x)

    def active(self, x_TD: Array) -> tuple[Tensor, Tensor, Tensor]:
        """x[T, d_in] -> (positions [M], features [M], values [M]), by position and then by feature. No sinks."""
        f_TF = self.encode(x_TD)
        positions, features = f_TF.nonzero().unbind(1)
        return positions, features, f_TF[positions, features]

    def save(self, folder: AnyPath) -> None:
        """Write SAELens' cfg.json and sae_weights.safetensors into `folder` (see `formats.saelens`).

        An earlier dictionary of that format is replaced.

        Raises:
            MechstudyError: the folder cannot be written, or holds another tool's dictionary.
        """
        from mechstudy.dictionaries.formats.saelens import write

        write(self, folder)

    @classmethod
    def load(cls, folder: AnyPath, device: str = "cpu", dtype: torch.dtype | None = None) -> Dictionary:
        """Read a dictionary of `save`, SAELens, sparsify, dictionary_learning, circuit-tracer or Gemma Scope.

        `folder` is a path, or ``hf:owner/name/folder@revision``; `dtype` None keeps the file's; see `formats.read`.

        Raises:
            MechstudyError: a file or tensor is missing, truncated, misshapen, or of an unknown architecture.
        """
        from mechstudy.dictionaries.formats import read

        return read(folder, device=device, dtype=dtype)

    def push(self, repo: str, *, path_in_repo: str = "", **options: Any) -> str:
        """Put it and a model card into a repository of the Hugging Face hub; see `formats.hub.push`."""
        from mechstudy.dictionaries.formats.hub import push

        return push(self, repo, path_in_repo=path_in_repo, **options)

    @property
    def _k(self) -> int:
        assert self.cfg.k is not None  # the constructor checks it for topk
        return self.cfg.k

    def _rows(self, x: Array) -> Tensor:
        """x as a tensor [..., d_in] of the weights' dtype; a NumPy array's also on their device."""
        rows = rows_like(x, self.W_enc, self.cfg.site_in)
        wanted = self.cfg.d_in
        if rows.shape[-1:] != (wanted,):
            apart = (self.n_sites, wanted // self.n_sites)
            if self.n_sites == 1 or rows.shape[-2:] != apart:
                raise MechstudyError(
                    f"activations are {rows.shape[-1] if rows.ndim else 0} wide, but this dictionary reads {wanted}",
                    facts={"shape": str(list(rows.shape)), "site": self.cfg.site_in},
                    fix="rows of the site it was trained on"
                    if self.n_sites == 1
                    else f"[..., {apart[0]}, {apart[1]}], or [..., {wanted}]",
                )
            rows = rows.flatten(-2)
        return rows


def expected_shapes(cfg: DictionaryMeta) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of a dictionary like `cfg`."""
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (cfg.d_in, cfg.d_sae),
        "b_enc": (cfg.d_sae,),
        "W_dec": (cfg.d_sae, cfg.d_out),
        "b_dec": (cfg.d_out,),
    }
    if cfg.kind == "skip_transcoder":
        shapes["W_skip"] = (cfg.d_out, cfg.d_in)
    if cfg.activation == "jumprelu":
        shapes["threshold"] = (cfg.d_sae,)
    return shapes
