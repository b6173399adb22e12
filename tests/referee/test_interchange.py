"""Strict interchange training: each loss by hand on a random model, and the circuit that training makes."""

import pytest
import torch
import transformers

from mechstudy.behaviours.scoring import score_pairs
from mechstudy.circuits.components import Components, component_at
from mechstudy.circuits.named_positions import NamedPositions
from mechstudy.core.errors import MechstudyError
from mechstudy.models.loading import load_model
from mechstudy.referee.inflection import inflection, training_prompts
from mechstudy.referee.interchange import (
    Batch,
    CausalProgram,
    StrictInterchange,
    Swaps,
    Training,
    Variable,
    train,
)
from mechstudy.referee.words import numbered_words, word_tokenizer

PROGRAM = CausalProgram((
    Variable("a", ("x",), lambda x: x - 1, ("head.0.1@last",)),
    Variable("b", ("y",), lambda y: y - 3, ("head.1.0@last",)),
    Variable("answer", ("a", "b"), lambda a, b: 5 + 2 * a + b, ("mlp.1@last",)),
))  # fmt: skip
ANSWERS = torch.arange(5, 9)
BATCH = Batch(
    torch.tensor([[0, 1, 3], [0, 2, 3], [0, 1, 4]]),
    torch.tensor([[0, 1, 2]] * 3),
    {"x": torch.tensor([1, 2, 1]), "y": torch.tensor([3, 3, 4])},
)
SOURCE = torch.tensor([1, 2, 0])


