"""How much nodes write, and how much of it changes: rankings that know nothing of the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from mechstudy.circuits.donors import Donors, Key
from mechstudy.circuits.recording import Recording
from mechstudy.circuits.universe import NodeSet
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site

ROWS = 256  # nodes of one site at a time


@torch.no_grad()
def mean_changes(
    model: LanguageModel, nodes: NodeSet, recording: Recording, *, to_zero: bool = False
) -> Float64[Tensor, " n"]:
    """The norm of the mean change of what each node writes into the residual stream when it is replaced.

    The mean is over all tokens at the node's position that have a donor. Replaced by the corrupted prompt's values it
    is the difference of means between the two kinds of prompts. ``to_zero``: how much it writes, the top activations.
    What norms after attention and MLP make of it (Gemma) is left out; of a cross-layer feature, all that it writes
    counts.

    Args:
        model: the model.
        nodes: the nodes.
        recording: of the nodes on some prompts.
        to_zero: whether nodes are replaced by zero and not by their donors.
    """
    own, other = _means(nodes, recording)
    if to_zero:
        other = {key: torch.zeros_like(x_1PW) for key, x_1PW in own.items()}
    names = nodes.positions.names
    norms_N = torch.zeros(len(nodes.nodes), dtype=torch.float64)
    for site, part in nodes.slices.items():
        for number, name in enumerate(names):
            at = slice(number, number + 1)
            donors = Donors(
                {key: x_1PW[:, at] for key, x_1PW in other.items()},
                torch.ones(1, 1, dtype=torch.bool),
                torch.tensor([[number]]),
                relative_to={key: x_1PW[:, at] for key, x_1PW in own.items()},
            )
            here = [i for i in range(part.start, part.stop) if nodes.nodes[i].position == name]
            for first in range(0, len(here), ROWS):
                some = here[first : first + ROWS]
                of_sites = [x_RD.double().square().sum(1) for x_RD in _written(model, nodes, site, some, donors)]
                norms_N[some] = torch.stack(of_sites).sum(0).sqrt().cpu()
    return norms_N


def _means(nodes: NodeSet, recording: Recording) -> tuple[dict[Key, Tensor], dict[Key, Tensor]]:
    """Means [1, names, width] over tokens that have a donor, of the prompts' own values and of the donors'."""
    names = nodes.positions.names
    sums: tuple[dict[Key, Tensor], dict[Key, Tensor]] = ({}, {})
    dtypes: dict[Key, torch.dtype] = {}
    count_P1 = torch.zeros(len(names), 1, dtype=torch.float64)
    for batch in recording.batches():
        x = batch.donors
        assert x.relative_to is not None
        of_name_BTP = torch.nn.functional.one_hot(x.position_BT, len(names)) * x.has_BT[..., None]
        count_P1 += of_name_BTP.sum((0, 1))[:, None]
        for total, values in zip(sums, (x.relative_to, x.values), strict=True):
            for key, x_BTW in values.items():
                summed_PW = torch.einsum("btp,btw->pw", of_name_BTP.to(x_BTW.device).double(), x_BTW.double())
                total[key] = total.get(key, torch.zeros_like(summed_PW)) + summed_PW
                dtypes[key] = x_BTW.dtype
    safe_P1 = count_P1.clamp(min=1)
    own, other = (
        {key: (x_PW / safe_P1.to(x_PW.device))[None].to(dtypes[key]) for key, x_PW in of_keys.items()}
        for of_keys in sums
    )
    return own, other


def _written(model: LanguageModel, nodes: NodeSet, site: Site, some: Sequence[int], donors: Donors) -> Iterator[Tensor]:
    """What replacing each of some nodes of a site adds to the residual stream [R, d], at each site that changes."""
    share_RN = torch.zeros(len(some), len(nodes.nodes), dtype=model.dtype, device=model.device)
    share_RN[torch.arange(len(some)), torch.tensor(some)] = 1.0
    edits = nodes.edits(share_RN, donors, [site])
    for changed in (site, *(other for other in edits if other != site)):  # a site's own edit comes first
        nothing = torch.zeros(len(some), 1, model.width(changed), dtype=model.dtype, device=model.device)
        yield _into_residual(model, changed, edits[changed](nothing)[:, 0])


def _into_residual(model: LanguageModel, site: Site, change_RW: Tensor) -> Tensor:
    block = model.blocks[site.layer]
    projection = {"attn_heads": block.attn_proj, "mlp_act": block.mlp_down}.get(site.kind)
    if projection is None:
        return change_RW
    projected: Tensor = projection(change_RW) - projection(torch.zeros_like(change_RW[:1]))
    return projected * block.residual_multiplier
