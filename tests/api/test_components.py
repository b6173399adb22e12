"""ms.components and ms.keep_only on a tiny model."""

from dataclasses import replace

import pytest
import torch

import mechstudy as ms
from tests.support.bases_world import KINDS, bases
from tests.support.clt_world import random_clt
from tests.support.interventions_world import pairs
from tests.support.tiny import tiny_model

MODEL = tiny_model()
TRAIN, TEST = pairs(4, seed=1), pairs(5)


@pytest.mark.parametrize("positions", ["named", "all"])
def test_components_are_ranked_on_some_prompts_and_kept_on_others(positions):
    effects = ms.components(MODEL, TRAIN, positions=positions)
    top = effects.top(3)
    assert top["effect"].abs().to_list() == sorted(effects.frame["effect"].abs(), reverse=True)[:3]
    curve = ms.keep_only(MODEL, TEST, effects, n_resamples=50)
    assert curve.f[-1].value == 1 and {5, 10}.issubset(curve.sizes) and curve.replaced_by == "corrupted"
    supporting = ms.keep_only(MODEL, TEST, effects, by="support", replace_by="mean", discovery=TRAIN, n_resamples=50)
    assert supporting.replaced_by == "mean" and supporting.all == pytest.approx(curve.all, rel=1e-12)


def test_methods_share_one_table():
    frames = [ms.components(MODEL, TRAIN, method=method).frame for method in ("eap", "relp", "patching")]
    assert len({tuple(frame["node"]) for frame in frames}) == 1
    assert [frame["method"][0] for frame in frames] == ["eap", "relp", "patching"]
    per_prompt = ms.components(MODEL, TRAIN, method="eap").per_prompt
    assert per_prompt["effect"].mean() == pytest.approx(frames[0]["effect"].mean())
    assert torch.tensor(frames[2]["effect"].to_list()).abs().max() > 0.01


def test_unknown_options_are_refused():
    with pytest.raises(ms.MechstudyError, match="unknown method 'acdc'"):
        ms.components(MODEL, TRAIN, method="acdc")
    with pytest.raises(ms.MechstudyError, match="'some' positions"):
        ms.components(MODEL, TRAIN, positions="some")
    with pytest.raises(ms.MechstudyError, match="no number of steps"):
        ms.components(MODEL, TRAIN, steps=0)
    with pytest.raises(ms.MechstudyError, match="cannot be ranked by 'name'"):
        ms.keep_only(MODEL, TEST, ms.components(MODEL, TRAIN, method="eap"), by="name")
    some = ms.components(MODEL, TRAIN, method="eap", mlps=False)
    part = replace(some, nodes=some.nodes[1:], effects_PN=some.effects_PN[:, 1:])
    with pytest.raises(ms.MechstudyError, match="are not a whole set"):
        ms.keep_only(MODEL, TEST, part)


@pytest.mark.parametrize("kind", [*KINDS, "clt"])
def test_features_of_every_basis_are_ranked_and_kept_beside_heads(kind):
    """Another layer's MLP is a node where no feature writes in it; one call of each function does it."""
    dicts = random_clt(MODEL).layers() if kind == "clt" else bases(MODEL, kind)
    effects = ms.components(MODEL, TRAIN, dictionaries=dicts, errors=True, method="eap")
    kinds = set(effects.frame["kind"])
    written = {"feature", "error", "head"}
    assert kinds == written if len(dicts) == 3 and "sae" not in kind else kinds >= written
    curve = ms.keep_only(MODEL, TEST, effects, dictionaries=dicts, sizes=[40], n_resamples=50)
    assert curve.f[0].value == 0 and curve.f[-1].value == 1 and curve.n_nodes == len(effects.nodes)
    with pytest.raises(ms.MechstudyError, match="no basis is given"):
        ms.keep_only(MODEL, TEST, effects)


def test_neurons_need_no_dictionaries():
    effects = ms.components(MODEL, TRAIN, basis="neurons", method="ig_nodes", replace_by="mean", steps=2)
    assert set(effects.frame["kind"]) == {"feature", "head"} and effects.replaced_by == "mean"
    curve = ms.keep_only(MODEL, TEST, effects, basis="neurons", discovery=TRAIN, n_resamples=50)
    assert curve.f[-1].value == 1