@pytest.fixture
def setup():
    config = transformers.GPT2Config(
        vocab_size=9, n_positions=8, n_embd=8, n_layer=2, n_head=2, initializer_range=0.5, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf = transformers.GPT2LMHeadModel(config).double()
    model = load_model(hf, word_tokenizer(numbered_words(9)), name="tiny")
    return StrictInterchange(model, Components(model, NamedPositions(("first token", "x", "last"))), PROGRAM, ANSWERS)


def swaps(setup, variables=(), free=()):
    variable_BV = torch.tensor([[v.name in variables for v in PROGRAM.variables]] * 3)
    free_BN = torch.tensor([[str(node) in free for node in setup.components.nodes]] * 3)
    return Swaps(SOURCE, variable_BV, free_BN)


def by_hand(hf, module, part, token):
    """Logits at the last token when a slice of a module's input, or its output, is the source prompt's."""
    seen = []

    def swap(x):
        seen.append(x.detach().clone())
        if len(seen) == 2:
            x = x.clone()
            x[:, token, part] = seen[0][SOURCE][:, token, part]
        return x

    if module.endswith("c_proj"):
        hook = hf.get_submodule(module).register_forward_pre_hook(lambda _, args: (swap(args[0]),))
    else:
        hook = hf.get_submodule(module).register_forward_hook(lambda _, args, out: swap(out))
    plain, swapped = (hf(input_ids=BATCH.tokens_BT).logits[:, -1] for _ in range(2))
    hook.remove()
    return plain, swapped


def cross_entropy(logits, answers):
    return -logits.log_softmax(1).gather(1, torch.tensor(answers)[:, None]).mean()


def squared(change):
    change = change[:, ANSWERS]
    return (change - change.mean(1, keepdim=True)).square().mean()


def test_programs_compute_what_reads_an_interchanged_variable():
    own = PROGRAM.values(BATCH.inputs)
    assert own["answer"].tolist() == [5, 7, 6]
    source = {name: value[SOURCE] for name, value in own.items()}

    def answers(*swapped):
        return PROGRAM.interchanged(BATCH.inputs, source, torch.tensor([swapped] * 3))["answer"].tolist()

    assert answers(True, False, False) == [7, 5, 6]
    assert answers(False, True, False) == [5, 8, 5]
    assert answers(False, False, True) == answers(True, True, False) == [7, 6, 5]


def test_behaviour_is_the_cross_entropy_of_the_answers(setup):
    logits = setup.model.hf(input_ids=BATCH.tokens_BT).logits[:, -1]
    assert setup.losses(BATCH, swaps(setup)).behaviour.item() == pytest.approx(cross_entropy(logits, [5, 7, 6]).item())


@pytest.mark.parametrize(
    ("variable", "module", "part", "answers"),
    (
        ("a", "transformer.h.0.attn.c_proj", slice(4, 8), [7, 5, 6]),
        ("b", "transformer.h.1.attn.c_proj", slice(0, 4), [5, 8, 5]),
        ("answer", "transformer.h.1.mlp", slice(0, 8), [7, 6, 5]),
    ),
)
def test_interchange_is_of_the_program_with_the_other_prompts_variable(setup, variable, module, part, answers):
    plain, swapped = by_hand(setup.model.hf, module, part, -1)
    losses = setup.losses(BATCH, swaps(setup, [variable]))
    assert losses.interchange.item() == pytest.approx(cross_entropy(swapped, answers).item())
    expected = squared(swapped - plain[SOURCE]).item() if variable == "answer" else 0
    assert losses.mediation.item() == pytest.approx(expected)
    assert losses.strictness < 1e-25, "nothing else is swapped"


def test_strictness_is_the_change_by_components_without_a_variable(setup):
    plain, swapped = by_hand(setup.model.hf, "transformer.h.0.mlp", slice(0, 8), 1)
    losses = setup.losses(BATCH, swaps(setup, free=["mlp.0@x"]))
    assert losses.strictness.item() == pytest.approx(squared(swapped - plain).item()) and losses.strictness > 0
    assert losses.interchange.item() == pytest.approx(losses.behaviour.item()), "nothing is interchanged"


def test_logits_that_others_are_compared_with_get_no_gradient(setup):
    hf = setup.model.hf.requires_grad_(True)
    setup.losses(BATCH, swaps(setup, free=["mlp.0@x"])).strictness.backward()
    found = hf.lm_head.weight.grad.clone()
    hf.zero_grad()
    plain, swapped = by_hand(hf, "transformer.h.0.mlp", slice(0, 8), 1)
    squared(swapped - plain.detach()).backward()
    assert torch.allclose(found, hf.lm_head.weight.grad, atol=1e-12) and found.abs().max() > 0


def test_swapped_in_values_are_trained_too(setup):
    hf = setup.model.hf.requires_grad_(True)
    inputs = {name: value[:2] for name, value in BATCH.inputs.items()}
    batch = Batch(BATCH.tokens_BT[:2], BATCH.position_BT[:2], inputs)
    one = swaps(setup, ["a"])
    setup.losses(batch, Swaps(torch.tensor([1, 1]), one.variable_BV[:2], one.free_BN[:2])).interchange.backward()
    word = hf.transformer.wte.weight.grad[2]
    assert word.abs().max() > 0, "the source's word"


def test_draws_swap_one_variable_and_free_nodes_only(setup):
    drawn = setup.draw(400, torch.Generator().manual_seed(0))
    assert (drawn.variable_BV.sum(1) == 1).all() and drawn.variable_BV.any(0).all()
    assert sorted(drawn.source_B.tolist()) == list(range(400))
    free_N = ~setup.aligned_VN.any(0)
    assert not drawn.free_BN[:, ~free_N].any()
    assert 0.4 < drawn.free_BN[:, free_N].all(1).double().mean() < 0.7, "all of them on half of the prompts"


def test_training_lowers_the_losses_and_repeats(setup):
    start = {name: value.clone() for name, value in setup.model.hf.state_dict().items()}
    ends = []
    for _ in range(2):
        setup.model.hf.load_state_dict(start)
        losses = train(setup, BATCH, torch.Generator().manual_seed(0), Training(steps=80, batch=8, warmup=5, lr=1e-2))
        ends.append(vars(losses))
    assert ends[0] == ends[1] and all(not loss.requires_grad for loss in ends[0].values())
    assert not any(parameter.requires_grad for parameter in setup.model.hf.parameters())
    setup.model.hf.load_state_dict(start)
    assert ends[0]["behaviour"] < setup.losses(BATCH, swaps(setup)).behaviour / 2


def test_nodes_that_do_not_exist_or_belong_to_two_variables_are_refused(setup):
    def aligned(node):
        twice = (Variable("a", ("x",), lambda x: x, ("mlp.0@last",)), Variable("b", ("a",), lambda a: a, (node,)))
        return StrictInterchange(setup.model, setup.components, CausalProgram(twice), ANSWERS)

    with pytest.raises(MechstudyError, match="two variables are aligned with one component"):
        aligned("mlp.0@last")
    with pytest.raises(MechstudyError, match=r"mlp\.0@y is not among the components"):
        aligned("mlp.0@y")


def test_too_little_training_is_an_error():
    with pytest.raises(MechstudyError, match="inflection was not learned"):
        inflection(0, Training(steps=1))


@pytest.fixture(scope="module")
def trained():
    return inflection(0)


@pytest.mark.slow
def test_the_trained_model_computes_unseen_answers_with_its_circuit_alone(trained):
    """One test, since each worker of the tests would train the model anew."""
    check = trained.check()
    assert check.holds, check
    assert check.active > 0.3, "the rest of the model differs between clean and corrupted prompts"
    assert trained.nodes == {component_at(n) for n in ("head.1.0@last", "head.2.1@last", "mlp.4@last")}
    pairs = (*trained.train, *trained.test)
    assert all(score.correct for score in score_pairs(trained.model, pairs))
    seen = training_prompts(trained.universe.positions, pairs)
    rows = {tuple(row) for row in seen.tokens_BT.tolist()}
    assert not rows & {tokens for pair in pairs for tokens in (pair.clean_tokens, pair.corrupted_tokens)}
    assert len(rows) > 600
