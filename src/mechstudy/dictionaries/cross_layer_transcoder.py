"""A trained cross-layer transcoder: raw activations of all layers in, raw MLP outputs of all layers out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json, write_json_atomic
from mechstudy.dictionaries.architectures.cross_layer import pair
from mechstudy.dictionaries.arrays import Array, rows_like
from mechstudy.dictionaries.clt_layer import CltLayer, clt_layer
from mechstudy.dictionaries.formats import gemma_scope
from mechstudy.dictionaries.formats.cross_layer import META, Clt, read_clt, write_clt
from mechstudy.dictionaries.formats.hooks import HOOKPOINT, written_hook
from mechstudy.dictionaries.formats.sets import clt_files
from mechstudy.dictionaries.stored import AnyPath
from mechstudy.dictionaries.training.initialise import Normalisation
from mechstudy.dictionaries.weights import Weights


class CrossLayerTranscoder(nn.Module):
    """Features of layer l read layer l and write to layers l to L-1. Normalisation is folded into the weights.

        encode(x)[l] = pre_l where pre_l > threshold_l and pre_l > 0, with pre_l = x[l] @ W_enc[l].T + b_enc[l]
        reconstruct(x)[m] = b_dec[m] + sum over l <= m of encode(x)[l] @ W_dec[l][:, m - l]

    Shapes: W_enc [L, F, d_in], b_enc [L, F], threshold [L, F], W_dec[l] [F, L - l, d_out], b_dec [L, d_out].
    """

    W_enc: Tensor
    b_enc: Tensor
    threshold: Tensor
    b_dec: Tensor

    def __init__(
        self,
        W_enc: Tensor,
        b_enc: Tensor,
        threshold: Tensor,
        W_dec: list[Tensor],
        b_dec: Tensor,
        *,
        k: int | None = None,
        site_in: str = "mlp_in",
        site_out: str = "mlp_out",
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        n_sites, n_features, _ = W_enc.shape
        for name, shape, expected in (
            ("b_enc", b_enc.shape, (n_sites, n_features)),
            ("threshold", threshold.shape, (n_sites, n_features)),
            ("b_dec", b_dec.shape, (n_sites, b_dec.shape[-1])),
            *((f"W_dec[{i}]", w.shape, (n_features, n_sites - i, b_dec.shape[-1])) for i, w in enumerate(W_dec)),
        ):
            if tuple(shape) != expected:
                raise MechstudyError(
                    f"{name} has the wrong shape", facts={"found": str(list(shape)), "expected": str(list(expected))}
                )
        for name, tensor in (("W_enc", W_enc), ("b_enc", b_enc), ("threshold", threshold), ("b_dec", b_dec)):
            self.register_parameter(name, nn.Parameter(tensor.detach(), requires_grad=False))
        self.W_dec = nn.ParameterList(nn.Parameter(w.detach(), requires_grad=False) for w in W_dec)
        self.k, self.site_in, self.site_out, self.metadata = k, site_in, site_out, metadata or {}

    @property
    def n_sites(self) -> int:
        """Number of layers L."""
        return len(self.W_enc)

    def __repr__(self) -> str:
        n_layers, n_features, d_in = self.W_enc.shape
        return (
            f"CrossLayerTranscoder({n_layers} layers, {d_in} -> {n_features} -> {self.b_dec.shape[1]} in each, "
            f"k={self.k}, {self.site_in} -> {self.site_out})"
        )

    def layer(self, layer: int) -> CltLayer:
        """The features of one layer, for graphs and interventions; its tensors are views of this one's.

        Raises:
            MechstudyError: there is no such layer.
        """
        if not 0 <= layer < self.n_sites:
            raise MechstudyError(f"there is no layer {layer}", facts={"layers": f"0-{self.n_sites - 1}"})
        return clt_layer(
            layer,
            W_enc=self.W_enc[layer],
            b_enc=self.b_enc[layer],
            threshold=self.threshold[layer],
            W_writes=self.W_dec[layer],
            b_dec=self.b_dec[layer],
            site_in=self.site_in,
            site_out=self.site_out,
            k=self.k,
            model_name=str(self.metadata.get("model_name") or ""),
            hookpoint=str(self.metadata.get(HOOKPOINT) or ""),
        )

    def layers(self) -> dict[int, CltLayer]:
        """The features of every layer."""
        return {layer: self.layer(layer) for layer in range(self.n_sites)}

    def encode(self, x: Array) -> Float[Tensor, "*rows l f"]:
        """Feature activations of x [..., L, d_in]: [..., L, F], zero where a feature is not active.

        Raises:
            MechstudyError: rows of another number of layers or another width, or of integers.
        """
        rows = rows_like(x, self.W_enc, self.site_in)
        if rows.shape[-2:] != (self.n_sites, self.W_enc.shape[2]):
            raise MechstudyError(
                f"activations are {list(rows.shape)}",
                facts={"expected": f"[..., {self.n_sites}, {self.W_enc.shape[2]}]"},
                fix="torch.stack(the layers' rows, dim=-2)",
            )
        pre = torch.einsum("...ld,lfd->...lf", rows, self.W_enc) + self.b_enc
        return pre.masked_fill(~((pre > self.threshold) & (pre > 0)), 0.0)

    def decode(self, f: Float[Tensor, "*rows l f"]) -> Float[Tensor, "*rows l d_out"]:
        """Reconstruction [..., L, d_out] from features f [..., L, F]."""
        parts = [torch.einsum("...f,fmd->...md", f[..., site, :], w) for site, w in enumerate(self.W_dec)]
        return torch.stack(
            [
                self.b_dec[target] + sum(parts[source][..., target - source, :] for source in range(target + 1))
                for target in range(self.n_sites)
            ],
            dim=-2,
        )

    def reconstruct(self, x: Array) -> Float[Tensor, "*rows l d_out"]:
        """Reconstruction [..., L, d_out] of the outputs from x [..., L, d_in]."""
        return self.decode(self.encode(x))

    forward = reconstruct

    def save(self, folder: AnyPath) -> None:
        """Write circuit-tracer's files (see `formats.cross_layer`), and further fields in mechstudy.json.

        All files of an earlier cross-layer transcoder in the folder are replaced.

        Raises:
            MechstudyError: the folder cannot be written, or holds a dictionary of another kind.
        """
        write_clt(
            folder, list(self.W_enc), list(self.b_enc), list(self.W_dec), self.b_dec, list(self.threshold),
            model_name=str(self.metadata.get("model_name", "")), site_in=self.site_in,
            site_out=written_hook(self.site_out, self.metadata),
        )  # fmt: skip
        write_json_atomic(Path(folder) / META, {"k": self.k, "metadata": self.metadata})

    @classmethod
    def load(cls, folder: AnyPath) -> CrossLayerTranscoder:
        """Read what `save` or circuit-tracer wrote, or a cross-layer transcoder of Gemma Scope 2.

        Raises:
            MechstudyError: a file or tensor is missing, damaged or misshapen.
        """
        clt, ours = _read(Path(folder))
        b_enc = torch.stack(clt["b_enc"])
        return cls(
            torch.stack(clt["enc"]),
            b_enc,
            torch.zeros_like(b_enc) if clt["threshold"] is None else torch.stack(clt["threshold"]),
            clt["dec"],
            clt["b_dec"],
            k=ours.get("k"),
            site_in=clt["site_in"],
            site_out=clt["site_out"],
            metadata=(ours.get("metadata") or {"model_name": clt["model_name"]}) | _module(clt),
        )

    @classmethod
    def of_weights(
        cls, weights: Weights, norm: Normalisation, threshold_F: Tensor | None, n_sites: int, **fields: Any
    ) -> CrossLayerTranscoder:
        """From weights in the normalised space; thresholds [L F] are on raw activations.

        Decoder rows keep their length if all sites have the same scale.
        """
        enc, b_enc = weights.enc.view(n_sites, -1, weights.enc.shape[1]), weights.b_enc.view(n_sites, -1)
        ones = [torch.ones_like(mean).view(n_sites, -1) for mean in (norm.mean_in, norm.mean_out)]
        spread_in, spread_out = (
            one if spread is None else spread.view(n_sites, -1)
            for one, spread in zip(ones, (norm.spread_in, norm.spread_out), strict=True)
        )
        enc = enc * (norm.scale_out / norm.scale_in) / spread_in[:, None]
        mean_in = norm.mean_in.view(n_sites, -1)
        b_enc = norm.scale_out * b_enc - torch.einsum("lfd,ld->lf", enc, mean_in)
        b_dec = norm.scale_out * spread_out * weights.b_dec.view(n_sites, -1) + norm.mean_out.view(n_sites, -1)
        dec = [
            torch.stack(
                [weights.dec[pair(n_sites, site, m)] * spread_out[m] for m in range(site, n_sites)], dim=1
            ).contiguous()
            for site in range(n_sites)
        ]
        bound = torch.zeros_like(b_enc) if threshold_F is None else threshold_F.view(n_sites, -1)
        return cls(enc, b_enc, bound, dec, b_dec, **fields)


def load_layer(folder: AnyPath, layer: int) -> CltLayer:
    """One layer of a cross-layer transcoder; the tensors of other layers are not read.

    Raises:
        MechstudyError: as `CrossLayerTranscoder.load`, or there is no such layer.
    """
    clt, ours = _read(Path(folder), only=layer)
    [b_enc] = clt["b_enc"]
    return clt_layer(
        layer,
        W_enc=clt["enc"][0],
        b_enc=b_enc,
        threshold=torch.zeros_like(b_enc) if clt["threshold"] is None else clt["threshold"][0],
        W_writes=clt["dec"][0],
        b_dec=clt["b_dec"][0],
        site_in=clt["site_in"],
        site_out=clt["site_out"],
        k=ours.get("k"),
        model_name=str((ours.get("metadata") or {}).get("model_name") or clt["model_name"]),
        hookpoint=clt["hookpoint"],
    )


def _module(clt: Clt) -> dict[str, str]:
    return {HOOKPOINT: clt["hookpoint"]} if clt["hookpoint"] else {}


def _read(folder: Path, only: int | None = None) -> tuple[Clt, dict[str, Any]]:
    """Tensors of all layers or of one, and the fields of mechstudy.json."""
    files = clt_files(folder) if folder.is_dir() else None
    clt = read_clt(folder, only) if files is None else gemma_scope.read_clt(files, only)
    return clt, read_json(folder / META) if (folder / META).exists() else {}
