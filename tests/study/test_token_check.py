"""Prompts and corpus rows against a model's positions and BOS token, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.study.study import Study
from mechstudy.study.token_check import token_notes
from tests.support.tiny import tiny_tokenizer

GPT2 = {"model_type": "gpt2", "n_positions": 16}
LLAMA = {"model_type": "llama", "max_position_embeddings": 16}


def study(**changes: object) -> Study:
    own = {"name": "mine", "file": "mine.jsonl"}
    corpus = {"tokens": 100, "context": 16}
    return Study.model_validate(
        {"name": "s", "model": {"source": "path:m"}, "behaviours": [own], "corpus": corpus} | changes
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_tokenizer(bos=True).save_pretrained(tmp_path / "model")
    rows = [{"clean": "a" * n, "corrupted": "b" * n, "answer": "x", "wrong_answer": "y"} for n in (4, 12, 30)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_prompts_beyond_learned_positions_are_refused_with_their_line(folder: Path) -> None:
    with pytest.raises(MechstudyError) as error:
        list(token_notes(study(), GPT2, folder / "model", folder))
    assert error.value.where == f"{folder / 'mine.jsonl'}:3"
    assert "tokens, the model has 16 positions (n_positions)" in error.value.what


def test_prompts_beyond_the_positions_of_a_rotary_model_are_noted(folder: Path) -> None:
    (note,) = token_notes(study(), LLAMA, folder / "model", folder)
    assert note.startswith("mine: 1 prompts are longer than the model was trained on, as line 3: 31 tokens")


def test_corpus_rows_are_checked_at_their_field(folder: Path) -> None:
    long = study(behaviours=[], corpus={"tokens": 100, "context": 17})
    with pytest.raises(MechstudyError, match="rows of 17 tokens, the model has 16 positions") as error:
        list(token_notes(long, GPT2, None, folder))
    assert error.value.where == "corpus.context"
    (note,) = token_notes(long, LLAMA, None, folder)
    assert "(max_position_embeddings), and was not trained on more" in note
    assert list(token_notes(study(behaviours=[]), GPT2, None, folder)) == []


@pytest.mark.parametrize(("clean", "corrupted"), [("BOS", "BOS"), ("", "BOS"), ("BOS", ""), (" BOS", " BOS")])
def test_a_bos_token_that_the_tokenizer_adds_is_refused_in_prompts(folder: Path, clean: str, corrupted: str) -> None:
    bos = tiny_tokenizer(bos=True).bos_token
    row = {"clean": f"{clean}a", "corrupted": f"{corrupted}b", "answer": "x", "wrong_answer": "y"}
    row = {key: value.replace("BOS", bos) for key, value in row.items()}
    (folder / "mine.jsonl").write_text(json.dumps(row))
    with pytest.raises(MechstudyError, match="which the encoding adds itself"):
        list(token_notes(study(), LLAMA, folder / "model", folder))
