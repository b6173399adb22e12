"""Norms of what nodes write on average, against activations and vectors (float64, tiny random models)."""

from functools import cache

import pytest
import torch

from mechstudy.circuits.mean_changes import mean_changes
from mechstudy.circuits.named_positions import NamedPositions
from mechstudy.circuits.node_sets import nodes_of
from mechstudy.circuits.node_values import values_at
from mechstudy.circuits.recording import Recording
from mechstudy.core.errors import MechstudyError
from mechstudy.interventions.feature_nodes import ErrorAt
from mechstudy.interventions.features import FeatureAt
from mechstudy.interventions.node_universe import node_set
from mechstudy.models.batches import captured
from mechstudy.models.sites import SITES, Site
from tests.support import bases_world
from tests.support.clt_world import random_clt
from tests.support.interventions_world import pairs
from tests.support.thorough import few
from tests.support.tiny import tiny_model

MODEL = tiny_model()
PAIRS = pairs(5)
NAMES = NamedPositions.of(PAIRS)


def bases(kind):
    return random_clt(MODEL).layers() if kind == "clt" else bases_world.bases(MODEL, kind)


EVERY = [Site(kind, layer) for layer in range(MODEL.n_layers) for kind in SITES]


@cache
def at_sites(tokens):
    return {site: x[0] for site, x in captured(MODEL, torch.tensor([tokens]), EVERY).items()}


def difference(name, of_activations, to):
    """Of the means over all prompts' tokens of a name, of what a function makes of their activations."""
    means = []
    for kind in ("clean_tokens", "corrupted_tokens"):
        rows = []
        for pair in PAIRS:
            named = [NAMES.names[n] == name for n in NAMES.numbers([pair])[0].tolist()]
            rows.append(of_activations(at_sites(getattr(pair, kind)))[torch.tensor(named)])
        means.append(torch.cat(rows).mean(0))
    clean, corrupted = means
    return -clean if to == "zero" else corrupted - clean


def head(node, to):
    width = MODEL.head_dim
    part = slice(node.head * width, (node.head + 1) * width)
    change = difference(node.position, lambda at: at[Site("attn_heads", node.layer)], to)
    return float((MODEL.blocks[node.layer].attn_proj.weight[:, part] @ change[part]).norm())


def of_basis(node, nodes, to):
    one = nodes[node.layer]

    def values(at):
        return values_at(nodes, at, torch.arange(len(at[one.site])))

    change = difference(node.position, lambda at: values(at).activation_TF[node.layer], to)
    down = MODEL.blocks[node.layer].mlp_down.weight
    if isinstance(node, FeatureAt):
        vectors = torch.stack([v[0] for v in one.vectors(torch.tensor([node.feature]))])
        vectors = vectors @ down.T if one.site.kind == "mlp_act" else vectors
        return abs(float(change[node.feature])) * float(vectors.norm())
    below = [layer for layer in nodes if layer <= node.layer and one.site in nodes[layer].writes_at]
    error = difference(node.position, lambda at: values(at).written_TD(node.layer), to)
    for layer in below:
        f = difference(node.position, lambda at, layer=layer: values(at).activation_TF[layer], to)
        error = error - nodes[layer].written(f[None])[nodes[layer].writes_at.index(one.site)][0]
    return float((error @ down.T if one.site.kind == "mlp_act" else error).norm())


@pytest.mark.parametrize("to", ["zero", "corrupted"])
@pytest.mark.parametrize("kind", few((*bases_world.KINDS, "clt"), 2))
def test_norms_are_of_mean_differences_times_what_is_written(kind, to):
    nodes = node_set(MODEL, NAMES, bases(kind), errors=True)
    recording = Recording(MODEL, nodes, PAIRS, "corrupted", batch_tokens=20)
    found = mean_changes(MODEL, nodes, recording, to_zero=to == "zero")
    of_bases = nodes_of(MODEL, bases(kind))
    some = list(range(0, len(nodes.nodes), 97))
    some += [i for i, node in enumerate(nodes.nodes) if isinstance(node, ErrorAt) and node.position != "first token"]
    some += [i for i, node in enumerate(nodes.nodes) if str(node).startswith("head")][::5]
    assert len(some) > 12
    for i in some:
        node = nodes.nodes[i]
        expected = head(node, to) if str(node).startswith("head") else of_basis(node, of_bases, to)
        assert float(found[i]) == pytest.approx(expected, rel=1e-9, abs=1e-12), str(node)
    assert found.max() > 1e-3 and (found >= 0).all()


def test_what_is_the_same_in_both_prompts_has_no_difference_of_means():
    nodes = node_set(MODEL, NAMES)
    found = mean_changes(MODEL, nodes, Recording(MODEL, nodes, PAIRS, "corrupted"))
    first = torch.tensor([node.position == "first token" for node in nodes.nodes])
    assert first.any() and found[first].eq(0).all() and found[~first].gt(0).any()


def test_a_difference_needs_corrupted_prompts():
    alone = [pair.model_copy(update={"corrupted": None, "corrupted_tokens": ()}) for pair in PAIRS]
    nodes = node_set(MODEL, NAMES)
    with pytest.raises(MechstudyError, match="no corrupted prompt"):
        mean_changes(MODEL, nodes, Recording(MODEL, nodes, alone, "corrupted"))
