"""ms.components and ms.keep_only on a tiny model."""

import pytest
import torch

import mechstudy as ms
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
    part = type(some)(some.nodes[1:], some.effects_PN[:, 1:], some.prompts, "eap", "corrupted")
    with pytest.raises(ms.MechstudyError, match="are not the components"):
        ms.keep_only(MODEL, TEST, part)
