"""Sites: names of the places in a transformer where activations are read and edited."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from mechstudy.core.errors import MechstudyError, nearest

SiteKind = Literal["resid_pre", "resid_mid", "resid_post", "attn_heads", "attn_out", "mlp_in", "mlp_act", "mlp_out"]
SITES: tuple[str, ...] = get_args(SiteKind)


@dataclass(frozen=True, order=True)
class Site:
    """One activation site: a kind at a layer; prints as ``mlp_out.12``.

    ``mlp_in`` is the normed input of the MLP; ``attn_out`` and ``mlp_out`` are what is added to the residual stream,
    after any post-norm (Gemma); ``mlp_act`` is the input of the down projection. ``attn_heads`` is the input of
    attention's output projection, what the heads make of the values, side by side: head ``h`` has the coordinates
    ``h * head_dim`` to ``(h + 1) * head_dim`` (TransformerLens: ``hook_z``).
    """

    kind: str
    layer: int

    def __post_init__(self) -> None:
        if self.kind not in SITES:
            guess = nearest(self.kind, SITES)
            raise MechstudyError(
                f"unknown site {self.kind!r}",
                facts={"sites": " ".join(SITES)},
                fix=f"did you mean {guess!r}?" if guess else None,
            )

    def __str__(self) -> str:
        return f"{self.kind}.{self.layer}"

    @classmethod
    def parse(cls, text: str) -> Site:
        """Inverse of ``str``: ``Site.parse("mlp_out.12")``.

        Raises:
            MechstudyError: not of the form ``kind.layer``, or an unknown kind.
        """
        kind, _, layer = text.partition(".")
        if not layer.isdigit():
            raise MechstudyError(f"{text!r} is not a site", fix="write kind.layer, for example mlp_out.12")
        return cls(kind, int(layer))


def parse_sites(spec: str | Site | Iterable[str | Site], n_layers: int) -> list[Site]:
    """The sites that ``"mlp_out.12"``, ``"resid_post.10-15"``, ``"mlp_in.all"`` or a list of these names, each once.

    Raises:
        MechstudyError: no site, an unknown kind, or a layer that the model does not have.
    """
    sites: list[Site] = []
    for part in [spec] if isinstance(spec, str | Site) else spec:
        if isinstance(part, Site):
            sites.append(part)
            continue
        kind, dot, layers = part.partition(".")
        Site(kind, 0)  # refuses an unknown kind
        if not dot:
            raise MechstudyError(f"{part!r} names no layers", fix=f"{kind}.0-{n_layers - 1}, or {kind}.all")
        sites += [Site(kind, layer) for layer in parse_layers(layers, n_layers)]
    if not sites:
        raise MechstudyError("no site is named", fix='for example "resid_post.10-15"')
    return list(dict.fromkeys(sites))


def parse_layers(spec: str | int | Iterable[int | str], n_layers: int | None) -> tuple[int, ...]:
    """The layers that ``"10-24"``, ``"all"``, ``"3,5,8-10"``, an integer or a list stands for, sorted and unique.

    Args:
        spec: the layers as users write them.
        n_layers: the model's number of layers; with None, ``"all"`` is refused and the bound is not checked.

    Raises:
        MechstudyError: not readable, or a layer that the model does not have.
    """
    if isinstance(spec, int):
        layers = {spec}
    elif isinstance(spec, str):
        layers = set()
        for part in (p.strip() for p in spec.split(",")):
            if part == "all":
                if n_layers is None:
                    raise MechstudyError("'all' layers need a model to count them")
                layers |= set(range(n_layers))
            elif m := re.fullmatch(r"(\d+)(?:-(\d+))?", part):
                first, last = int(m[1]), int(m[2] or m[1])
                if last < first:
                    raise MechstudyError(f"layers {part!r} run backwards", fix=f"write {last}-{first}")
                layers |= set(range(first, last + 1))
            else:
                raise MechstudyError(
                    f"{part!r} does not name layers", fix="write for example 10-24, or 3,5,8-10, or all"
                )
    else:
        layers = set()
        for item in spec:
            layers |= set(parse_layers(item, n_layers))
    if not layers:
        raise MechstudyError("no layer is named", fix="write for example 10-24, or all")
    if n_layers is not None and (missing := [x for x in sorted(layers) if not 0 <= x < n_layers]):
        raise MechstudyError(
            f"layer {missing[0]} does not exist",
            facts={"model": f"has layers 0-{n_layers - 1}"},
            fix=f"stay within 0-{n_layers - 1}",
        )
    return tuple(sorted(layers))
