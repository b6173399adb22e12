"""The built report: every page, every artifact that may be missing, sizes, and what the summary says."""

# ruff: noqa: RUF001 - the typography of the pages is under test

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.report import figures as figures_module
from mechstudy.report.build import build_report
from mechstudy.report.graphs import TYPES, aggregate_view, is_cumulative, prompt_view
from mechstudy.report.numbers import FILES, Address, addresses, at, content_of, differences, parse_address
from mechstudy.report.source import Source, parse_unit
from mechstudy.report.summary import build_summary, findings
from tests.support.report_fixture import BEHAVIOURS, HOSTILE, LAYERS, STOPPED, FakeStudy


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeStudy:
    return FakeStudy(tmp_path_factory.mktemp("study"), prompts=1, big=False, features_per_layer=12)


@pytest.fixture(scope="module")
def quick_bundle() -> Iterator[None]:
    """Charts and the Vega bundle are exported for real in the browser tests; here they would take most of a minute."""
    patch = pytest.MonkeyPatch()
    patch.setattr(figures_module.vl_convert, "vegalite_to_svg", lambda *_, **__: "<svg/>")
    patch.setattr(figures_module.vl_convert, "svg_to_png", lambda *_, **__: b"png")
    patch.setattr(figures_module.vl_convert, "javascript_bundle", lambda *_, **__: "/* vega */")
    yield
    patch.undo()


