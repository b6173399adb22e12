"""The paper that is made from a small run: numbers, figures, the PDF."""

# ruff: noqa: RUF001 - the typography of numbers is under test

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import NullProgress
from mechstudy.planning.opened_study import open_study
from mechstudy.runner.study_run import execute
from tests.support.tiny_study import write_study

typst = pytest.importorskip("typst", reason="the compiler of the paper is of the extra `paper`")
from paper.figures import draw  # noqa: E402
from paper.finished import FinishedRun  # noqa: E402
from paper.make import HERE, Paper, compiled, main, make  # noqa: E402
from paper.statements import STATEMENTS  # noqa: E402

pytestmark = pytest.mark.slow
RED = "#c2410c"
TEXT = "".join((HERE / name).read_text(encoding="utf-8") for name in ("paper.typ", "tables.typ"))
NAMES = ("mine", "other_one")
SMALL = ["interventions={n_samples: 4, n_groups: 1, n_edges: 5, bootstrap: 100, permutations: 99}"]
TWO = ", ".join(f"{{name: {name}, file: prompts.jsonl, n_train: 5, n_test: 5}}" for name in NAMES)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two behaviours on a tiny random model."""
    folder = tmp_path_factory.mktemp("study")
    study = write_study(folder)
    study.write_text(re.sub(r"^behaviours: .*$", f"behaviours: [{TWO}]", study.read_text(), flags=re.MULTILINE))
    opened = open_study(study, SMALL, out=folder / "run")
    result = execute(opened, [unit.name for unit in opened.units if unit.name != "report"], progress=NullProgress())
    assert result.exit_code == 0, result.failures
    return folder / "run"


@pytest.fixture(scope="module")
def paper(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Paper:
    return make(run, tmp_path_factory.mktemp("paper"))


def at(content: Any, path: str) -> Any:
    for part in path.split("."):
        content = content[part]
    return content


def test_the_paper_compiles_without_a_warning(paper):
    assert paper.warnings == ()
    assert paper.pdf.read_bytes().startswith(b"%PDF-")


def test_every_number_that_the_text_names_is_text(paper):
    paths = set(re.findall(r'(?<!\w)n\("([^"+]+)"\)', TEXT))
    assert len(paths) > 80
    assert {
        path: at(paper.numbers, path) for path in paths if not isinstance(at(paper.numbers, path), str | list)
    } == {}


def test_a_number_that_is_missing_stops_the_compiler(paper, tmp_path):
    folder = shutil.copytree(paper.pdf.parent, tmp_path / "paper")
    numbers = json.loads((folder / "numbers.json").read_text())
    del numbers["run"]["time"]
    (folder / "numbers.json").write_text(json.dumps(numbers))
    with pytest.raises(typst.TypstError, match="time"):
        compiled(folder)


def test_the_figures_of_the_text_are_those_that_are_drawn(paper):
    named = set(re.findall(r'picture\("([^"]+)"\)', TEXT))
    named |= {f"{name}-{key}" for name in re.findall(r'pair\("([^"]+)"\)', TEXT) for key in "ab"}
    assert named == set(paper.figures)


def test_every_figure_has_marks(paper):
    for name in paper.figures:
        svg = (paper.pdf.parent / "figures" / f"{name}.svg").read_text()
        marks = [item for item in ElementTree.fromstring(svg).iter() if item.tag.endswith(("path", "circle", "rect"))]
        assert len(marks) >= 3 and "nothing was measured" not in svg, name


def test_figures_are_the_same_whenever_they_are_drawn(run, paper, tmp_path):
    for name in draw(FinishedRun.of(run), tmp_path):
        file = f"{name}.svg"
        assert (tmp_path / file).read_bytes() == (paper.pdf.parent / "figures" / file).read_bytes()


OF_BEHAVIOUR = {
    "difference": ("baseline", "test.mean_logit_difference"),
    "graphs.replacement": ("graphs", "replacement"),
    "graphs.completeness": ("graphs", "completeness"),
    "graphs.residual": ("graphs", "conservation_residual_max"),
    "edges.direct": ("edges", "spearman_direct_live"),
    "interventions.patching.effect": ("interventions", "patching.effect"),
    "interventions.patching.control": ("interventions", "patching.control_effect"),
    "verdict.size": ("verdicts", "size"),
    "verdict.n_nodes": ("verdicts", "n_nodes"),
    "verdict.criteria.behaviour.value": ("verdicts", "criteria.behaviour.value"),
    "verdict.criteria.sufficiency.value": ("verdicts", "criteria.sufficiency.value"),
    "verdict.criteria.necessity.value": ("verdicts", "criteria.necessity.value"),
    "verdict.criteria.robustness.value": ("verdicts", "criteria.robustness.value"),
}


@pytest.mark.parametrize("path", OF_BEHAVIOUR)
def test_numbers_equal_those_of_the_summary(run, paper, path):
    summary = json.loads((run / "summary.json").read_text())
    field, below = OF_BEHAVIOUR[path]
    for key, behaviour in zip("ab", NAMES, strict=True):
        shown, value = at(paper.numbers[key], path), at(summary[field][behaviour], below)
        if value is None:
            assert shown.startswith("n/a"), (shown, value)
        else:
            assert_rounded(shown, value)


def assert_rounded(shown: str, value: float) -> None:
    """The first number of a text is the value, rounded to its last digit."""
    match = re.match(r"(−?[\d,]+)(\.\d+)?(?: × 10(\S+))?", shown)
    assert match, shown
    power = int(match[3].translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))) if match[3] else 0
    number = float((match[1] + (match[2] or "")).replace("−", "-").replace(",", ""))
    assert abs(number * 10.0**power - value) <= 0.501 * 10.0 ** (power - len(match[2] or ".") + 1), (shown, value)


@pytest.mark.parametrize(("shown", "value"), [("0.86 [0.78, 0.94]", 0.871), ("−1.0", 1.0), ("5.2 × 10⁻⁶", 5.3e-6)])
def test_a_number_that_is_not_the_value_is_seen(shown, value):
    with pytest.raises(AssertionError):
        assert_rounded(shown, value)


def test_dictionaries_of_the_table_are_those_of_the_summary(run, paper):
    summary = json.loads((run / "summary.json").read_text())["dictionaries"]
    rows = {row["layer"]: row for row in paper.numbers["dictionaries"]["table"]}
    assert rows.keys() == summary.keys()
    for layer, row in rows.items():
        assert_rounded(row["r2"], summary[layer]["r2"])
        assert_rounded(row["l0"], summary[layer]["l0"])


def test_sentences_that_depend_on_the_run_have_a_test_and_the_other_way_round():
    assert set(re.findall(r'say\("(\w+)"\)', TEXT)) == set(STATEMENTS)


def test_a_sentence_that_the_run_does_not_bear_out_is_marked(paper, tmp_path):
    folder = shutil.copytree(paper.pdf.parent, tmp_path / "paper")
    numbers = json.loads((folder / "numbers.json").read_text())
    marked = {}
    for holds in (True, False):
        numbers["statements"] = dict.fromkeys(STATEMENTS, True) | {"both_carry": holds}
        (folder / "numbers.json").write_text(json.dumps(numbers))
        pages = typst.compile(str(folder / "paper.typ"), root=str(folder), format="svg", ignore_system_fonts=True)
        pages = pages if isinstance(pages, list) else [pages]
        marked[holds] = sum(f'fill="{RED}"' in re.sub(r"<image[^>]*>", "", page.decode()) for page in pages)
    assert marked[False] == marked[True] + 1


def test_the_command_names_what_a_run_does_not_bear_out(run, paper, tmp_path, capsys):
    assert paper.not_borne_out  # a random model does not do what the demo's does
    main([str(run), "--out", str(tmp_path)])
    printed = capsys.readouterr()
    assert printed.out.strip() == str(tmp_path / "paper.pdf")
    assert all(name in printed.err for name in paper.not_borne_out)


def test_a_run_of_one_behaviour_is_a_user_error(run, tmp_path):
    short = shutil.copytree(run, tmp_path / "run", symlinks=True)
    for folder in (short / "artifacts" / "verdict").glob("*other_one*"):
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    with pytest.raises(MechstudyError, match="compares 2 behaviours with verdicts, and this run has 1"):
        make(short, tmp_path / "paper")


def test_a_folder_that_is_no_run_exits_with_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "nothing")])
    assert stop.value.code == 2
    assert "no such folder" in capsys.readouterr().err
