"""Patch sweeps equal whole forward passes, cell by cell."""

from __future__ import annotations

import pytest
import torch

from mechstudy.behaviours.schema import PromptPair
from mechstudy.core.errors import MechstudyError
from mechstudy.interventions.config import InterventionConfig
from mechstudy.interventions.continued import continued_tokens
from mechstudy.interventions.effects import run_interventions
from mechstudy.interventions.engine import ReplaceVector
from mechstudy.interventions.last_tokens import patched_logits
from mechstudy.interventions.results import read_csv
from mechstudy.interventions.samples import build_plan
from mechstudy.interventions.sweep import patch_sweep
from mechstudy.models.prefix import keep_run
from mechstudy.models.sites import Site
from tests.support.interventions_world import pair, pairs
from tests.support.tiny import ALL, tiny_model

PAIRS = pairs(3, lengths=(7, 7, 9))


def write(vector, position):
    def edit(x_BTD):
        x = x_BTD.clone()
        x[0, position] = vector
        return x

    return edit


def whole_pass(model, prompt, site, position, there=None, tokens=None, logits_at="last"):
    """One hooked forward pass of the whole prompt with the corrupted prompt's activation at one place."""
    corrupted = model.forward(torch.tensor([prompt.corrupted_tokens]), capture=[site], logits_at=None).activations[site]
    edit = write(corrupted[0, position if there is None else there], position)
    tokens_BT = torch.tensor([prompt.clean_tokens]) if tokens is None else tokens
    return model.forward(tokens_BT, edits={site: edit}, logits_at=logits_at).logits[0]


def difference(prompt, logits):
    return float(logits[prompt.answer_tokens[0]] - logits[prompt.wrong_tokens[0]])


@pytest.mark.parametrize("family", ALL)
def test_every_cell_equals_a_whole_forward_pass(family):
    model = tiny_model(family)
    frame = patch_sweep(model, PAIRS)
    assert len(frame) == model.n_layers * (7 + 7 + 9)
    by_id = {p.id: p for p in PAIRS}
    for row in frame.to_dicts():
        prompt = by_id[row["prompt_id"]]
        expected = difference(prompt, whole_pass(model, prompt, Site("resid_post", row["layer"]), row["position"]))
        assert row["patched"] == pytest.approx(expected, abs=1e-6), row
        clean = difference(prompt, model.forward(torch.tensor([prompt.clean_tokens])).logits[0])
        assert row["clean"] == pytest.approx(clean, abs=1e-6)
        assert row["effect"] == pytest.approx(row["patched"] - row["clean"], abs=1e-12)
        assert row["normalised"] == pytest.approx(-row["effect"] / (row["clean"] - row["corrupted"]), abs=1e-9)
    assert (frame["effect"].abs() > 1e-3).sum() > 10


@pytest.mark.parametrize("kind", ["resid_pre", "attn_out", "mlp_out"])
def test_other_sites_equal_whole_forward_passes_too(kind):
    model = tiny_model("gemma3")
    for row in patch_sweep(model, PAIRS[:1], kind, layers=[0, 2]).to_dicts():
        expected = difference(PAIRS[0], whole_pass(model, PAIRS[0], Site(kind, row["layer"]), row["position"]))
        assert row["patched"] == pytest.approx(expected, abs=1e-6), row


def test_cells_that_change_nothing_are_exactly_zero():
    """The prompts differ at position 2: nothing before it, and nothing that the last layer writes before the last."""
    for row in patch_sweep(tiny_model(), PAIRS[:2]).to_dicts():
        unread = row["layer"] == 2 and row["position"] < 6
        assert (row["effect"] == 0 and row["kl"] == 0) == (row["position"] < 2 or unread), row


def test_a_sham_leaves_the_logits_as_they_are():
    model = tiny_model("qwen2", dtype="float32")
    kept = keep_run(model, torch.tensor([p.clean_tokens for p in PAIRS[:2]]))
    places = [(row, layer, at) for row in (0, 1) for layer in range(3) for at in range(7)]
    edits = [
        [ReplaceVector(Site("resid_post", layer), at, kept.resid[layer + 1][row, at])] for row, layer, at in places
    ]
    logits = patched_logits(model, kept, [row for row, _, _ in places], edits)
    assert torch.equal(logits, kept.logits_BV[[row for row, _, _ in places]])


