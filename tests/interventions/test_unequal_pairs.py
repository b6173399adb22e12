"""Pairs of unequal length, and pairs without a corrupted prompt."""

from __future__ import annotations

import pytest
import torch

from mechstudy.activations.config import Positions
from mechstudy.activations.prompt_capture import PromptBatches
from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.named_positions import ALL
from mechstudy.core.errors import MechstudyError
from mechstudy.interventions.effects import LogitEffects
from mechstudy.interventions.features import FeatureAt, NamedActivations
from mechstudy.interventions.patching import donor
from mechstudy.interventions.samples import set_features
from mechstudy.interventions.steering import difference_of_means
from mechstudy.models.batches import captured
from mechstudy.models.sites import Site
from tests.support.interventions_world import pair, pairs, transcoders
from tests.support.tiny import tiny_model

SITE = Site("mlp_out", 1)


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", dtype="float64")


def longer(number: int = 0) -> PromptPair:
    """Clean of 7 tokens; the corrupted prompt has 9: two tokens stand before the subject."""
    base = pair(number)
    a, b, subject, *rest = base.corrupted_tokens
    corrupted = (a, b, 200, 201, subject, *rest)
    return PromptPair.model_validate(
        base.model_dump() | {"corrupted_tokens": corrupted, "corrupted_positions": {"subject": 4, "last": 8}}
    )


def without(number: int) -> PromptPair:
    return PromptPair.model_validate(pair(number).model_dump() | {"corrupted": "", "corrupted_tokens": ()})


def test_patching_writes_what_is_at_the_same_place_of_the_corrupted_prompt(model):
    mine = longer()
    there = captured(model, torch.tensor([mine.corrupted_tokens]), [SITE])[SITE][0]
    patch = donor(model, [mine, pair(5)], [SITE])
    (edit,) = patch.edits(mine, "subject", SITE)
    assert edit.position == 2 and torch.equal(edit.vector_D, there[4])
    every = {e.position: e.vector_D for e in patch.edits(mine, ALL, SITE)}
    assert set(every) == {0, 1, 2, 3, 4, 5, 6}
    assert all(torch.equal(every[i], there[j]) for i, j in zip(range(7), (0, 1, 4, 5, 6, 7, 8), strict=True))


def test_a_position_that_the_corrupted_prompt_lacks_is_not_patched(model):
    lacking = PromptPair.model_validate(longer().model_dump() | {"corrupted_positions": {"last": 8}})
    assert donor(model, [lacking], [SITE]).edits(lacking, "subject", SITE) == []
    dictionaries = transcoders(model, (1,))
    values = NamedActivations(model, dictionaries, [lacking], corrupted=True).values([FeatureAt(1, 3, "subject")])
    assert values == {FeatureAt(1, 3, "subject"): {}}
    edits = set_features(lacking, {FeatureAt(1, 3, "subject"): {}})
    assert [edit.value for edit in edits] == [None]  # its own activation


def test_corrupted_features_are_read_at_the_aligned_token_and_named_by_the_clean_one(model):
    mine, dictionaries = longer(), transcoders(model, (1,))
    shifted = PromptPair.model_validate(
        mine.model_dump()
        | {"clean_tokens": mine.corrupted_tokens, "positions": mine.corrupted_positions, "corrupted_positions": None}
    )
    features = [FeatureAt(1, f, "subject") for f in range(40)]
    aligned = NamedActivations(model, dictionaries, [mine], corrupted=True)
    plain = NamedActivations(model, dictionaries, [shifted])
    assert any(plain.values(features)[f][0][4] for f in features)
    for f in features:
        assert aligned.values(features)[f][0] == {2: plain.values(features)[f][0][4]}


def test_the_difference_of_means_takes_corrupted_prompts_of_any_length(model):
    some = [pair(0), longer(1), longer(2)]
    like = {SITE: torch.ones(model.d_model, dtype=torch.float64)}
    total = sum(
        captured(model, torch.tensor([p.clean_tokens]), [SITE])[SITE][0, -1]
        - captured(model, torch.tensor([p.corrupted_tokens]), [SITE])[SITE][0, -1]
        for p in some
    )
    got = difference_of_means(model, some, like)[SITE]
    assert torch.allclose(got / got.norm(), total / total.norm(), atol=1e-9)


def test_the_metric_of_corrupted_prompts_is_that_of_each_alone(model):
    some = [pair(0), longer(1), without(2)]
    recorder = LogitEffects(model, some)
    recorder.prepare()
    for mine, value in zip(some[:2], recorder._corrupted, strict=False):
        logits = model.forward(torch.tensor([mine.corrupted_tokens])).logits[0]
        assert value == pytest.approx(float(logits[mine.answer_tokens[0]] - logits[mine.wrong_tokens[0]]), abs=1e-9)
    assert recorder._corrupted[2] is None


def test_capture_takes_the_positions_of_each_version(model):
    batches = PromptBatches.of([longer(), without(1)], Positions(("subject",)), ("clean", "corrupted"), 4096)
    assert list(batches.documents) == [0, 1, 2]
    assert [chosen.tolist() for chosen in batches.chosen] == [[2], [4], [2]]


def test_activations_of_a_corrupted_prompt_that_is_not_there_are_refused(model):
    with pytest.raises(MechstudyError, match="prompt p0-1 has no corrupted prompt"):
        donor(model, [*pairs(1), without(1)], [SITE])
    with pytest.raises(MechstudyError, match="prompt p0-1 has no corrupted prompt"):
        NamedActivations(model, {}, [without(1)], corrupted=True)
