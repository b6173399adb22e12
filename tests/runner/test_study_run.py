"""Users' own prompts are looked at before anything is submitted, by the words of the tokenizer that will be used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mechstudy.models.tokenizer import BareTokenizer
from mechstudy.planning.opened_study import OpenedStudy, open_study
from mechstudy.runner import study_run
from mechstudy.runner.study_run import prompts_refusal
from tests.support.tiny import tiny_tokenizer
from tests.support.tiny_study import write_study


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"))


def refusal(file: Path, *overrides: str) -> str | None:
    opened: OpenedStudy = open_study(file, overrides)
    found = prompts_refusal(opened, ["prompts[mine]"])
    return None if found is None else str(found)


def test_a_broken_line_is_named_and_a_unit_that_is_done_is_not_looked_at(file):
    good = (file.parent / "prompts.jsonl").read_text()
    assert refusal(file) is None
    bad = file.parent / "bad.jsonl"
    lines = good.splitlines()
    bad.write_text("\n".join([*lines[:6], lines[6].replace("abe ", "abee "), *lines[7:]]))
    assert refusal(file, "behaviours.0.file=bad.jsonl") is None
    said = refusal(file, "behaviours.0.file=bad.jsonl", "behaviours.0.strict=true")
    assert said is not None and "bad.jsonl:7: " in said and "same number of tokens" in said
    assert prompts_refusal(open_study(file, ["behaviours.0.file=bad.jsonl"]), ["model"]) is None


def test_what_only_the_bare_tokenizer_finds_wrong_is_not_refused(file, monkeypatch):
    """Its settings are not all in its file, so its word alone keeps nobody from submitting."""
    bare = BareTokenizer(lambda text: [len(text), *map(ord, text)], None)
    monkeypatch.setattr(study_run, "bare_tokenizer", lambda _: bare)
    assert refusal(file) is None


@pytest.mark.process
def test_good_prompts_are_looked_at_without_torch(file):
    code = (
        "import sys; from pathlib import Path\n"
        "from mechstudy.planning.opened_study import open_study\n"
        "from mechstudy.runner.study_run import prompts_refusal\n"
        f"assert prompts_refusal(open_study(Path({str(file)!r})), ['prompts[mine]']) is None\n"
        "sys.exit('torch' if 'torch' in sys.modules else 'no tokenizer' if 'tokenizers' not in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_chat_markup_in_prompts_is_refused_before_a_chat_study_is_submitted(tmp_path):
    file = write_study(tmp_path)
    tokenizer = tiny_tokenizer(bos=True)
    tokenizer.chat_template = "<|bos|>{% for m in messages %}[INST]{{ m['content'] }}[/INST]{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "model")
    assert refusal(file, "model.chat=true") is None
    rows = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    marked = [row | {key: f"[INST]{row[key]}[/INST]" for key in ("clean", "corrupted")} for row in rows]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, marked)))
    assert refusal(file) is None
    said = refusal(file, "model.chat=true")
    assert said is not None and "clean holds '[INST]', which the chat template writes too" in said


def test_a_bos_token_that_only_settings_add_is_found_before_submitting(tmp_path, monkeypatch):
    file = write_study(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    marked = [row | {key: "<|bos|>" + row[key] for key in ("clean", "corrupted")} for row in rows]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, marked)))
    assert refusal(file) is None  # this tokenizer adds none
    monkeypatch.setattr(study_run, "load_tokenizer", lambda *_, **__: tiny_tokenizer(bos=True))
    said = refusal(file)
    assert said is not None and "clean begins with '<|bos|>', which the encoding adds itself" in said
