"""Captured rows are what a direct forward gives, wherever they are stored and however often it was interrupted."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mechstudy.activations import capture as module
from mechstudy.activations.capture import capture_corpus
from mechstudy.activations.config import Positions
from mechstudy.activations.permutation import WindowedShuffle
from mechstudy.activations.prompt_capture import capture_prompts
from mechstudy.activations.writer import StoreWriter
from mechstudy.behaviours.schema import PromptPair
from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import NullProgress
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site
from tests.support.tiny import tiny_model

SITES = [Site("mlp_in", 1), Site("mlp_out", 1), Site("mlp_act", 0), Site("attn_heads", 1), Site("resid_post", 0)]


@pytest.fixture(scope="module")
def model():
    return tiny_model("qwen2", dtype="float32")


def token_rows(n, context):
    return torch.randint(1, 250, (n, context), generator=torch.Generator().manual_seed(0)).int()


def test_a_stored_row_is_a_direct_forward_at_its_document_and_position(tmp_path, model):
    rows = token_rows(11, 6)
    store = capture_corpus(model, rows, SITES, tmp_path, dtype="float32", seed=4, batch_tokens=20)
    index = store.index()
    assert sorted(zip(index.documents, index.positions, strict=True)) == [(d, t) for d in range(11) for t in range(6)]
    assert torch.equal(torch.from_numpy(index.tokens), rows[index.documents, index.positions])
    for site in SITES:
        for i in range(0, 66, 7):
            document, position = index.documents[i], index.positions[i]
            direct = model.forward(rows[document : document + 1].long(), capture=[site]).activations[site]
            torch.testing.assert_close(store.rows(site)[i], direct[0, position], rtol=1e-5, atol=1e-6)


def test_bfloat16_rows_are_the_rounded_ones(tmp_path, model):
    rows = token_rows(5, 6)
    exact = capture_corpus(model, rows, SITES, tmp_path / "a", dtype="float32")
    rounded = capture_corpus(model, rows, SITES, tmp_path / "b", dtype="bfloat16")
    for site in SITES:
        by_number = exact.rows(site)[exact.places(np.arange(30))].bfloat16().float()
        assert torch.equal(rounded.rows(site)[rounded.places(np.arange(30))], by_number)


class Killed(Exception):
    pass


def test_a_killed_capture_resumes_and_writes_the_same_bytes(tmp_path, model, monkeypatch):
    def small_windows(*args, **kwargs):
        writer = StoreWriter(*args, **kwargs)
        writer.shuffle = WindowedShuffle(writer.n_rows, writer.seed, 4, 32)
        return writer

    monkeypatch.setattr(module, "StoreWriter", small_windows)
    rows = token_rows(40, 6)

    def capture(folder, model=model, batch_tokens=24):
        return capture_corpus(
            model,
            rows,
            SITES,
            tmp_path / folder,
            batch_tokens=batch_tokens,
            checkpoint=tmp_path / f"{folder}.checkpoint",
            checkpoint_seconds=0.0,
        )

    class Mortal(LanguageModel):
        def __init__(self, lives):
            self.__dict__.update(model.__dict__)
            self.lives, self.forwards = lives, 0
            self.sizes = set()

        def forward(self, tokens, **kwargs):
            if self.forwards == self.lives:
                raise Killed
            self.forwards += 1
            self.sizes.add(len(tokens))
            return model.forward(tokens, **kwargs)

    whole = capture("whole")
    with pytest.raises(Killed):
        capture("again", Mortal(5))
    survivor = Mortal(99)
    again = capture("again", survivor, batch_tokens=60)
    assert survivor.forwards < 10 - 2, "it resumes from the checkpoint"
    assert survivor.sizes == {4}, "batches are cut as the first run cut them"
    for file in sorted(p.name for p in whole.folder.iterdir()):
        assert (again.folder / file).read_bytes() == (whole.folder / file).read_bytes(), file


def test_a_batch_that_does_not_fit_in_memory_is_split(tmp_path, model):
    class Small(LanguageModel):
        def __init__(self):
            self.__dict__.update(model.__dict__)

        def forward(self, tokens, **kwargs):
            if len(tokens) > 2:
                raise MemoryError
            return model.forward(tokens, **kwargs)

    rows, progress = token_rows(8, 6), NullProgress()
    split = capture_corpus(Small(), rows, SITES, tmp_path / "a", dtype="float32", progress=progress)
    whole = capture_corpus(model, rows, SITES, tmp_path / "b", dtype="float32")
    torch.testing.assert_close(split.rows(SITES[0]), whole.rows(SITES[0]), rtol=1e-5, atol=1e-6)
    assert any("batch size of 2" in message for message in progress.messages)


def pair(i, length):
    clean = tuple(range(10 + i, 10 + i + length))
    return PromptPair(
        id=f"p{i}",
        template="t",
        group="g",
        clean="c",
        corrupted="d",
        answer=" a",
        wrong_answer=" b",
        positions={"subject": 1, "end": length - 1},
        clean_tokens=clean,
        corrupted_tokens=(9, *clean[1:]),
        answer_tokens=(1,),
        wrong_tokens=(2,),
    )


def test_prompt_rows_are_in_order_and_equal_single_forwards(tmp_path, model):
    pairs = [pair(0, 5), pair(1, 7), pair(2, 5)]
    positions = Positions.parse(["subject", "last-2"])
    store = capture_prompts(model, pairs, SITES, positions, tmp_path, dtype="float32", batch_tokens=10)
    index = store.index()
    assert index.documents.tolist() == [d for d in range(6) for _ in range(3)]
    assert index.positions.tolist() == [1, 3, 4] * 2 + [1, 5, 6] * 2 + [1, 3, 4] * 2
    prompts = [tokens for p in pairs for tokens in (p.clean_tokens, p.corrupted_tokens)]
    for row, (d, t) in enumerate(zip(index.documents, index.positions, strict=True)):
        assert index.tokens[row] == prompts[d][t]
        direct = model.forward(torch.tensor([prompts[d]]), capture=SITES).activations
        for site in SITES:
            torch.testing.assert_close(store.rows(site)[row], direct[site][0, t], rtol=1e-5, atol=1e-6)
    documents = [json.loads(line) for line in (tmp_path / "documents.jsonl").read_text().splitlines()]
    assert [d["version"] for d in documents] == ["clean", "corrupted"] * 3
    assert documents[3] == {
        "document": 3,
        "id": "p1",
        "version": "corrupted",
        "length": 7,
        "first_row": 9,
        "n_rows": 3,
        "positions": {"subject": 1, "end": 6},
    }


def test_one_version_alone_keeps_its_document_numbers(tmp_path, model):
    pairs = [pair(0, 5), pair(1, 7)]
    both = capture_prompts(model, pairs, SITES, Positions.last(2), tmp_path / "a", dtype="float32")
    one = capture_prompts(
        model, pairs, SITES, Positions.last(2), tmp_path / "b", dtype="float32", versions=("corrupted",)
    )
    assert one.index().documents.tolist() == [1, 1, 3, 3]
    torch.testing.assert_close(one.rows(SITES[0]), both.rows(SITES[0])[[2, 3, 6, 7]], rtol=1e-5, atol=1e-6)
    lines = (tmp_path / "b" / "documents.jsonl").read_text().splitlines()
    assert [json.loads(line)["document"] for line in lines] == [1, 3]
    assert [json.loads(line)["first_row"] for line in lines] == [0, 2]


def test_a_position_a_prompt_lacks_names_the_prompt(tmp_path, model):
    with pytest.raises(MechstudyError, match="prompt p0: positions: no position is called 'verb'"):
        capture_prompts(model, [pair(0, 5)], SITES, Positions.parse("verb"), tmp_path)
    with pytest.raises(MechstudyError, match="no prompts"):
        capture_prompts(model, [], SITES, Positions.parse("all"), tmp_path)
