"""Programs compiled into models: variables, norms, and components without a task."""

import pytest
import torch

from mechstudy.core.errors import MechstudyError
from mechstudy.models.sites import Site
from mechstudy.referee.compiler import HeadTask, Match, Noise, Program, compile_program, neurons_of
from mechstudy.referee.residual import Variables

WORDS = ("<s>", "a", "b", "c")
V = Variables(token=4, position=8, one=1, seen=4, out=4)


def copier(noise: Noise, layer: int = 0, head: int = 1) -> Program:
    """Copies the token at position 1 into ``seen``; an MLP writes twice the coordinate of b into the logits."""
    copy = HeadTask(
        layer, head, (Match(V.rows("one"), V.rows("position", [1]), 30.0),), V.rows("token"), V.rows("seen")
    )
    double = neurons_of([(V.rows("seen", [2]), 0.0, 2 * V.rows("out", [2]))], 1)
    return Program(WORDS, 8, 2, V, (copy,), (double,), noise=noise, logit_size=1.0)


def test_variables_are_disjoint_and_named():
    assert V.width == 21
    assert V.rows("seen", [1]).nonzero().tolist() == [[0, 14]]
    assert V.vector({"token": 2, "one": 1.0}).nonzero().flatten().tolist() == [2, 12]
    assert V.sum_of("seen").sum() == 4
    with pytest.raises(MechstudyError, match="no variable 'gone'"):
        V.rows("gone")


@pytest.mark.parametrize("seed", (0, 1))
def test_a_program_computes_what_it_says_whatever_the_rest_does(seed):
    model = compile_program(copier(Noise()), seed, "copier")
    logits = model.forward(torch.tensor([[0, 2, 3, 1], [0, 3, 2, 1]])).logits
    expected = torch.tensor([[0.0, 0, 2, 0], [0, 0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-3)
    assert (logits - expected).abs().max() > 1e-7, "leaks are there"


def test_without_leaks_only_norms_and_softmax_are_approximate():
    model = compile_program(copier(Noise(leak=0.0)), 0, "copier")
    logits = model.forward(torch.tensor([[0, 2, 3, 1]])).logits
    torch.testing.assert_close(logits, torch.tensor([[0.0, 0, 2, 0]], dtype=torch.float64), rtol=0, atol=1e-6)


def test_the_norm_leaves_what_the_stream_carries():
    model = compile_program(copier(Noise()), 0, "copier")
    at = model.forward(
        torch.tensor([[0, 2, 3, 1]]), capture=[Site("resid_mid", 1), Site("mlp_in", 1)], logits_at=None
    ).activations
    stream, normed = at[Site("resid_mid", 1)], at[Site("mlp_in", 1)]
    torch.testing.assert_close(normed, stream, rtol=1e-6, atol=1e-8)
    assert stream.norm(dim=-1).min() > 1


def test_components_without_a_task_are_as_active_as_those_with_one():
    model = compile_program(copier(Noise()), 0, "copier")
    site = Site("attn_heads", 0)
    z = model.forward(torch.tensor([[0, 2, 3, 1]]), capture=[site], logits_at=None).activations[site][0, -1]
    weights = model.blocks[0].attention_weights().output_DQH
    size_Q = torch.einsum("dqh,qh->qd", weights, z.reshape(model.n_heads, -1)).norm(dim=1)
    assert ((size_Q > 0.1) & (size_Q < 3)).all(), size_Q


def test_tasks_that_collide_or_are_outside_are_refused():
    program = copier(Noise())
    with pytest.raises(MechstudyError, match="two tasks have one head"):
        compile_program(Program(WORDS, 8, 2, V, (*program.heads, *program.heads)), 0, "twice")
    with pytest.raises(MechstudyError, match="outside of the model"):
        compile_program(copier(Noise(), layer=5), 0, "outside")