def test_cells_do_not_depend_on_the_batch_size():
    model = tiny_model()
    few, many = (patch_sweep(model, PAIRS, batch_tokens=n) for n in (20, 4096))
    assert few.select("prompt_id", "layer", "position").equals(many.select("prompt_id", "layer", "position"))
    assert (few["patched"] - many["patched"]).abs().max() < 1e-10


def test_named_positions_are_the_cells_of_their_tokens():
    model = tiny_model()
    every, named = patch_sweep(model, PAIRS), patch_sweep(model, PAIRS, positions="named")
    assert named["name"].unique().sort().to_list() == ["last", "subject"] and len(named) == 3 * 3 * 2
    joined = named.join(every, on=["prompt_id", "layer", "position"])
    assert len(joined) == len(named) and (joined["patched"] - joined["patched_right"]).abs().max() < 1e-10
    assert (joined["name"] == joined["name_right"]).all()
    only = patch_sweep(model, PAIRS, positions=["subject"], layers="1-2")
    assert set(only["position"]) == {2} and set(only["layer"]) == {1, 2}


def test_pairs_of_unequal_length_are_patched_from_the_same_place():
    base = pair(0)
    a, b, subject, *rest = base.corrupted_tokens
    update = {"corrupted_tokens": (a, b, 200, 201, subject, *rest), "corrupted_positions": {"subject": 4, "last": 8}}
    longer = PromptPair.model_validate(base.model_dump() | update)
    model = tiny_model()
    frame = patch_sweep(model, [longer], layers=[1])
    assert frame["position"].to_list() == list(range(7))
    for row, there in zip(frame.to_dicts(), (0, 1, 4, 5, 6, 7, 8), strict=True):
        logits = whole_pass(model, longer, Site("resid_post", 1), row["position"], there)
        assert row["patched"] == pytest.approx(difference(longer, logits), abs=1e-8)


def test_whole_answers_are_compared_in_sweeps():
    update = {"answer_tokens": (7, 8, 9), "wrong_tokens": (7, 30), "whole_answers": True}
    several = [PromptPair.model_validate(p.model_dump() | update) for p in PAIRS[:2]]
    model = tiny_model("gemma2")
    for row in patch_sweep(model, several, layers=[0, 2]).to_dicts():
        prompt = next(p for p in several if p.id == row["prompt_id"])
        sides = []
        for answer in (prompt.answer_tokens, prompt.wrong_tokens):
            tokens = continued_tokens([prompt.clean_tokens], [answer])
            site = Site("resid_post", row["layer"])
            logits = whole_pass(model, prompt, site, row["position"], tokens=tokens, logits_at=len(answer))
            sides.append(float(torch.log_softmax(logits, -1)[range(len(answer)), list(answer)].sum()))
        assert row["patched"] == pytest.approx(sides[0] - sides[1], abs=1e-6)


def test_the_grid_of_a_study_is_the_sweep_of_named_positions(tmp_path):
    model = tiny_model("gemma3")
    config = InterventionConfig(kinds=("patching",), n_controls=1, patching={"site": "mlp_out", "n_pairs": 3})
    plan = build_plan(model, {}, PAIRS, PAIRS, [], set(), config, behaviour="b", batch_tokens=200)
    rows = read_csv(run_interventions(model, {}, plan, config, tmp_path, batch_tokens=200))
    cells = patch_sweep(model, PAIRS, "mlp_out", positions="named")
    found = {(r["prompt_id"], r["item"]): float(r["metric"]) for r in rows}
    assert len(found) == len(rows) == len(cells)
    for cell in cells.to_dicts():
        at = f"mlp_out.{cell['layer']}@{cell['name']}"
        assert found[cell["prompt_id"], at] == pytest.approx(cell["patched"], abs=1e-10)


@pytest.mark.parametrize(
    "how, message",
    [
        ({"site": "mlp_act"}, "cannot patch 'mlp_act'"),
        ({"layers": [7]}, "layer 7"),
        ({"positions": ["sujet"]}, "no prompt has a position 'sujet'"),
    ],
)
def test_what_does_not_exist_is_refused(how, message):
    with pytest.raises(MechstudyError, match=message):
        patch_sweep(tiny_model(), PAIRS, **how)