@pytest.fixture(scope="module")
def report(fake: FakeStudy, quick_bundle: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    build_report(fake.study, fake.inputs, fake.units, out)
    return out


class Links(HTMLParser):
    """Addresses that a page refers to, and its inline scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.inline = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {k: v or "" for k, v in attrs}
        self.links += [found[k] for k in ("href", "src") if k in found]
        self.inline += tag == "script" and "src" not in found
        self.inline += sum(k.startswith("on") for k in found)


def parsed(page: Path) -> Links:
    links = Links()
    links.feed(page.read_text(encoding="utf-8"))
    return links


def test_every_behaviour_has_its_three_pages_and_the_site_its_shared_ones(report: Path) -> None:
    names = {p.name for p in report.glob("*.html")}
    per_behaviour = {
        f"{kind}-{b}.html" for b in (*BEHAVIOURS, STOPPED) for kind in ("behaviour", "graph", "interventions")
    }
    shared = {"index.html", "dictionaries.html", "features.html", "compute.html", "usage.html"}
    assert names == per_behaviour | shared


def test_the_usage_page_shows_phases_against_their_range_and_advises_where_one_is_low(report: Path) -> None:
    page = (report / "usage.html").read_text()
    assert "threads busy 45% of the time" not in page  # it is explained by the cause that was found
    assert "one thread works, the others wait" in page and "0.90 cores busy on average of 2 threads given" in page
    assert "compute.max_parallel: 2" in page and "70%-100%" in page
    assert HOSTILE not in page
    assert (report / "data" / "chart-usage-phases.js").exists()


def test_every_link_leads_to_a_file_of_the_report(report: Path) -> None:
    for page in report.glob("*.html"):
        for link in parsed(page).links:
            target = link.split("#")[0]
            assert not re.match(r"(https?:)?//", link), f"{page.name} reaches out to {link}"
            assert target in ("", "data:,") or (report / target).exists(), f"{page.name} links to {link}"


def test_every_provenance_link_leads_to_a_unit_of_the_compute_page(report: Path) -> None:
    anchors = set(re.findall(r'id="(unit-[^"]+)"', (report / "compute.html").read_text(encoding="utf-8")))
    for page in report.glob("*.html"):
        for link in parsed(page).links:
            if link.startswith("compute.html#"):
                assert link.split("#")[1] in anchors


def test_every_handle_leads_to_what_an_artifact_holds(report: Path, fake: FakeStudy) -> None:
    known: dict[str, str] = {}
    for unit, folder in fake.inputs.items():
        for file in FILES.get(parse_unit(unit)[0], ()):
            if (path := folder / file).exists():
                found = list(addresses(unit, file, content_of(file, path.read_bytes())))
                known |= {address.handle: str(address) for address in found}
                assert all(at(content_of(file, path.read_bytes()), a.pointer) is not ... for a in found[:50])
    shown = set()
    for page in report.glob("*.html"):
        html = page.read_text(encoding="utf-8")
        for handle, title in re.findall(r'title="mechstudy reproduce STUDY (\w+) \(([^"]*)\)"', html):
            assert known[handle] == unescape(title), page.name
            shown.add(handle)
    assert len(shown) > 60
    summary = build_summary(fake.study, fake.inputs, fake.units, 1.0, 1)
    assert {finding["number"] for finding in summary["findings"]} <= set(known)


def test_handles_are_made_from_addresses_alone_and_differ():
    a = Address("intervene[x]", "summary.json", "/tests").below("a/b~c", 3)
    assert str(a) == "intervene[x]/summary.json#/tests/a~1b~0c/3" and parse_address(str(a)) == a
    assert a.handle == "g6ssp73" and at({"tests": {"a/b~c": [0, 0, 0, 7]}}, a.pointer) == 7
    handles = {Address("train[1]", "evaluation.json", f"/x/{i}").handle for i in range(20_000)}
    assert len(handles) == 20_000 and parse_address("g6ssp73") is None


def test_differences_are_told_by_pointer():
    before = {"a": [1, {"b": 2.0}], "c": None}
    assert differences(before, {"a": [1, {"b": 2.0}], "c": None}) == []
    assert differences(before, {"a": [1, {"b": 3.0}], "d": 1}) == [("/a/1/b", 2.0, 3.0), ("/d", None, 1)]
    assert differences([1, 2], [1]) == [("", [1, 2], [1])]


def test_no_page_has_an_inline_script_or_handler(report: Path) -> None:
    for page in report.glob("*.html"):
        assert parsed(page).inline == 0


def test_hostile_tokens_are_escaped_in_pages_and_inert_in_data(report: Path) -> None:
    shown = 0
    for page in report.glob("*.html"):
        html = page.read_text(encoding="utf-8")
        assert "<img src=x" not in html and "<img·src=x" not in html
        shown += html.count("&lt;/script&gt;")
    assert shown > 0
    for data in (report / "data").glob("*.js"):
        assert "<" not in data.read_text(encoding="ascii")


def test_a_template_expression_in_a_prompt_is_not_evaluated(report: Path) -> None:
    html = (report / f"behaviour-{BEHAVIOURS[0]}.html").read_text(encoding="utf-8")
    assert "{{7*7}}" in html


def test_a_behaviour_that_stopped_at_the_gate_says_why(report: Path) -> None:
    html = (report / f"graph-{STOPPED}.html").read_text(encoding="utf-8")
    assert "Stopped at the baseline gate" in html
    assert "asks for 80%" in html


def test_an_effect_that_is_not_shown_is_not_called_a_finding(report: Path) -> None:
    html = (report / "index.html").read_text(encoding="utf-8")
    assert "does not measurably change the logit difference" in html
    assert "Not shown" in html and "Not specific" in html


def test_a_report_builds_from_nothing(tmp_path: Path, quick_bundle: None) -> None:
    build_report({"name": "empty"}, {}, [], tmp_path)
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "nothing causal is claimed" in html


@pytest.mark.parametrize("missing", ["model", "features", "train", "prompts", "baseline", "attribute", "intervene"])
def test_a_report_builds_whichever_artifact_is_missing(
    missing: str, fake: FakeStudy, tmp_path: Path, quick_bundle: None
) -> None:
    kept = [u for u in fake.inputs if BEHAVIOURS[0] in u or u in ("model", "features", "train[10]")]
    inputs = {u: fake.inputs[u] for u in kept if not u.startswith(missing)}
    units = [u for u in fake.units if u["name"] in kept]
    build_report({**fake.study, "behaviours": [BEHAVIOURS[0]]}, inputs, units, tmp_path)
    assert (tmp_path / "index.html").exists()


def test_artifacts_without_their_optional_fields_still_make_a_report(
    fake: FakeStudy, tmp_path: Path, quick_bundle: None
) -> None:
    inputs = {}
    for unit, path in fake.inputs.items():
        inputs[unit] = tmp_path / "bare" / path.name
        inputs[unit].mkdir(parents=True)
        for file in path.glob("*.json"):
            bare = json.loads(file.read_text(encoding="utf-8"))
            keep = ("per_prompt", "features", "nodes", "edges", "positions", "splits", "layer")
            bare = {k: v for k, v in bare.items() if k in keep} if file.name != "tokens.json" else bare
            (inputs[unit] / file.name).write_text(json.dumps(bare), encoding="utf-8")
    build_report(fake.study, inputs, [{"name": u} for u in inputs], tmp_path / "report")
    assert (tmp_path / "report" / "index.html").exists()


def test_a_broken_artifact_is_named(fake: FakeStudy, tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text('{"n_prompts": ', encoding="utf-8")
    with pytest.raises(MechstudyError, match=r"attribute\[x\]: scores.json cannot be read"):
        Source({}, {"attribute[x]": tmp_path}).json("attribute[x]", "scores.json")


def test_a_line_separator_inside_a_jsonl_string_does_not_split_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"t": "x\u2028y"}\n', encoding="utf-8")
    assert Source({}, {"u": tmp_path}).rows("u", "a.jsonl") == [{"t": "x\u2028y"}]


def test_a_quoted_newline_inside_a_csv_cell_does_not_split_the_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,top_token\n1,"\n"\n', encoding="utf-8")
    assert Source({}, {"u": tmp_path}).rows("u", "a.csv") == [{"id": "1", "top_token": "\n"}]


def test_units_parse_with_and_without_a_key() -> None:
    assert parse_unit("train[layer=12]") == ("train", "12")
    assert parse_unit("train[12]") == ("train", "12")
    assert parse_unit("model") == ("model", None)


# ------------------------------------------------------------------------------------------------ summary


def test_the_summary_has_exactly_the_agreed_keys(fake: FakeStudy) -> None:
    summary = build_summary(fake.study, fake.inputs, fake.units, 12.5, 10**9)
    assert set(summary) == {
        "model", "wall_seconds", "peak_rss_bytes", "baseline", "dictionaries", "graphs", "interventions", "edges",
        "units", "findings",
    }  # fmt: skip
    behaviour = BEHAVIOURS[0]
    assert set(summary["baseline"][behaviour]["test"]) == {"n", "accuracy", "mean_logit_difference", "ci95", "passed"}
    assert set(summary["dictionaries"]) == {str(layer) for layer in LAYERS}
    assert set(summary["dictionaries"]["10"]) == {
        "kind", "activation", "d_in", "d_sae", "k", "l0", "fvu", "r2", "dead_share", "ce_loss_recovered", "train_rows",
        "rows_per_second",
    }  # fmt: skip
    assert set(summary["graphs"][behaviour]) == {
        "n_prompts", "nodes", "edges", "replacement", "completeness", "replacement_pruned", "completeness_pruned",
        "conservation_residual_max",
    }  # fmt: skip
    assert set(summary["interventions"][behaviour]["ablation"]) == {
        "n", "effect", "ci95", "control_effect", "control_ci95", "p_adjusted",
    }  # fmt: skip
    assert set(summary["edges"][behaviour]) == {"n", "spearman_frozen", "spearman_live"}
    assert set(summary["units"]["model"]) == {"seconds", "status", "artifact"}
    assert STOPPED in summary["baseline"] and STOPPED not in summary["graphs"]
    json.dumps(summary, allow_nan=False)


def test_findings_state_effect_interval_and_control(fake: FakeStudy) -> None:
    summary = build_summary(fake.study, fake.inputs, fake.units, 1.0, 1)
    lines = [finding["text"] for finding in summary["findings"]]
    assert findings(summary, fake.inputs) == [f"{f['text']} [{f['number']}]" for f in summary["findings"]]
    assert (
        "subject_verb_agreement: ablating the top 10 features lowers the logit difference by 2.31 [1.98, 2.64] on 100 "
        "unseen prompts; matched controls −0.02 [−0.08, 0.04]"
    ) in lines
    assert any(line.startswith(f"{STOPPED}:") and "below the gate" in line for line in lines)
    assert any("(not shown)" in line for line in lines)


# ------------------------------------------------------------------------------------------------ graphs


def node(node_id: str, kind: str, layer: str, position: int, influence: float | None = None) -> dict:
    return {"node_id": node_id, "feature_type": kind, "layer": layer, "ctx_idx": position, "influence": influence,
            "feature": 9999, "clerp": "", "token_prob": 0.5}  # fmt: skip


def graph(**influence: float) -> dict:
    return {
        "metadata": {"slug": "g", "prompt_tokens": ["a", HOSTILE]},
        "nodes": [
            node("E_1_0", "embedding", "E", 0),
            node("3_7_1", "cross layer transcoder", "3", 1, influence.get("first", 0.2)),
            node("5_8_1", "cross layer transcoder", "5", 1, influence.get("second", 0.6)),
            node("b_3", "bias", "3", 0, 0.2),
            node("30_4_1", "logit", "30", 1),
        ],
        "links": [
            {"source": "3_7_1", "target": "5_8_1", "weight": -0.5},
            {"source": "E_1_0", "target": "3_7_1", "weight": 2.0},
            {"source": "gone", "target": "3_7_1", "weight": 9.0},
        ],
    }


def test_a_prompt_graph_becomes_columns_rows_and_indexed_edges() -> None:
    view = prompt_view(graph(), {(3, 7): "on «x»"})
    nodes = view["nodes"]
    at = {node_id: i for i, node_id in enumerate(nodes["id"])}
    assert view["rows"] == ["tokens", "L3", "L5", "output"]
    assert [c["label"] for c in view["columns"]] == ["bias", "a", "</script><img·src=x·onerror=alert(1)>"]
    assert nodes["feature"][at["3_7_1"]] == 7  # from the node id, not the paired number
    assert nodes["label"][at["3_7_1"]] == "on «x»"
    assert (nodes["row"][at["30_4_1"]], nodes["column"][at["30_4_1"]]) == (3, 2)
    assert nodes["column"][at["b_3"]] == 0
    assert view["edges"]["source"] == [at["E_1_0"], at["3_7_1"]]  # the strongest first, the dangling one dropped
    assert view["edges"]["weight"] == [2.0, -0.5]


def test_the_most_influential_node_enters_first() -> None:
    nodes = prompt_view(graph(), {})["nodes"]
    inner = [i for i, t in enumerate(nodes["type"]) if TYPES[t] in ("feature", "bias")]
    assert nodes["id"][inner[0]] == "5_8_1"
    assert nodes["share"][inner[0]] == 0.0
    assert nodes["share"][inner[1]] == pytest.approx(0.6)


def test_unnamed_positions_stand_left_and_the_target_in_the_last_named_column() -> None:
    nodes = [
        {"id": "f.3.7@other", "type": "feature", "layer": 3, "feature": 7, "position": "other", "influence": 0.5,
         "label": "3/7"},
        {"id": "logit", "type": "logit", "layer": None, "feature": None, "position": "last", "label": "target"},
    ]  # fmt: skip
    view = aggregate_view(
        {"positions": ["subject", "end", "other"], "target": "logit_difference", "nodes": nodes, "edges": []},
        {(3, 7): "on «·keys»"},
    )
    assert [c["label"] for c in view["columns"]] == ["other", "subject", "end"]
    at = {node_id: i for i, node_id in enumerate(view["nodes"]["id"])}
    assert view["nodes"]["column"][at["f.3.7@other"]] == 0
    assert view["nodes"]["column"][at["logit"]] == 2
    assert view["nodes"]["label"][at["f.3.7@other"]] == "on «·keys»"  # not the number the node already shows
    assert view["nodes"]["label"][at["logit"]] == "answer − wrong answer"


def test_a_node_without_an_influence_is_never_filtered_by_it() -> None:
    example = graph()
    example["nodes"][3]["influence"] = None
    nodes = prompt_view(example, {})["nodes"]
    assert nodes["share"][nodes["id"].index("b_3")] == 0.0


def test_a_behaviour_below_the_gate_that_was_studied_all_the_same_is_not_called_stopped(tmp_path: Path) -> None:
    gate = {"min_accuracy": 0.8, "passed": False, "on_fail": "continue"}
    (tmp_path / "summary.json").write_text(json.dumps({"gate": gate, "splits": {}}), encoding="utf-8")
    source = Source({"behaviours": ["b"]}, {"baseline[b]": tmp_path})
    assert "Stopped" not in source.why_absent("intervene[b]")


def test_timing_joins_the_evaluation(fake: FakeStudy) -> None:
    summary = build_summary(fake.study, fake.inputs, fake.units, 1.0, 1)
    assert summary["dictionaries"]["10"]["rows_per_second"] == 19_400.0


def test_cumulative_influences_are_told_from_direct_ones() -> None:
    assert is_cumulative([0.1, 0.3, 0.5, 0.65, 0.78, 0.8])
    assert not is_cumulative([0.4, 0.2, 0.1, 0.05, 0.01, 0.001])


def test_a_checked_edge_carries_its_check() -> None:
    aggregate = {
        "positions": ["end"],
        "nodes": [
            {"id": "a", "type": "feature", "layer": 3, "feature": 7, "position": "end", "influence": 0.5},
            {"id": "y", "type": "logit", "layer": None, "feature": None, "position": None},
        ],
        "edges": [{"source": "a", "target": "y", "weight": 1.0}],
    }
    view = aggregate_view(aggregate, {}, [{"source": "a", "target": "y", "predicted": 1.0, "live": 0.7}])
    assert view["checks"]["0"]["live"] == 0.7


def test_dictionaries_are_shown_row_by_row_and_what_is_undefined_is_said_to_be(report: Path) -> None:
    page = (report / "dictionaries.html").read_text(encoding="utf-8")
    section = page.partition("<h2>Row by row</h2>")[2].partition("</section>")[0]
    first = section.partition("<tbody>")[2].partition("</tr>")[0]
    cells = re.findall(r'<td class="n">(?:<b>)?([^<]*)', first)
    assert cells[-5:] == ["45", "0.910", "n/a", "0.773", "0.981"], "L0 at 95% ... shrinkage, bias"


def test_what_training_mended_is_told_and_what_it_did_not_is_a_warning(report: Path) -> None:
    page = (report / "dictionaries.html").read_text(encoding="utf-8")
    assert f'<p class="hint">Layer {LAYERS[0]}: the mean is far away.</p>' in page
    warnings = re.findall(r'<p class="absent">.*?</p>', page)
    assert len(warnings) == len(LAYERS) and all("half are dead. Try: more rows." in text for text in warnings)


def test_variants_are_a_table_of_their_own_and_no_layers(report: Path) -> None:
    page = (report / "dictionaries.html").read_text(encoding="utf-8")
    section = page.partition("<h2>Variants</h2>")[2].partition("</section>")[0]
    cells = re.findall(r"<td class=\"[nc]\">(?:<b>)?([^<]*)", section)
    assert cells[:4] == ["k16", "skip transcoder, topk", "1,152", "16"] and len(cells) == 12
    assert cells[-4:] == ["n/a", "0.650", "25.0%", "0.200"]
    assert "k16" not in page.partition("<h2>All dictionaries</h2>")[2].partition("</section>")[0]
