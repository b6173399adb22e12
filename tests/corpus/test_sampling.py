"""Text sampled from the model: the two decoding paths agree, batches resume, specials are never drawn."""

from __future__ import annotations

import json

import pytest
import torch

from mechstudy.core.errors import MechstudyError
from mechstudy.corpus.config import CorpusConfig
from mechstudy.corpus.sampling import has_plain_attention, refused_tokens, sample_rows
from mechstudy.corpus.token_rows import build_corpus
from tests.support.tiny import FAMILIES, tiny_model


def sample_without_cache(model, n_rows, context, temperature, seed):
    """The definition: a whole forward for each token, one uniform draw each."""
    generator = torch.Generator().manual_seed(seed * 1_000_003)
    rows = torch.zeros(n_rows, 1, dtype=torch.long)
    refused = refused_tokens(model)
    for _ in range(context - 1):
        logits = model.forward(rows, logits_at="last").logits.float()
        logits[:, refused] = -torch.inf
        cumulative = torch.softmax(logits / temperature, -1).cumsum(-1)
        draw = torch.rand(n_rows, 1, generator=generator) * cumulative[:, -1:]
        rows = torch.cat([rows, torch.searchsorted(cumulative, draw)], 1)
    return rows.int()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_tokens_are_those_of_whole_forwards_in_every_family(family):
    model = tiny_model(family)
    own = model.hf.config._attn_implementation
    rows = sample_rows(model, 4, 10, temperature=0.7, seed=3, batch=4)
    assert torch.equal(rows, sample_without_cache(model, 4, 10, 0.7, 3))
    assert model.hf.config._attn_implementation == own
    assert torch.equal(rows, sample_rows(model, 4, 10, temperature=0.7, seed=3, batch=4, fast=False))


def test_the_fast_path_is_taken_only_where_attention_is_plain():
    fast = {f for f in FAMILIES if has_plain_attention(tiny_model(f, n_layers=1).hf.config)}
    assert fast == {"llama", "qwen2", "qwen3", "mistral"}
    config = tiny_model("mistral", n_layers=1).hf.config
    config.sliding_window = 4
    assert not has_plain_attention(config)


def test_rows_begin_with_the_start_token_and_never_draw_a_special_one():
    model = tiny_model(dtype="float32", n_layers=1)
    rows = sample_rows(model, 64, 20, temperature=5.0, batch=64)
    assert (rows[:, 0] == 0).all()
    assert (rows[:, 1:] > 0).all() and (rows < len(model.tokenizer)).all()
    assert sample_rows(model, 1, 3, batch=1, start_token=7)[0, 0] == 7


def test_more_rows_leave_the_first_ones_as_they_are():
    model = tiny_model(n_layers=1)
    few, many = (sample_rows(model, n, 6, batch=4) for n in (3, 9))
    assert few.shape == (3, 6) and many.shape == (9, 6)
    assert torch.equal(few, many[:3])
    assert not torch.equal(many[:4], many[4:8])


def test_a_seed_of_a_study_gives_other_text_than_its_neighbour():
    model = tiny_model(n_layers=1)
    rows = [sample_rows(model, 4, 20, temperature=5.0, seed=2**62 + i, batch=4) for i in (0, 0, 1)]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


def test_finished_batches_are_read_and_not_sampled_again(tmp_path):
    model = tiny_model(n_layers=1)
    rows = sample_rows(model, 8, 6, batch=4, folder=tmp_path)
    assert json.loads((tmp_path / "b001.json").read_text()) == rows[4:, 1:].tolist()
    (tmp_path / "b000.json").write_text(json.dumps([[5] * 5] * 4))
    (tmp_path / "b001.json").unlink()
    again = sample_rows(model, 8, 6, batch=4, folder=tmp_path)
    assert (again[:4, 1:] == 5).all()
    assert torch.equal(again[4:], rows[4:])


def test_samples_of_other_settings_or_damaged_ones_are_refused(tmp_path):
    model = tiny_model(n_layers=1)
    sample_rows(model, 4, 6, batch=4, folder=tmp_path)
    with pytest.raises(MechstudyError, match="other settings") as caught:
        sample_rows(model, 4, 6, batch=4, folder=tmp_path, seed=1)
    assert "0 there, 1 asked for" in str(caught.value)
    (tmp_path / "b000.json").write_text("[[1, 2")
    with pytest.raises(MechstudyError, match="cannot be read"):
        sample_rows(model, 4, 6, batch=4, folder=tmp_path)
    (tmp_path / "b000.json").write_text("[[1, 2]]")
    with pytest.raises(MechstudyError, match="no 5 tokens a row"):
        sample_rows(model, 4, 6, batch=4, folder=tmp_path)


def test_a_sampled_corpus_has_train_and_held_out_rows_as_asked(tmp_path):
    model = tiny_model(n_layers=1)
    config = CorpusConfig(source="self", tokens=30, held_out_tokens=12, context=6, sample_batch=4)
    corpus = build_corpus(config, model.tokenizer, model=model, scratch=tmp_path)
    rows = sample_rows(model, 7, 6, batch=4)
    assert torch.equal(corpus.held_out, rows[:2]) and torch.equal(corpus.train, rows[2:])
