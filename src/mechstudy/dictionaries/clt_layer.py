"""One layer of a cross-layer transcoder as a dictionary: its features, and what they write from their layer up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NoReturn

from jaxtyping import Float
from torch import Tensor, nn

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.arrays import Array
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.formats.hooks import HOOKPOINT, clt_site
from mechstudy.dictionaries.stored import DictionaryMeta, check_tensors

ARCHITECTURE = "cross_layer_transcoder"


class CltLayer(Dictionary):
    """Features of layer l of a cross-layer transcoder of L layers: they read layer l and write to layers l to L-1.

    ``W_writes`` [F, L - l, d_out] holds what they write; ``W_dec`` is the part at their own layer. `reconstruct` and
    `decode` need the features of the layers below too, so they are those of the whole `CrossLayerTranscoder`.

    Shapes: W_enc [d_in, F], b_enc [F], threshold [F], b_dec [d_out] (of this layer).
    """

    W_writes: Tensor

    def __init__(
        self, cfg: DictionaryMeta, *, W_enc: Tensor, b_enc: Tensor, threshold: Tensor, W_writes: Tensor, b_dec: Tensor
    ) -> None:
        tensors = {"W_enc": W_enc, "b_enc": b_enc, "b_dec": b_dec, "threshold": threshold}
        check_tensors(cfg, tensors | {"W_dec": W_writes[:, 0]})
        nn.Module.__init__(self)
        self.cfg = cfg
        for name, tensor in (tensors | {"W_writes": W_writes}).items():
            self.register_parameter(name, nn.Parameter(tensor.detach(), requires_grad=False))
        self.register_parameter("W_skip", None)

    def extra_repr(self) -> str:
        """What `repr` shows: as of a dictionary, and the sites that are written."""
        return f"{super().extra_repr()} to {self.sites_out[-1]}"

    @property
    def W_dec(self) -> Tensor:  # type: ignore[override]  # an attribute of Dictionary, read-only here
        """[F, d_out], what features write at their own layer."""
        return self.W_writes[:, 0]

    @property
    def sites_out(self) -> tuple[str, ...]:
        """As `Dictionary.sites_out`: the layer's own and those of all layers above."""
        kind, _, layer = self.cfg.site_out.partition(".")
        return tuple(f"{kind}.{int(layer) + ahead}" for ahead in range(self.W_writes.shape[1]))

    @property
    def W_dec_all(self) -> Tensor:
        """As `Dictionary.W_dec_all`."""
        return self.W_writes.flatten(1)

    def writes(self, features: Tensor | Sequence[int]) -> tuple[Float[Tensor, "n d_out"], ...]:
        """As `Dictionary.writes`."""
        return self.W_writes[features].unbind(1)

    def decode(self, f: Float[Tensor, "*rows f"]) -> NoReturn:
        """Refused: what a layer's output is needs the features of the layers below too."""
        self._refuse("a reconstruction needs")

    def reconstruct(self, x: object) -> NoReturn:
        """Refused, as `decode` is."""
        self._refuse("a reconstruction needs")

    def save(self, folder: object) -> NoReturn:
        """Refused: the files are those of the whole."""
        self._refuse("its files hold")

    def _refuse(self, verb: str) -> NoReturn:
        raise MechstudyError(
            f"this is one layer of a cross-layer transcoder ({self.cfg.site_in}), and {verb} all of them",
            fix="the whole: mechstudy.dictionaries.load_dictionary(folder), a CrossLayerTranscoder",
        )


def clt_layer(
    layer: int,
    *,
    W_enc: Float[Tensor, "f d_in"],
    b_enc: Float[Tensor, " f"],
    threshold: Float[Tensor, " f"],
    W_writes: Float[Tensor, "f n d_out"],
    b_dec: Float[Tensor, " d_out"],
    site_in: str,
    site_out: str,
    k: int | None,
    model_name: str,
    hookpoint: str = "",
) -> CltLayer:
    """The features of one layer. Tensors are used as they are, not copied.

    Args:
        site_in, site_out: kinds (``mlp_in``), or names of other hooks of a block.
        hookpoint: the module whose own output the files name (see `hookpoints`).
    """
    cfg = DictionaryMeta(
        "transcoder",
        "jumprelu",
        W_enc.shape[1],
        b_dec.shape[0],
        len(W_enc),
        k,
        clt_site(site_in, layer),
        clt_site(site_out, layer),
        {"architecture": ARCHITECTURE, "model_name": model_name or None}
        | ({HOOKPOINT: hookpoint} if hookpoint else {}),
    )
    return CltLayer(cfg, W_enc=W_enc.T, b_enc=b_enc, threshold=threshold, W_writes=W_writes, b_dec=b_dec)


class CltOutput(Dictionary):
    """What a cross-layer transcoder reconstructs at one layer: from its features and those of the layers below.

    A row holds the inputs of layers 0 to l side by side. `encode` gives the features of layer l alone; what features of
    the layers below write at layer l is added to the reconstruction.

    Args:
        layers: in order, from layer 0 to l.
    """

    def __init__(self, layers: Iterable[CltLayer]) -> None:
        nn.Module.__init__(self)
        *below, own = layers
        self.own, self.below = own, nn.ModuleList(below)
        self.cfg = replace(own.cfg, d_in=own.cfg.d_in + sum(one.cfg.d_in for one in below))
        self._inputs_below = tuple(one.cfg.site_in for one in below)
        self.register_parameter("W_skip", None)

    @property
    def b_enc(self) -> Tensor:  # type: ignore[override]  # an attribute of Dictionary, read-only here
        """[F], of layer l."""
        return self.own.b_enc

    @property
    def threshold(self) -> Tensor | None:  # type: ignore[override]  # as b_enc
        """[F], of layer l."""
        return self.own.threshold

    @property
    def inputs_below(self) -> tuple[str, ...]:
        """As `Dictionary.inputs_below`: what layers 0 to l - 1 read."""
        return self._inputs_below

    def encode(self, x: Array) -> Float[Tensor, "*rows f"]:
        """As `Dictionary.encode`: activations of layer l's features."""
        return self.own.encode(self._rows(x)[..., -self.own.cfg.d_in :])

    def completed(self, f: Float[Tensor, "*rows f"], x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        """As `Dictionary.completed`."""
        out, start = f @ self.own.W_dec + self.own.b_dec, 0
        n = len(self.below)
        for layer, one in enumerate(self.below):
            assert isinstance(one, CltLayer)
            part = x[..., start : start + one.cfg.d_in]
            out = out + one.encode(part) @ one.W_writes[:, n - layer]
            start += one.cfg.d_in
        return out

    @property
    def _like(self) -> Tensor:
        return self.own.b_enc
