"""One prompt as text: next tokens, compared answers, prompt pairs."""

import pytest
import torch

import mechstudy as ms
from mechstudy.behaviours.one_pair import compared_answers
from tests.support.api_world import PROMPT, error_of


def test_next_tokens_are_those_of_the_models_own_logits(world):
    frame = ms.next_tokens(world.model, PROMPT, 4)
    logits_V = world.model.hf(torch.tensor([world.model.encode(PROMPT)])).logits[0, -1].double()
    assert frame["token_id"].to_list() == logits_V.topk(4).indices.tolist()
    assert frame["probability"].to_list() == pytest.approx(logits_V.softmax(-1).topk(4).values.tolist(), rel=1e-5)
    assert frame["rank"].to_list() == [1, 2, 3, 4]


def test_given_answers_are_compared_as_they_are(world):
    answers = compared_answers(world.model, PROMPT, "x", "y")
    graph = ms.attribute(world.model, None, PROMPT, answer="x", wrong_answer="y")
    assert (answers.answer, answers.wrong_answer, answers.remarks) == ("x", "y", ())
    assert answers.logit_difference == pytest.approx(graph.ledger["target"], abs=1e-4)


def test_an_answer_that_is_missing_is_the_most_probable_other_token(world):
    own = [one for one in ms.next_tokens(world.model, PROMPT, 60)["token"] if one.isascii()]
    assert compared_answers(world.model, PROMPT).answer == own[0]
    assert compared_answers(world.model, PROMPT).wrong_answer == own[1]
    assert compared_answers(world.model, PROMPT, wrong_answer=own[0]).answer == own[1]
    found = compared_answers(world.model, PROMPT, own[0])
    assert found.wrong_answer == own[1] and len(found.remarks) == 1


def test_a_pair_from_texts_is_the_files(world):
    pair = world.pairs[0]
    made = ms.prompt_pair(
        world.model, pair.clean, pair.corrupted, answer="x", wrong_answer="y", positions={"animal": 5}
    )
    same = ("clean_tokens", "corrupted_tokens", "answer_tokens", "wrong_tokens", "positions")
    assert [getattr(made, name) for name in same] == [getattr(pair, name) for name in same]


def test_prompts_of_other_lengths_are_aligned_from_both_ends(world):
    pair = ms.prompt_pair(world.model, "the old keys", "the keys", answer="x", wrong_answer="y")
    assert pair.corrupted_at(11) == 7 and pair.corrupted_at(0) == 0 and pair.corrupted_at(4) is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"clean": ""}, "clean"),
        ({"clean": "the "}, "ends with a space and answer begins with one"),
        ({"corrupted": PROMPT}, "the same"),
        ({"wrong_answer": " are"}, "the same"),
        ({"positions": {"subject": "dogs"}}, "dogs"),
    ],
)
def test_mistakes_in_a_pair_say_what_to_do(world, asked, message):
    given = {"clean": PROMPT, "corrupted": "the dogs", "answer": " are", "wrong_answer": "is"} | asked
    assert message in error_of(lambda: ms.prompt_pair(world.model, **given))


def test_a_number_of_tokens_below_one_is_refused(world):
    assert "0 next tokens" in error_of(lambda: ms.next_tokens(world.model, PROMPT, 0))
