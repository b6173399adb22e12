"""The prompts phase: samples, lines left out, and the ids of studies that have neither."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mechstudy.behaviours.schema import from_jsonl
from mechstudy.core.errors import MechstudyError
from mechstudy.models.known import known_config
from mechstudy.models.shapes import shapes_of
from mechstudy.models.unknown_token import UnknownToken
from mechstudy.study.phases.attribute import AttributeSpec
from mechstudy.study.phases.intervene import InterveneSpec
from mechstudy.study.phases.prompts import PromptsPhase, PromptsSpec, notes_of
from mechstudy.study.preflight import outlines
from mechstudy.study.study import Study
from mechstudy.study.units import build_units
from tests.support.fake_tokenizer import FakeTokenizer


def rows(n: int, template: str, split: str, **more: object) -> list[dict[str, Any]]:
    return [
        {
            "clean": f"The {template} {split} {i}",
            "corrupted": f"One {template} {split} {i}",
            "answer": " is",
            "wrong_answer": " are",
            "template": template,
            "split": split,
        }
        | more
        for i in range(n)
    ]


def specs(folder: Path, lines: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """The specs of a study's units."""
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    own = {"name": "mine", "file": "mine.jsonl", "n_train": 8, "n_test": 8} | changes.pop("behaviour", {})
    study = Study.model_validate({"name": "s", "model": {"source": "path:m"}, "behaviours": [own]} | changes)
    config = known_config("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert config is not None
    units = build_units(study, shapes_of(config), "f" * 64, folder, outlines(study, folder))
    return {unit.name.partition("[")[0]: unit.spec for unit in units}


def run(
    spec: PromptsSpec, base: Path, config: dict[str, Any] | None = None, unknown: str | None = None
) -> tuple[dict[str, Any], list[str]]:
    """The files that the phase writes, and its log; ``unknown`` is a word that has the unknown token."""
    encode = FakeTokenizer(bos=False)
    written: dict[str, Any] = {}
    log: list[str] = []
    model = SimpleNamespace(
        encode=lambda text, *, instruction=None, date=None: encode(text),
        hf=SimpleNamespace(config=SimpleNamespace(to_dict=lambda: config or {})),
        unknown_token=None if unknown is None else UnknownToken(encode(unknown)[0], "<unk>", "the tokenizer of m"),
        token_strings=lambda ids: [encode.text(i) for i in ids],
    )
    inputs: Any = SimpleNamespace(model=SimpleNamespace(load=lambda _: model, chat_instruction=None))
    out: Any = SimpleNamespace(
        write_text=written.__setitem__, write_json=lambda name, value, **_: written.__setitem__(name, value)
    )
    runtime: Any = SimpleNamespace(base=base, progress=SimpleNamespace(log=log.append))
    PromptsPhase().run(spec, inputs, out, runtime)
    return written, log


def test_fewer_prompts_than_lines_are_a_proportional_sample(tmp_path: Path) -> None:
    lines = [*rows(10, "cat", "train"), *rows(10, "dog", "train"), *rows(4, "cat", "test")]
    spec = specs(tmp_path, lines)["prompts"]
    assert spec.canonical()["sample"] == "proportional"
    written, log = run(spec, tmp_path)
    templates = [json.loads(line)["template"] for line in written["train.jsonl"].splitlines()]
    assert sorted(templates) == ["cat"] * 4 + ["dog"] * 4
    assert [json.loads(line)["id"] for line in written["test.jsonl"].splitlines()] == [
        f"line-{number:04d}" for number in range(21, 25)
    ]
    sampled = {"n": 8, "of": 20, "templates": {"cat": 4, "dog": 4}}
    assert written["summary.json"]["sampled"] == {"train": sampled}
    said = (
        "8 of 20 train prompts are used: a seeded sample that keeps the shares of templates (cat 4, dog 4) and groups"
    )
    assert log == notes_of(written["summary.json"]) == [said]


def test_prompts_with_a_few_unknown_words_are_used_and_counted(tmp_path: Path) -> None:
    lines = [*rows(8, "cat", "train"), *rows(6, "cat", "test"), *rows(2, "axolotl", "test")]
    spec = specs(tmp_path, lines)["prompts"]
    written, log = run(spec, tmp_path, unknown=" axolotl")
    assert written["summary.json"]["unknown"] == {"n": 2, "token": "<unk>", "prompts": ["line-0015", "line-0016"]}
    said = "2 of 16 prompts hold '<unk>', which stands for text that the tokenizer does not know (line-0015, line-0016)"
    assert log == notes_of(written["summary.json"]) == [said]


def test_a_study_that_takes_all_lines_keeps_its_ids(tmp_path: Path) -> None:
    made = specs(tmp_path, [*rows(8, "cat", "train"), *rows(8, "cat", "test")])
    assert set(made["prompts"].canonical()) == {"behaviour", "n", "seed", "file", "sha256"}
    assert "sample" not in made["attribute"].canonical() and "sample" not in made["intervene"].canonical()
    written, log = run(made["prompts"], tmp_path)
    assert not log and not {"sampled", "left_out"} & written["summary.json"].keys()
    assert [json.loads(line)["id"] for line in written["train.jsonl"].splitlines()] == [
        f"line-{number:04d}" for number in range(1, 9)
    ]


@pytest.mark.parametrize("field", [{"answer_sets": "mean"}, {"answer_tokens": "all"}])
def test_how_answers_are_compared_is_part_of_the_prompts_id_where_it_is_set(
    tmp_path: Path, field: dict[str, str]
) -> None:
    lines = [*rows(8, "cat", "train"), *rows(8, "cat", "test")]
    plain, other = (specs(tmp_path, lines, behaviour=chosen)["prompts"].canonical() for chosen in ({}, field))
    assert other == plain | field


def test_graphs_and_interventions_sample_prompts_of_a_file(tmp_path: Path) -> None:
    lines = [*rows(4, "cat", "train"), *rows(4, "dog", "train"), *rows(8, "cat", "test")]
    few = {"attribution": {"n_prompts": 4}, "interventions": {"n_samples": 4, "n_discovery": 8}}
    made = specs(tmp_path, lines, **few)
    assert isinstance(made["attribute"], AttributeSpec) and isinstance(made["intervene"], InterveneSpec)
    assert made["attribute"].sample is not None and made["intervene"].sample == "proportional"
    written, _ = run(made["prompts"], tmp_path)
    (tmp_path / "train.jsonl").write_text(written["train.jsonl"])
    pairs = from_jsonl(tmp_path / "train.jsonl")
    assert sorted(pair.template for pair in made["attribute"].prompts(pairs)) == ["cat", "cat", "dog", "dog"]
    patching = {"interventions": {"n_samples": 8, "patching": {"n_pairs": 3}}}
    assert specs(tmp_path, lines, **patching)["intervene"].sample == "proportional"


def test_built_in_prompts_are_never_sampled(tmp_path: Path) -> None:
    built_in = {"name": "country_capital", "file": None, "n_train": 50, "n_test": 50}
    made = specs(tmp_path, [], behaviour=built_in, attribution={"n_prompts": 4})
    assert "sample" not in made["attribute"].canonical()
    assert set(made["prompts"].canonical()) == {"behaviour", "n", "seed"}


def test_lines_left_out_are_listed_in_the_summary(tmp_path: Path) -> None:
    lines = [*rows(3, "cat", "train"), *rows(3, "cat", "test"), *rows(1, "cat", "test", corrupted="One")]
    written, log = run(specs(tmp_path, lines)["prompts"], tmp_path)
    assert written["summary.json"]["left_out"] == {
        "n": 1,
        "n_lines": 7,
        "kinds": {"clean and corrupted of unequal token length": 1},
        "lines": [
            {
                "line": 7,
                "what": "clean has 4 tokens, corrupted 1",
                "fix": "words with the same number of tokens, so that positions match; or align: ends in the study",
            }
        ],
    }
    assert log == [
        "1 of 7 lines are left out: 1 clean and corrupted of unequal token length (line 7: clean has 4 tokens,"
        " corrupted 1); 3 train and 3 test prompts remain; `align: ends` uses those of unequal length"
    ]
    strict = specs(tmp_path, lines, behaviour={"strict": True})["prompts"]
    with pytest.raises(MechstudyError, match=r"mine\.jsonl:7: clean has 4 tokens, corrupted 1"):
        run(strict, tmp_path)


def test_a_published_format_is_read_by_its_name(tmp_path: Path) -> None:
    lines = [
        {
            "clean_prefix": f"The {i}",
            "patch_prefix": f"One {i}",
            "clean_answer": "are",
            "patch_answer": "is",
            "case": "c",
        }
        for i in range(9)
    ]
    made = specs(tmp_path, lines, behaviour={"format": "feature-circuits"})["prompts"]
    assert made.canonical()["format"] == "feature-circuits"
    written, _ = run(made, tmp_path)
    pairs = [json.loads(line) for line in (written["train.jsonl"] + written["test.jsonl"]).splitlines()]
    assert len(pairs) == 9 and {pair["answer"] for pair in pairs} == {" are"}


def test_built_in_prompts_beyond_learned_positions_are_refused(tmp_path: Path) -> None:
    spec = PromptsSpec(behaviour="country_capital", n={"train": 2, "test": 2}, seed=0)
    with pytest.raises(MechstudyError, match=r"the model has 4 positions \(n_positions\)"):
        run(spec, tmp_path, {"model_type": "gpt2", "n_positions": 4})
