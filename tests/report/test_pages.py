"""The built report: every page, links and handles, and every artifact that may be missing."""

from __future__ import annotations

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mechstudy.report.data import FILES, addresses, at, content_of
from mechstudy.report.pages import build_report
from mechstudy.report.summary import build_summary
from tests.support.report_fixture import BEHAVIOURS, STOPPED, FakeStudy, report_data
from tests.support.report_graphs import HOSTILE, LAYERS


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeStudy:
    return FakeStudy(tmp_path_factory.mktemp("study"), prompts=1, big=False, features_per_layer=12)


@pytest.fixture(scope="module")
def report(fake: FakeStudy, quick_bundle: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    build_report(fake.data, out)
    return out


class Links(HTMLParser):
    """Addresses that a page refers to, and its inline scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.inline = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {k: v or "" for k, v in attrs}
        self.links += [attributes[k] for k in ("href", "src") if k in attributes]
        self.inline += tag == "script" and "src" not in attributes
        self.inline += sum(k.startswith("on") for k in attributes)


def parsed(page: Path) -> Links:
    links = Links()
    links.feed(page.read_text(encoding="utf-8"))
    return links


def test_every_behaviour_has_five_pages_beside_the_shared_ones(report: Path) -> None:
    names = {p.name for p in report.glob("*.html")}
    per_behaviour = {
        f"{kind}-{b}.html"
        for b in (*BEHAVIOURS, STOPPED)
        for kind in ("story", "behaviour", "graph", "interventions", "verdict")
    }
    shared = {"index.html", "dictionaries.html", "features.html", "compute.html", "usage.html"}
    assert names == per_behaviour | shared


def test_the_usage_page_shows_ranges_and_advises_where_usage_is_low(report: Path) -> None:
    page = (report / "usage.html").read_text()
    assert "threads busy 45% of the time" not in page  # the cause explains it
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
    by_handle: dict[str, str] = {}
    for unit, folder in fake.inputs.items():
        for file in FILES:
            if (path := folder / file).exists():
                in_file = list(addresses(unit, file, content_of(file, path.read_bytes())))
                by_handle |= {address.handle: str(address) for address in in_file}
                assert all(at(content_of(file, path.read_bytes()), a.pointer) is not ... for a in in_file[:50])
    shown = set()
    for page in report.glob("*.html"):
        html = page.read_text(encoding="utf-8")
        for handle, title in re.findall(r'title="mechstudy reproduce STUDY (\w+) \(([^"]*)\)"', html):
            assert by_handle[handle] == unescape(title), page.name
            shown.add(handle)
    assert len(shown) > 60
    summary = build_summary(fake.data, 1.0, 1)
    assert {finding["number"] for finding in summary["findings"]} <= set(by_handle)


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
    build_report(report_data({"name": "empty"}, {}), tmp_path)
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "nothing causal is claimed" in html


@pytest.mark.parametrize("missing", ["model", "features", "train", "prompts", "baseline", "attribute", "intervene"])
def test_a_report_builds_whichever_artifact_is_missing(
    missing: str, fake: FakeStudy, tmp_path: Path, quick_bundle: None
) -> None:
    kept = [u for u in fake.inputs if BEHAVIOURS[0] in u or u in ("model", "features", "train[10]")]
    inputs = {u: fake.inputs[u] for u in kept if not u.startswith(missing)}
    units = [u for u in fake.units if u["name"] in kept]
    build_report(report_data({**fake.study, "behaviours": [BEHAVIOURS[0]]}, inputs, units), tmp_path)
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
    build_report(report_data(fake.study, inputs, [{"name": u} for u in inputs]), tmp_path / "report")
    assert (tmp_path / "report" / "index.html").exists()


def test_dictionaries_are_shown_row_by_row_with_na_where_undefined(report: Path) -> None:
    page = (report / "dictionaries.html").read_text(encoding="utf-8")
    section = page.partition("<h2>Row by row</h2>")[2].partition("</section>")[0]
    first = section.partition("<tbody>")[2].partition("</tr>")[0]
    cells = re.findall(r'<td class="n">(?:<b>)?([^<]*)', first)
    assert cells[-5:] == ["45", "0.910", "n/a", "0.773", "0.981"], "L0 at 95% ... shrinkage, bias"


def test_corrected_health_findings_are_notes_and_others_warnings(report: Path) -> None:
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


@pytest.mark.parametrize(("better", "said"), [(0.1, "does not beat a frozen one"), (-0.1, "beats every control in R²")])
def test_controls_say_whether_training_beats_them(quick_bundle: None, tmp_path: Path, better: float, said: str) -> None:
    study = FakeStudy(tmp_path / "study", prompts=1, big=False, features_per_layer=12)
    own = json.loads((study.data.dictionaries[LAYERS[0]].folder / "evaluation.json").read_text())
    file = study.data.variants[LAYERS[0], "k16"].folder / "evaluation.json"
    control = {"frozen": "encoder", "r2": own["r2"] + better, "ce_loss_recovered": own["ce_loss_recovered"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | control))
    labels = {"n": 64, "n_claimed": 9, "median_claimed": 0.875}
    of_both = {"labels": {"own": labels, "variant": {"n": 64, "n_claimed": 0, "median_claimed": None}}}
    agreement = file.with_name("agreement.json")
    agreement.write_text(json.dumps(json.loads(agreement.read_text()) | of_both))
    build_report(study.data, tmp_path / "report")
    page = (tmp_path / "report" / "dictionaries.html").read_text(encoding="utf-8")
    section = page.partition("<h2>Controls</h2>")[2].partition("</section>")[0]
    assert said in section and "encoder" in section
    assert "9 of 64 (0.88)</td>" in section and "0 of 64</td>" in section


def test_pages_name_a_loss_recovered_that_is_undefined_and_text_of_another_model(
    quick_bundle: None, tmp_path: Path
) -> None:
    study = FakeStudy(tmp_path / "study", prompts=1, big=False, features_per_layer=12)
    file = study.data.dictionaries[LAYERS[0]].folder / "evaluation.json"
    foreign = {"ce_model": 3.41, "ce_dictionary": 3.2, "ce_zero": 3.38, "ce_loss_recovered": 1.31}
    file.write_text(json.dumps(json.loads(file.read_text()) | foreign))
    study.study["corpus"], study.study["model"] = {"source": "bundled"}, {"source": "hf:other/model"}
    named = study.data.model.folder / "model.json"
    named.write_text(json.dumps(json.loads(named.read_text()) | {"name": "other/model"}))
    build_report(study.data, tmp_path / "report")
    page = (tmp_path / "report" / "dictionaries.html").read_text()
    assert "CE recovered is undefined, zeros at the site lower the loss." in page and "1.31" not in page
    assert "model 3.410, reconstruction 3.200, zeros 3.380" in page
    for name in ("dictionaries", "index"):
        assert "text of SmolLM2-135M-Instruct, not of this model" in (tmp_path / "report" / f"{name}.html").read_text()
