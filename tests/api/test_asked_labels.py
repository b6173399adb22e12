"""Labels from an endpoint, and exports of features, of a finished run of a tiny model; by command and from Python."""

import gzip
import json

import pytest

import mechstudy as ms
from mechstudy.features.asked_labels import ASKED
from mechstudy.study.finished import latest
from tests.support.api_world import error_of
from tests.support.finished_study import finished_study, study_file
from tests.support.stub_endpoint import DETECTION, knowing, stub
from tests.support.toy_model import mechstudy

KEY = "sk-secret-0123456789"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, worker_id):
    return finished_study(tmp_path_factory, worker_id)


@pytest.fixture
def run(finished):
    """The run without labels of an earlier test."""
    (finished.path / ASKED).unlink(missing_ok=True)
    return ms.open_run(finished.path)


@pytest.fixture
def names(run):
    """Features with examples to score on, by influence."""
    return [row["feature"] for row in run.features.to_dicts() if len(row["examples"]) >= 6][:4]


# ------------------------------------------------------------------------------------------------ labels


def test_labels_stand_beside_the_rule_and_no_artifact_changes(run, names):
    before = {name: artifact.id for name, artifact in run.artifacts.items()}
    with stub(knowing) as server:
        made = ms.ask_labels(run, server.url, "stub", features=names)
    assert made["feature"].to_list() == names and set(made["model"]) == {"stub"}
    assert {name: artifact.id for name, artifact in latest(run.path).items()} == before
    again = ms.open_run(run.path)
    shown = {row["feature"]: row for row in again.features.to_dicts()}
    for row in made.to_dicts():
        asked = shown[row["feature"]]
        assert (asked["asked_label"], asked["asked_score"]) == (row["label"], pytest.approx(row["score"]))
    assert shown[next(n for n in shown if n not in names)]["asked_label"] is None
    card = ms.describe_feature(names[0], again)
    assert card.asked["label"] == made["label"][0] and card.as_json()["asked"]["model"] == "stub"
    assert card.rule == next(p for p in run.feature_pages if f"{p['layer']}/{p['feature']}" == names[0])["label"]


def test_the_command_says_where_texts_go_and_prints_labels(run, names):
    with stub(knowing) as server:
        words = ("label", run.path, "--endpoint", server.url, "--model", "stub", "--limit", 3)
        result = mechstudy(*words)
        assert f"texts of 3 features go to {server.url.split('/')[2]}" in result.stderr
        assert "3 of 3 features labelled" in result.stdout and str(run.path / ASKED) in result.stderr
        n = len(server.bodies)
        again = json.loads(mechstudy(*words, "--json").stdout)
        assert len(again) == 3 and len(server.bodies) == n
    printed = mechstudy("feature", again[0]["feature"], "--dictionaries", run.path).stdout
    assert f"asked:      {again[0]['label']} (by stub)" in printed and "rule:" in printed


def test_an_interrupted_command_keeps_what_it_got(run):
    with stub(knowing, plan=[None, None, 401]) as server:
        words = ("label", run.path, "--endpoint", server.url, "--model", "stub", "--limit", 4)
        assert "refuses the key" in mechstudy(*words, code=2).stderr
        assert len(json.loads((run.path / ASKED).read_text())["labels"]) == 2
        mechstudy(*words)
    asked = [question for question in server.questions if DETECTION not in question]
    assert len(asked) == 3 + 2  # two, the one that failed, and the two that were missing


def test_labels_of_features_that_are_recorded_again_are_not_shown(run, names):
    with stub(knowing) as server:
        ms.ask_labels(run, server.url, "stub", features=names[:1])
    content = json.loads((run.path / ASKED).read_text())
    content["labels"][names[0]]["page"] = "0" * 16
    (run.path / ASKED).write_text(json.dumps(content))
    assert ms.open_run(run.path).asked_labels == {}


def test_a_hostile_label_is_shown_as_text(run, names):
    with stub(lambda question: "[1]" if DETECTION in question else "\x1b[31m<b>[bold]x</b>\u202e") as server:
        words = ("label", run.path, "--endpoint", server.url, "--model", "stub", "--features", names[0])
        printed = mechstudy(*words).stdout
    assert "the same command asks for what is missing again" not in printed
    assert "[31m<b>[bold]x</b>" in printed and "\x1b[31m" not in printed and "\u202e" not in printed
    assert "\x1b" not in (run.path / ASKED).read_text()


