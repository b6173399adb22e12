"""What a circuit-tracer config.yaml says of its files' kind and activation, and whether the tensors agree."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.formats.fields import Fields

Layout = Literal["one file a layer", "cross-layer"]
ACTIVATIONS = ("relu", "jump_relu", "topk")
_KEYS = ("activation", "activation_function", "activation_fn")
_KINDS = ("model_kind", "architecture")
_CROSS = re.compile(r"cross_?layer|clt")
_NO_TRANSCODER = re.compile(r"sae|lorsa|crosscoder|molt|neuron")
_BY_LAYER = re.compile(r"(per|single)_?layer|plt|transcoder_?set")


class Claim(NamedTuple):
    """An activation that a file or a field states; ``k`` is None where it states none."""

    activation: str
    k: int | None = None

    def __str__(self) -> str:
        return self.activation if self.k is None else f"{self.activation}, k {self.k}"


def claims_of(config: Fields) -> dict[str, Claim]:
    """The activation by each field of config.yaml that states one.

    Raises:
        MechstudyError: an activation that a dictionary does not have.
    """
    name = config.where.name
    claims = {f"{name} {key}": Claim(_known(config, key)) for key in _KEYS if key in config}
    for found in re.findall(r"jump_?relu|relu|(?:batch_?)?top_?k|gelu|gated", _words(config, "architecture"))[:1]:
        claims[f"{name} architecture"] = Claim(_known(config, "architecture", found))
    if "k" not in config:
        return claims
    topk = Claim("topk", config.whole("k"))
    if not any(claim.activation == "topk" for claim in claims.values()):
        return claims | {f"{name} k": topk}
    return {where: topk if claim.activation == "topk" else claim for where, claim in claims.items()}


def agreed(claims: Mapping[str, Claim], path: Path) -> Claim | None:
    """The one activation that all claims are of; None where there is no claim.

    Raises:
        MechstudyError: two differ, or all say topk and none says its k.
    """
    activations = {claim.activation for claim in claims.values()}
    ks = {claim.k for claim in claims.values() if claim.k is not None}
    if len(activations) > 1 or len(ks) > 1:
        raise MechstudyError(
            "the activation is not one: config.yaml and the file do not agree", where=str(path),
            facts={where: str(claim) for where, claim in claims.items()},
            fix="the config and the weights of one set",
        )  # fmt: skip
    if not claims:
        return None
    activation, k = activations.pop(), next(iter(ks), None)
    if activation == "topk" and k is None:
        raise MechstudyError(
            "the activation is topk, and neither config.yaml nor the file says its k", where=str(path),
            facts={where: str(claim) for where, claim in claims.items()},
            fix="k: <the k of the training> in config.yaml",
        )  # fmt: skip
    return Claim(activation, k)


def without_thresholds(claims: Mapping[str, Claim], path: Path) -> MechstudyError:
    """The error of a JumpReLU whose file holds no thresholds, and would be a ReLU."""
    return MechstudyError(
        "the activation is jump_relu, and the file holds no thresholds", where=str(path),
        facts={where: str(claim) for where, claim in claims.items()},
        fix="the file as it was trained, with its thresholds; or activation: relu, if it is one",
    )  # fmt: skip


def refuse_layout(config: Fields, layout: Layout, *, skip: bool, path: Path) -> None:
    """Refuse a config.yaml whose model_kind or architecture is of other tensors than the files hold.

    Args:
        layout: of the files.
        skip: whether they hold W_skip.
        path: for the error.

    Raises:
        MechstudyError: it names cross-layer transcoders and the files are of one layer each, or the reverse; or a skip
            path that the files lack.
    """
    other = _BY_LAYER if layout == "cross-layer" else _CROSS
    holds = {"one file a layer": "a transcoder of one layer", "cross-layer": "a cross-layer transcoder"}[layout]
    holds += " with a skip path" if skip else ""
    for key in _KINDS:
        words = _words(config, key)
        if other.search(words) or _NO_TRANSCODER.search(words) or ("skip" in words and not skip):
            raise MechstudyError(
                f"{config.where.name} says {key}: {config.text(key)}, and the file holds {holds}", where=str(path),
                facts={"needs": "W_skip" if "skip" in words and not other.search(words) else "files of that kind"},
                fix="the config and the weights of one set",
            )  # fmt: skip


def _known(config: Fields, key: str, found: str | None = None) -> str:
    text = config.text(key)
    name = re.sub(r"[-_ ]", "", (found or text).lower())
    known = {known.replace("_", ""): known for known in ACTIVATIONS}
    if name not in known:
        raise MechstudyError(
            f"{key} {text!r} cannot be represented here", where=str(config.where),
            facts={"known": ", ".join(ACTIVATIONS)}, fix="a set with one of these",
        )  # fmt: skip
    return known[name]


def _words(config: Fields, key: str) -> str:
    return re.sub(r"[- ]", "_", config.text(key).lower())
