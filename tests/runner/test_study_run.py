"""Users' own prompts are looked at before anything is submitted, by the words of the tokenizer that will be used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mechstudy.planning.opened_study import OpenedStudy, open_study
from mechstudy.runner import study_run
from mechstudy.runner.study_run import prompts_refusal
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
    said = refusal(file, "behaviours.0.file=bad.jsonl")
    assert said is not None and "bad.jsonl:7: " in said and "same number of tokens" in said
    assert prompts_refusal(open_study(file, ["behaviours.0.file=bad.jsonl"]), ["model"]) is None


def test_what_only_the_bare_tokenizer_finds_wrong_is_not_refused(file, monkeypatch):
    """Its settings are not all in its file, so its word alone keeps nobody from submitting."""
    monkeypatch.setattr(study_run, "bare_encode", lambda _: lambda text: [len(text), *map(ord, text)])
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
