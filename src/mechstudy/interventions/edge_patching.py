"""Effects of edges between components measured by exact patching: one target reads one source's replacement."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mechstudy.behaviours.contrast import contrasts
from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.component_edges import EdgeEffects, readable
from mechstudy.circuits.components import Component, Components, HeadAt, MlpAt, anywhere
from mechstudy.circuits.donors import Replacement
from mechstudy.circuits.recording import Batch, Recording
from mechstudy.models.language_model import Edit, LanguageModel
from mechstudy.models.sites import Site


@torch.no_grad()
def measure_edge_effects(
    model: LanguageModel,
    components: Components,
    pairs: Iterable[PromptPair],
    *,
    replace_by: Replacement = "corrupted",
    discovery: Sequence[PromptPair] = (),
    seed: int = 0,
    batch_tokens: int = 4096,
) -> EdgeEffects:
    """The change of the answers' contrast when one component reads another's replacement at a named position.

    Of the clean run, the target alone is computed from a residual stream in which the source's output is replaced; a
    head reads by its queries, keys and values together. What the target then writes flows on live, and everything else
    reads the clean source. This is what `edge_effects` predicts, by one or two partial forward passes for each edge:
    for small models.

    Args:
        model: the model.
        components: sources and targets.
        pairs: the prompts.
        replace_by: what a component is replaced by (`circuits.DonorSource`).
        discovery: prompts that give means and resamples; by default the pairs.
        seed: of resamples.
        batch_tokens: tokens run at a time.

    Raises:
        MechstudyError: as `circuits.predict_effects`.
    """
    names = components.positions
    recording = Recording(
        model, components, pairs, replace_by, discovery=discovery, seed=seed, batch_tokens=batch_tokens
    )
    nodes = list(dict.fromkeys(anywhere(node) for node in components.nodes))
    ends, reads_UV = [*nodes, None], readable(model, nodes)
    total_NUV = torch.zeros(len(names.names), len(nodes), len(nodes) + 1, dtype=torch.float64)
    for x in recording.batches():
        patched = _Patched(model, x, _clean_streams(model, x, nodes))
        changes = [_written_change(model, node, x) for node in nodes]
        for targets in _together(nodes):
            rows = list(_changed(changes, x, reads_UV[:, targets[0]]))
            size = max(1, batch_tokens // x.tokens_BT.numel())
            for part in (rows[i : i + size] for i in range(0, len(rows), size)):
                u, n = torch.tensor([(u, n) for u, n, _ in part]).T
                effects_VM = patched.effects([ends[v] for v in targets], torch.cat([r[2] for r in part]))
                for v, effect_M in zip(targets, effects_VM, strict=True):
                    total_NUV[n, u, v] += effect_M.cpu()
    return EdgeEffects(names.names, tuple(nodes), reads_UV, total_NUV / len(recording.pairs), "patching", replace_by)


def _together(nodes: Sequence[Component]) -> list[list[int]]:
    """Numbers of targets that read the same residual stream: a layer's heads, an MLP, the logits."""
    by_place: dict[tuple[int, bool], list[int]] = {}
    for v, node in enumerate(nodes):
        by_place.setdefault((node.layer, isinstance(node, MlpAt)), []).append(v)
    return [*by_place.values(), [len(nodes)]]


_Row = tuple[int, int, Tensor]  # number of the source and of the position name, change of the residual stream [B, T, D]


def _changed(changes: Sequence[Tensor], x: Batch, reads_U: Tensor) -> Iterator[_Row]:
    """Every source that a target reads, at every name at which its replacement changes anything."""
    for u in reads_U.nonzero().flatten().tolist():
        differs_BT = x.donors.has_BT & (changes[u] != 0).any(-1).cpu()
        for n in sorted(set(x.donors.position_BT[differs_BT].tolist())):
            at_BT1 = (differs_BT & (x.donors.position_BT == n))[..., None].to(changes[u].device)
            yield u, n, torch.where(at_BT1, changes[u], 0)


def _clean_streams(model: LanguageModel, x: Batch, nodes: Sequence[Component]) -> dict[Site, Tensor]:
    """The residual stream where each layer's heads and MLP read it, what heads hold, and the last residual stream."""
    layers = sorted({node.layer for node in nodes})
    sites = [Site(kind, layer) for layer in layers for kind in ("resid_pre", "attn_heads")]
    sites += [Site("resid_mid", layer) for layer in layers if not model.blocks[layer].parallel]
    end = Site("resid_post", model.n_layers - 1)
    return model.forward(x.tokens_BT, capture=[*sites, end], logits_at=None).activations


