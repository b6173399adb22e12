import pytest
import torch

import mechstudy as ms
from tests.support.api_world import PROMPT, error_of


def test_greedy_text_is_the_most_probable_tokens(world):
    text = ms.generate(world.model, PROMPT, max_new_tokens=4)
    out = world.model.hf.generate(torch.tensor([world.model.encode(PROMPT)]), max_new_tokens=4, do_sample=False)
    assert text == world.model.tokenizer.decode(out[0], skip_special_tokens=True).removeprefix(PROMPT)


def test_sampling_depends_on_the_seed_alone(world):
    drawn = [ms.generate(world.model, PROMPT, max_new_tokens=8, temperature=1.0, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_steering_moves_the_text_and_strength_zero_does_not(world):
    plain = ms.generate(world.model, PROMPT, max_new_tokens=6)
    same = ms.generate(world.model, PROMPT, max_new_tokens=6, steer={"2/5": 0.0}, dictionaries=world.dicts)
    steered = ms.generate(world.model, PROMPT, max_new_tokens=6, steer={"2/5": 90.0}, dictionaries=world.dicts)
    assert plain == same != steered


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"steer": {"2/99": 1.0}}, "features 0-39"),
        ({"steer": {"1/0": 1.0}}, "layer 1 has no dictionary"),
        ({"steer": {"2/5": 1.0}, "dictionaries": None}, "layers with one: none"),
        ({"steer": {"2/5@last": 1.0}}, "no named positions"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"temperature": float("nan")}, "temperature at least 0"),
        ({"steer": {"2/5": float("nan")}}, "2/5 is steered by nan, not a finite number"),
        ({"prompt": "ab\ud800c"}, "half a surrogate pair at character 2"),
    ],
)
def test_mistakes_say_what_to_do(world, asked, message):
    given = {"prompt": PROMPT, "dictionaries": world.dicts} | asked
    assert message in error_of(lambda: ms.generate(world.model, **given))
