"""A study of published prompt files as they are, one behaviour each: self-written lines, to the report."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

import mechstudy as ms
from mechstudy.study.finished import latest
from tests.support.published_files import LAYOUTS
from tests.support.tiny_study import write_study

pytestmark = pytest.mark.slow
N = 12  # lines of a file that can be used
NAMES = ("Ann", "Bob", "Cy", "Di")


def agreement() -> Iterator[dict[str, Any]]:
    for i in range(N):
        noun, plural = ("cat", "dog", "key", "box")[i % 4], i % 2
        ends = ("is", "are") if plural else ("are", "is")
        yield {
            "clean_prefix": f"The {noun}{'s' if plural else ''} near park {i}",
            "patch_prefix": f"The {noun}{'' if plural else 's'} near park {i}",
            "clean_answer": ends[1],
            "patch_answer": ends[0],
            "case": "plural" if plural else "singular",
        }


def names() -> Iterator[dict[str, Any]]:
    for i in range(N):
        a, b = NAMES[i % 4], NAMES[(i + 1 + i // 4) % 4]
        first = f"{a} and {b} went to park {i}."
        other = {"prompt": f"{first} {a} gave a pen to", "choices": [a, b], "answerKey": 1}
        metadata = {"indirect_object": a, "subject": b, "object": "pen", "place": "park"}
        yield {"prompt": f"{first} {b} gave a pen to", "template": "t", "metadata": metadata, "choices": [a, b],
               "answerKey": 0, "s2_io_flip_counterfactual": other}  # fmt: skip


def years() -> Iterator[dict[str, Any]]:
    for i in range(N):
        years = 20 + 5 * i
        text = "The war lasted from the year 17{} to the year 17"
        yield {"clean": text.format(years), "corrupted": text.format("01"), "label": str(years)}


def pronouns() -> Iterator[dict[str, Any]]:
    for i in range(N):
        clean, corrupted = (f"So {name} is kind {i}, isn't" for name in ("Ann", "Bob"))
        yield {"clean": clean, "corrupted": corrupted, "pronoun": " she"}


def docstrings() -> Iterator[dict[str, Any]]:
    for i in range(N):
        yield {"clean": f"def f(a, b): {i} :param", "corrupt": f"def f(c, d): {i} :param", "answers": [" b"],
               "wrong_answers": [" d", " c"]}  # fmt: skip


def sums() -> Iterator[dict[str, Any]]:
    for i in range(N):
        other = {"prompt": f"The sum of 41 and {i + 30} is ", "label": 41 + i + 30}
        yield {"prompt": f"The sum of {i + 10} and 15 is ", "template": "sum", "label": str(i + 25), "operator": "+",
               "operand1": i + 10, "operand2": 15, "random_counterfactual": other}  # fmt: skip


def choices() -> Iterator[dict[str, Any]]:
    for i in range(N):
        colours = ["red", "blue"]
        question = f"The box {i} is red. What colour?\nA. {{}}\nB. {{}}\nAnswer:"
        other = {"prompt": question.format("blue", "red"), "choices": {"label": ["A", "B"], "text": colours[::-1]},
                 "answerKey": 1}  # fmt: skip
        yield {"prompt": question.format(*colours), "choices": {"label": ["A", "B"], "text": colours},
               "answerKey": 0, "answerPosition_counterfactual": other}  # fmt: skip


SHAPES = {
    "feature-circuits": agreement, "ioi": names, "greater-than": years, "gendered-pronouns": pronouns,
    "docstring": docstrings, "mib-arithmetic": sums, "mcqa": choices,
}  # fmt: skip


def write_lines(folder: Path, shape: str) -> str:
    """The lines, and one without any of the shape's keys but one; greater-than is a table, the others JSON."""
    rows = list(SHAPES[shape]())
    if shape != "greater-than":
        broken = {key: value for key, value in rows[0].items() if isinstance(value, str)}
        kept = dict([next(iter(broken.items()))])
        (folder / f"{shape}.json").write_text(json.dumps([*rows, kept]))
        return f"{shape}.json"
    with (folder / f"{shape}.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows([*rows, rows[0] | {"clean": ""}])
    return f"{shape}.csv"


def word_tokenizer(texts: str) -> transformers.PreTrainedTokenizerFast:
    """Words with the space before them, and single digits, as tokens; the byte-level one has " " as every answer's."""
    split = pre_tokenizers.Split(Regex(r" ?[A-Za-z]+| ?[0-9]{2}|[0-9]|\s|[^\sA-Za-z0-9]"), "isolated")
    words = dict.fromkeys(word for word, _ in split.pre_tokenize_str(texts))
    vocab = {word: i for i, word in enumerate(["<|bos|>", "<|unk|>", *words])}
    tok = Tokenizer(models.WordLevel(vocab, unk_token="<|unk|>"))
    tok.pre_tokenizer, tok.decoder = split, decoders.Fuse()
    tok.add_special_tokens(["<|bos|>"])
    assert len(vocab) <= 260  # those of the tiny model
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<|bos|>", unk_token="<|unk|>")


def test_files_of_published_tasks_are_studied_as_they_are(tmp_path):
    """Each line that can be used is, the one that cannot is counted, and every behaviour ends in the report."""
    file = write_study(tmp_path, n_prompts=3, tokens=2048)
    named = {shape: write_lines(tmp_path, shape) for shape in SHAPES}
    numbers = "".join(f"{i}" for i in range(10, 100)) + "".join(f" {i}" for i in (*range(25, 37), *range(71, 83)))
    texts = "".join(json.dumps(list(lines()), ensure_ascii=False).replace("\\n", "\n") for lines in SHAPES.values())
    endings = " are is she he red blue A B Ann Bob Cy Di a b c d"
    word_tokenizer(texts + numbers + endings).save_pretrained(tmp_path / "model")
    LAYOUTS["SAELens"](tmp_path / "their")
    config = yaml.safe_load(file.read_text())
    config["behaviours"] = [
        {"name": shape, "file": path, "format": shape, "n_train": 6, "n_test": 6} for shape, path in named.items()
    ]
    config["dictionaries"] = {"from": "their", "evaluation_rows": 256, "evaluation_tokens": 128}
    config["attribution"] = {"n_prompts": 2, "max_features": 20}
    config["verdict"] = {"n_samples": 8, "n_discovery": 8, "steps": 2, "n_random": 2, "resamples": 20, "bootstrap": 100}
    config["interventions"] = {"n_groups": 1, "group_size": 2, "alphas": [-1, 0, 1], "n_edges": 2, "bootstrap": 100,
                               "permutations": 99, "patching": {"layers": "0", "n_pairs": 2}}  # fmt: skip
    config["capture"] = {"layers": "0-2", "positions": "last-1"}
    file.write_text(yaml.safe_dump(config))
    run = ms.Study.load(file, out=tmp_path / "run", say=lambda _: None).run()
    units = latest(run.path)
    for shape in SHAPES:
        summary = json.loads((units[f"prompts[{shape}]"].path / "summary.json").read_text())
        assert summary["left_out"]["n"] == 1 and summary["left_out"]["n_lines"] == N + 1, shape
        assert f"intervene[{shape}]" in units and (run.path / "report" / f"behaviour-{shape}.html").exists(), shape
        page = (run.path / "report" / f"behaviour-{shape}.html").read_text()
        assert f"1 of {N + 1} lines" in page, shape
        assert run.graphs[shape].scores()["conservation_residual_max"] < 1e-4, shape
