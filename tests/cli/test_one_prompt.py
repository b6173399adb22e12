"""`graph`, `steer`, `feature` and `patch` on a tiny model: what they print and write, by the functions of the API."""

# ruff: noqa: RUF001 - the minus signs of numbers are what is printed

from __future__ import annotations

import json
import re
from html import escape

import pytest

import mechstudy as ms
from mechstudy.cli import one_prompt
from mechstudy.cli.feature import _histogram
from mechstudy.report.formatting import number, plain
from tests.support.interventions_world import transcoder
from tests.support.tiny import save_tiny
from tests.support.tiny_study import write_study
from tests.support.toy_model import mechstudy

PROMPT = "the keys"
HOSTILE = "</script><b>keys</b>"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny model, and a transcoder of its layer 1."""
    folder = tmp_path_factory.mktemp("place")
    save_tiny(folder / "model")
    transcoder(32, 1).save(folder / "dictionary")
    return folder


@pytest.fixture
def inside(place, tmp_path, monkeypatch):
    """A current folder of its own; the model's source and the dictionary's folder."""
    monkeypatch.chdir(tmp_path)
    return f"path:{place / 'model'}", place / "dictionary"


def texts(frame):
    """Tokens that are whole characters, as they are printed."""
    return [plain(token) for token in frame["token"] if "\ufffd" not in token]


# ------------------------------------------------------------------------------------------------ graph


def test_a_graph_of_neurons_is_printed_and_drawn_on_a_page(inside, tmp_path):
    printed = mechstudy("graph", PROMPT, "--answer", "x", "--wrong-answer", "y", "--model", inside[0]).stdout
    for text in ('"the keys", 8 tokens', 'logit("x") - logit("y") = ', "next tokens: ", "time: model", "page: "):
        assert text in printed
    assert len(re.findall(r"^ *[012]/\d+ ", printed, re.MULTILINE)) == 10
    [page] = tmp_path.iterdir()
    assert page.name == "graph-the-keys.html"
    assert 'mechstudy.put("graph"' in page.read_text()


def test_the_table_is_that_of_the_api(inside):
    printed = mechstudy("graph", PROMPT, "--answer", "x", "--wrong-answer", "y", "--model", inside[0]).stdout
    graph = ms.attribute(ms.load_model(inside[0]), None, PROMPT, answer="x", wrong_answer="y")
    top = graph.top(10, by="|live_effect|")["feature"].to_list()
    assert re.findall(r"^ *([012]/\d+) ", printed, re.MULTILINE) == top


def test_answers_that_are_not_given_are_the_models_own(inside):
    model = ms.load_model(inside[0])
    first, second = texts(ms.next_tokens(model, PROMPT, 40))[:2]
    printed = mechstudy("graph", PROMPT, "--model", inside[0]).stdout
    assert printed.count("is the model's most probable next token") == 2
    assert f'logit("{first}") - logit("{second}")' in printed


def test_without_a_wrong_answer_it_is_what_follows_the_corrupted_prompt(inside):
    model = ms.load_model(inside[0])
    own = texts(ms.next_tokens(model, "the dogs", 40))
    printed = mechstudy("graph", PROMPT, "--answer", "x", "--corrupted", "the dogs", "--model", inside[0]).stdout
    assert f'logit("x") - logit("{next(one for one in own if one != "x")}")' in printed
    assert "after the corrupted prompt" in printed and "changes" in printed


def test_a_graph_of_dictionaries_has_their_features_alone(inside, tmp_path):
    words = ("--dictionaries", inside[1], "--model", inside[0], "--out", "own.json")
    printed = mechstudy("graph", PROMPT, "--answer", "x", "--wrong-answer", "y", *words).stdout
    assert set(re.findall(r"^ *(\d)/\d+ ", printed, re.MULTILINE)) == {"1"}
    assert ms.load_graph(tmp_path / "own.json").prompt == PROMPT
    assert "page: own.json" in printed


def test_a_hostile_prompt_stays_text_on_both_pages(inside, tmp_path):
    mechstudy("graph", HOSTILE, "--model", inside[0], "--out", "graph.html")
    mechstudy("patch", HOSTILE, "--corrupted", HOSTILE.replace("keys", "dogs"), "--model", inside[0], "--out", "p.html")
    for name in ("graph.html", "p.html"):
        page = (tmp_path / name).read_text()
        assert "<b>keys" not in page
        assert page.count("</script>") == page.count("<script>")
        assert "default-src 'none'" in page


def test_a_page_is_opened_if_asked_for(inside, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(one_prompt.webbrowser, "open", lambda address: seen.append(address) or True)
    mechstudy("graph", PROMPT, "--model", inside[0])
    assert seen == []
    mechstudy("graph", PROMPT, "--model", inside[0], "--open")
    assert seen == [(tmp_path / "graph-the-keys.html").as_uri()]


def test_the_page_begins_with_the_prompt_and_the_answers(inside, tmp_path):
    mechstudy("graph", HOSTILE, "--answer", "x", "--wrong-answer", "y", "--model", inside[0], "--out", "graph.html")
    page = (tmp_path / "graph.html").read_text()
    assert f"<h1>{escape(HOSTILE)} <small>x rather than y</small></h1>" in page


def test_one_token_has_no_nodes_and_the_table_says_so(inside):
    printed = mechstudy("graph", "a", "--answer", "x", "--wrong-answer", "y", "--model", inside[0]).stdout
    assert "no feature or neuron is a node" in printed and "fires on" not in printed


@pytest.mark.parametrize("command", ["graph", "patch"])
def test_an_unwritable_place_is_refused_before_the_model_loads(inside, monkeypatch, command):
    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(one_prompt.tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(one_prompt.models, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    failed = mechstudy(command, PROMPT, "--corrupted", "the dogs", "--model", inside[0], code=2)
    assert "no file can be written here: Permission denied" in failed.stderr


def test_a_space_at_the_end_of_a_prompt_is_noted(inside):
    words = ("--answer", "x", "--wrong-answer", "y", "--model", inside[0])
    assert "note: the prompt ends with a space" in mechstudy("graph", f"{PROMPT} ", *words).stderr
    assert "note:" not in mechstudy("graph", PROMPT, *words).stderr


# ------------------------------------------------------------------------------------------------ steer


def test_both_continuations_are_those_of_generate(inside):
    words = ("--set", "1/5=90", "--tokens", "6", "--model", inside[0], "--dictionaries", inside[1], "--json")
    shown = json.loads(mechstudy("steer", PROMPT, *words).stdout)
    model, dicts = ms.load_model(inside[0]), ms.load_dictionaries(inside[1])
    assert shown["unsteered"] == ms.generate(model, PROMPT, max_new_tokens=6)
    assert shown["steered"] == ms.generate(model, PROMPT, steer={"1/5": 90.0}, dictionaries=dicts, max_new_tokens=6)
    assert shown["steer"] == {"1/5": 90.0} and shown["steered"] != shown["unsteered"]


def test_without_dictionaries_a_neuron_is_steered(inside):
    words = ("--feature", "1/5", "--feature", "2/7", "--by", "90", "--tokens", "6", "--model", inside[0])
    shown = json.loads(mechstudy("steer", PROMPT, *words, "--json").stdout)
    steer = {"1/5": 90.0, "2/7": 90.0}
    own = ms.generate(ms.load_model(inside[0]), PROMPT, steer=steer, basis="neurons", max_new_tokens=6)
    assert shown["steered"] == own != shown["unsteered"]
    printed = mechstudy("steer", PROMPT, *words).stdout
    assert "unsteered" in printed and "steered: 1/5 +90, 2/7 +90" in printed


def test_a_value_that_changes_nothing_is_said(inside):
    printed = mechstudy("steer", PROMPT, "--set", "1/5=0", "--tokens", "3", "--model", inside[0]).stdout
    assert "the text is the same" in printed


# ---------------------------------------------------------------------------------------------- feature


def test_a_feature_of_a_set_has_the_tokens_of_the_logit_lens(inside):
    words = ("feature", "1/5", "--dictionaries", inside[1], "--model", inside[0], "--n", "3", "--json")
    card = json.loads(mechstudy(*words).stdout)
    assert card["feature"] == "1/5" and card["site_out"] == "mlp_out.1" and card["n_features"] == 40
    assert len(card["promotes"]) == len(card["suppresses"]) == 3
    assert card["promotes"][0][1] > 0 > card["suppresses"][0][1]
    assert card["density"] is None and card["examples"] == []


def test_a_neuron_needs_no_dictionary(inside):
    printed = mechstudy("feature", "1/5", "--model", inside[0]).stdout
    assert "1/5: neuron (mlp_act.1, one of 64)" in printed and "promotes: " in printed


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return ms.Study.load(write_study(folder), out=folder / "run", say=lambda _: None).run(
        ["attribute[mine]", "features"]
    )


def test_of_its_own_features_a_run_knows_all_without_loading_the_model(run, monkeypatch):
    monkeypatch.setattr(one_prompt.models, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    of_dictionary = [row for row in run.features.to_dicts() if row["layer"] in run.dictionaries and row["examples"]]
    row = of_dictionary[0]
    card = json.loads(mechstudy("feature", row["feature"], "--dictionaries", run.path, "--json").stdout)
    assert card["label"] == row["label"] and card["density"] == row["frequency"]
    assert [token for token, _ in card["promotes"]] == row["promotes"][:8]
    assert list(card["graphs"]) == row["behaviours"]
    printed = mechstudy("feature", row["feature"], "--dictionaries", run.path).stdout
    for text in (f"label:      {row['label']}", "density:    active on ", "circuit:    mine", "its peak in brackets"):
        assert text in printed


def test_intervals_of_a_features_activations_are_printed_on_request(run):
    of_dictionaries = [page for page in run.feature_pages if page["layer"] in run.dictionaries]
    page = next(page for page in of_dictionaries if page["histogram"]["positive"])
    words = ("feature", f"{page['layer']}/{page['feature']}", "--dictionaries", run.path)
    card = json.loads(mechstudy(*words, "--json").stdout)
    assert card["histogram"] == page["histogram"] and card["intervals"] == page["intervals"]
    total = sum(page["histogram"]["positive"])
    plain_text, with_intervals = mechstudy(*words).stdout, mechstudy(*words, "--intervals").stdout
    [line] = [line for line in plain_text.splitlines() if line.startswith("histogram:")]
    assert f"({total:,} activations, log scale)" in line and "█" in line
    assert "drawn at random" not in plain_text and "drawn at random" in with_intervals
    for one in page["intervals"]:
        assert re.search(rf"^ *{number(one['low'])} +{number(one['high'])} +{one['count']:,} ", with_intervals, re.M)


def test_features_of_earlier_runs_have_neither_histogram_nor_intervals(run, monkeypatch):
    kept = [{k: v for k, v in page.items() if k not in ("histogram", "intervals")} for page in run.feature_pages]
    monkeypatch.setattr(ms.Run, "feature_pages", kept)
    page = next(page for page in kept if page["layer"] in run.dictionaries)
    printed = mechstudy(
        "feature", f"{page['layer']}/{page['feature']}", "--dictionaries", run.path, "--intervals"
    ).stdout
    assert "intervals:  not recorded" in printed and "histogram:" not in printed


def test_histograms_of_neurons_have_both_sides_of_zero():
    drawn = _histogram({"bin_width": 0.5, "positive": [90, 0, 0, 0, 1], "negative": [90, 3]})
    assert drawn == "−1.00 █ 0 █ ▂ 2.50 (184 activations, log scale)"
    assert _histogram({"bin_width": 0.5, "positive": [], "negative": []}) == "no activation"


def test_beside_a_feature_without_a_record_are_some_that_have_one(run):
    pages = [page for page in run.feature_pages if page["layer"] in run.dictionaries]
    layer, known = pages[0]["layer"], {page["feature"] for page in pages if page["layer"] == pages[0]["layer"]}
    other = next(number for number in range(1000) if number not in known)
    words = ("feature", f"{layer}/{other}", "--dictionaries", run.path)
    printed = mechstudy(*words, "--model", f"path:{run.path.parent / 'model'}").stdout
    [line] = [line for line in printed.splitlines() if line.startswith("recorded:")]
    assert set(re.findall(r"(\d+)/(\d+)", line)) <= {(str(layer), str(number)) for number in known} != set()


def test_a_runs_model_that_is_relative_to_its_study_must_be_named(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = mechstudy("graph", PROMPT, "--dictionaries", run.path, code=2).stderr
    assert "its path starts at the folder of the study file" in printed and "fix:   --model path:" in printed


# ------------------------------------------------------------------------------------------------ patch


def test_the_cells_are_those_of_the_sweep_and_the_page_draws_them(inside, tmp_path):
    words = ("patch", PROMPT, "--corrupted", "the dogs", "--answer", "x", "--wrong-answer", "y", "--model", inside[0])
    shown = json.loads(mechstudy(*words, "--json").stdout)
    model = ms.load_model(inside[0])
    pair = ms.prompt_pair(model, PROMPT, "the dogs", answer="x", wrong_answer="y")
    assert shown["cells"] == ms.patch_sweep(model, [pair]).to_dicts()
    printed = mechstudy(*words).stdout
    assert re.findall(r"^ *(\d) ", printed, re.MULTILINE)[-3:] == ["2", "1", "0"]
    assert "100%" in printed and "largest: layer " in printed and "7 s" in printed
    page = (tmp_path / "patch-the-keys.html").read_text()
    assert 'data-chart="chart-patching"' in page and "7 s" in page and "vegaEmbed" in page


def test_only_tokens_that_matter_and_fit_are_in_the_table(inside, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    printed = mechstudy("patch", PROMPT, "--corrupted", "xxx dogs", "--model", inside[0]).stdout
    assert "more tokens, of smaller effects, are on the page" in printed
    assert max(len(line) for line in printed.splitlines() if re.match(r" *\d +\S*\d", line)) <= 40