def _written_change(model: LanguageModel, node: Component, x: Batch) -> Tensor:
    """The change of the residual stream when a node is replaced, through any post-norm, [B, T, D]."""
    if isinstance(node, MlpAt):
        return x.differences[Site("mlp_out", node.layer)]
    site, block = Site("attn_heads", node.layer), model.blocks[node.layer]
    width = slice(node.head * model.head_dim, (node.head + 1) * model.head_dim)
    if block.norm_attn_post is None:
        of_head: Tensor = x.differences[site][..., width] @ block.attention_weights().output_DQH[:, node.head].T
        return of_head
    replaced = x.clean[site].clone()
    replaced[..., width] += x.differences[site][..., width]
    before, after = (block.norm_attn_post(block.attn_proj(z)) for z in (x.clean[site], replaced))
    change: Tensor = (after - before) * block.residual_multiplier
    return change


@dataclass(frozen=True)
class _Patched:
    """Runs of a batch in which one target reads another residual stream, and everything else the clean one."""

    model: LanguageModel
    x: Batch
    clean: dict[Site, Tensor]

    def effects(self, targets: Sequence[Component | None], change_RTD: Tensor) -> list[Tensor]:
        """Summed changes of the batch's contrasts, [M] for each target, of M changes of each prompt.

        The targets are heads of one layer, an MLP, or None for the logits.
        """
        n = len(change_RTD) // len(self.x.tokens_BT)
        heads = [target for target in targets if isinstance(target, HeadAt)]
        if heads:
            of_target = self._of_heads(heads, change_RTD, n)
        elif isinstance(targets[0], MlpAt):
            of_target = [self._of_mlp(targets[0], change_RTD, n)]
        else:
            last = Site("resid_post", self.model.n_layers - 1)
            moved_RD = (self._repeated(last, n) + change_RTD)[:, -1]
            of_target = [self.model.unembed(self.model.final_norm(moved_RD))]
        of_row = list(self.x.of_row) * n
        values = [torch.unflatten(contrasts(logits, of_row), 0, (n, -1)) for logits in of_target]
        return [(value_MB - self.x.value_B).sum(1) for value_MB in values]

    def _of_heads(self, heads: Sequence[HeadAt], change_RTD: Tensor, n: int) -> list[Tensor]:
        layer, site, model = heads[0].layer, Site("attn_heads", heads[0].layer), self.model
        clean_RTD, tokens = self._repeated(Site("resid_pre", layer), n), self.x.tokens_BT.repeat(n, 1)
        moved = model.forward(
            tokens, start=(layer, clean_RTD + change_RTD), capture=[site], stop_after=layer, logits_at=None
        ).activations[site]

        def replaced(head: int) -> Edit:
            width = slice(head * model.head_dim, (head + 1) * model.head_dim)

            def edit(z_RTW: Tensor) -> Tensor:
                z = z_RTW.clone()
                z[..., width] = moved[..., width]
                return z

            return edit

        start = (layer, clean_RTD)
        return [
            self._logits(model.forward(tokens, start=start, edits={site: replaced(target.head)}).logits)
            for target in heads
        ]

    def _of_mlp(self, target: MlpAt, change_RTD: Tensor, n: int) -> Tensor:
        layer, block = target.layer, self.model.blocks[target.layer]
        read = Site("resid_pre" if block.parallel else "resid_mid", layer)
        moved = self._repeated(read, n) + change_RTD
        normed = moved if block.norm_mlp is None else block.norm_mlp(moved)
        start = (layer, self._repeated(Site("resid_pre", layer), n))
        edits = {Site("mlp_in", layer): lambda _: normed}
        return self._logits(self.model.forward(self.x.tokens_BT.repeat(n, 1), start=start, edits=edits).logits)

    def _repeated(self, site: Site, n: int) -> Tensor:
        return self.clean[site].repeat(n, 1, 1)

    @staticmethod
    def _logits(logits: Tensor | None) -> Tensor:
        assert logits is not None
        return logits