def test_the_key_is_sent_and_written_nowhere(run, names, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    out = tmp_path / "labels.json"
    with stub(knowing) as server:
        result = mechstudy("label", run.path, "--endpoint", server.url, "--model", "stub", "--features", names[0],
                           "--key-variable", "MY_KEY", "--out", out)  # fmt: skip
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    assert KEY not in result.stdout + result.stderr + out.read_text() and not (run.path / ASKED).exists()


def test_features_that_the_run_has_not_recorded_are_refused(run):
    with stub() as server:
        said = error_of(lambda: ms.ask_labels(run, server.url, "stub", features=["1/9999"]))
        assert "has not recorded feature 1/9999" in said and "recorded:" in said
        assert "a limit of 0" in error_of(lambda: ms.ask_labels(run, server.url, "stub", limit=0))
        assert server.bodies == []


# ----------------------------------------------------------------------------------------------- exports


def test_delphi_gets_every_activation_of_recorded_features_and_their_labels(run, names, tmp_path):
    from safetensors.numpy import load_file

    with stub(knowing) as server:
        ms.ask_labels(run, server.url, "stub", features=names[:1])
    model = ms.load_model(study_file(run).with_name("model"), device="cpu")
    modules = ms.export_features(ms.open_run(run.path), tmp_path / "out", "delphi", model=model)
    pages = {(page["layer"], page["feature"]): page for page in run.feature_pages}
    assert modules == [f"layers.{layer}.mlp" for layer in (0, 1)]
    checked = 0
    for layer in (0, 1):
        data = load_file(tmp_path / "out" / "latents" / f"layers.{layer}.mlp" / "0_31.safetensors")
        for feature in {feature for at, feature in pages if at == layer}:
            page, mine = pages[layer, feature], data["locations"][:, 2] == feature
            n = page["frequency"] * (data["tokens"].size - len(data["tokens"]))
            assert int(mine.sum()) == round(n)
            if mine.any():
                assert data["activations"][mine].max() == pytest.approx(page["max_activation"], rel=2e-3)
                checked += 1
    assert checked > 3
    layer, feature = names[0].split("/")
    said = json.loads((tmp_path / "out" / "explanations" / f"layers.{layer}.mlp_latent{feature}.txt").read_text())
    assert said == ms.open_run(run.path).asked_labels[names[0]].label


def test_neuronpedia_needs_no_model(run, tmp_path):
    printed = mechstudy("export", run.path, "--format", "neuronpedia", "--out", tmp_path / "out", "--limit", 3).stdout
    [model] = (tmp_path / "out").iterdir()
    sources = sorted(place.name for place in model.iterdir())
    assert all(source in printed for source in sources) and sources[0].endswith("-tiny")
    lines = [gzip.decompress(file.read_bytes()) for file in model.rglob("features/*.gz")]
    assert sum(len(text.splitlines()) for text in lines) == 3


def test_a_claimed_rule_is_the_explanation_of_a_feature_without_a_label(run, tmp_path):
    ms.export_features(run, tmp_path / "out", "neuronpedia")
    said = [json.loads(line) for file in tmp_path.rglob("explanations/*.gz")
            for line in gzip.decompress(file.read_bytes()).splitlines()]  # fmt: skip
    claimed = {str(page["feature"]): page["label"]["rule"] for page in run.feature_pages if page["label"]["claimed"]}
    assert {row["index"]: row["description"] for row in said} == claimed != {}


def test_a_folder_that_holds_files_and_a_wrong_format_are_refused(run, tmp_path):
    (tmp_path / "x").write_text("")
    assert "must be new or empty" in error_of(lambda: ms.export_features(run, tmp_path, "neuronpedia"))
    said = error_of(lambda: ms.export_features(run, tmp_path / "out", "neuronpedai"))
    assert "formats: delphi, neuronpedia" in said and "fix:     neuronpedia" in said


# ------------------------------------------------------------------------------------------------ labels of others


def test_labels_of_an_export_come_back(run, names, tmp_path):
    with stub(knowing) as server:
        made = ms.ask_labels(run, server.url, "stub", features=names)
    source = f"path:{study_file(run).with_name('model')}"
    for form, model in (("neuronpedia", ()), ("delphi", ("--model", source))):
        mechstudy("export", run.path, "--format", form, "--out", tmp_path / form, *model)
        (run.path / ASKED).unlink(missing_ok=True)
        taken = ms.take_labels(run.path, tmp_path / form)
        given = dict(taken.select("feature", "label").iter_rows())
        assert {name: given[name] for name in names} == dict(made.select("feature", "label").iter_rows())
        assert ms.open_run(run.path).asked_labels[names[0]].score is None


@pytest.mark.slow
def test_the_report_shows_labels_and_escapes_them(run, names, tmp_path):
    study, hostile = study_file(run), "</script><b>plurals</b>"
    file = tmp_path / "labels.json"
    file.write_text(json.dumps({names[0]: hostile, "99/1": "of another model"}))
    printed = mechstudy("label", run.path, "--from", file)
    assert "1 label taken" in printed.stdout and names[0] in printed.stdout
    assert "1 label left out, of features that the run has not recorded: 99/1" in printed.stderr
    mechstudy("report", study, "--out", run.path)
    layer, number = names[0].split("/")
    text = (run.path / "report" / "data" / f"features-L{layer}.js").read_text()
    assert "<b>" not in text
    record = json.loads(text[text.index(",") + 1 : text.rindex(")")])[number]
    assert record["label"] == hostile and record["asked"]["model"] == "labels.json" and record["rule"] is not None
    (run.path / ASKED).unlink()
    mechstudy("report", study, "--out", run.path)
    text = (run.path / "report" / "data" / f"features-L{layer}.js").read_text()
    assert json.loads(text[text.index(",") + 1 : text.rindex(")")])[number]["asked"] is None


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--from", "labels.json", "--endpoint", "http://127.0.0.1:1/v1"), "either asked for or taken"),
        (("--from", "labels.json", "--limit", "3", "--out", "x.json"), "--limit, --out beside --from"),
        ((), "labels need an endpoint"),
        (("--endpoint", "http://127.0.0.1:1/v1"), "labels need an endpoint"),
        (("--from", "none.json"), "no such file or folder"),
        (("--from", "labels.json"), "none of the 1 label is of a feature"),
    ],
)
def test_mistakes_with_labels_of_others_are_named(run, tmp_path, monkeypatch, words, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.json").write_text(json.dumps({"99/1": "x"}))
    assert text in mechstudy("label", run.path, *words, code=2).stderr
    assert not (run.path / ASKED).exists()
