"""Labels from an endpoint: what it is shown, how labels are scored, and what is kept."""

from __future__ import annotations

import re

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.features.asked_labels import AskedLabel, ask_labels, page_id, read_asked, write_asked
from mechstudy.features.endpoint import Endpoint
from mechstudy.features.questions import LONGEST, chosen_in, label_in
from tests.support.stub_endpoint import DETECTION, knowing, stub

WORDS = {"3/1": " keys", "3/2": " meal", "5/7": " door"}


def page(name, word, *, n=8, documents=None):
    """A feature that fires on a word, once in each of its documents."""
    layer, feature = map(int, name.split("/"))
    documents = documents or range(10 * feature, 10 * feature + n)
    examples = [
        {"tokens": [f"t{document}", " the", word, " was"], "activations": [0.0, 0.5, 4.0 - 0.1 * i, 0.0], "peak": 2,
         "document": document}
        for i, document in enumerate(documents)
    ]  # fmt: skip
    return {"layer": layer, "feature": feature, "kind": "sae", "examples": examples,
            "top_logits": [{"token": f" of{word}", "value": 1.0}], "graphs": {}}  # fmt: skip


def pages(**words):
    return [page(name, word) for name, word in (WORDS | words).items()]


def asked(server, made_of=None, kept=None, keep=lambda _: None, names=None, **options):
    made_of = made_of or pages()
    endpoint = Endpoint(server.url, "stub", wait=lambda _: None, **options)
    return ask_labels(endpoint, made_of, names or [f"{p['layer']}/{p['feature']}" for p in made_of], kept or {}, keep)


def test_a_right_label_scores_one_and_another_features_nothing():
    with stub(knowing) as server:
        made = asked(server)
    assert {name: one.label for name, one in made.items()} == {n: w.strip() for n, w in WORDS.items()}
    assert [one.score for one in made.values()] == [1.0] * 3
    assert all(one.shuffled < 0.5 + 1e-9 for one in made.values())
    assert {(one.n_fires, one.n_other, one.n_same_word) for one in made.values()} == {(4, 4, 0)}
    assert len(server.bodies) == 3 + 2 * 3


def test_a_judge_who_sees_everything_everywhere_is_at_chance():
    with stub(lambda question: "[1, 2, 3, 4, 5, 6, 7, 8]" if DETECTION in question else "x") as server:
        assert {one.score for one in asked(server).values()} == {0.5}


def test_a_label_is_scored_on_texts_that_were_not_shown():
    with stub(knowing) as server:
        asked(server, names=["3/1"])
    shown, scored = (set(re.findall(r"t1\d\b", question)) for question in server.questions)
    assert shown == {"t10", "t12", "t14", "t16"} and scored == {"t11", "t13", "t15", "t17"}


def test_a_text_that_was_shown_is_not_scored_in_another_document():
    made_of = pages()
    for example in made_of[0]["examples"][:2]:
        example["tokens"][0] = "same"
    with stub(knowing) as server:
        made = asked(server, made_of, names=["3/1"])
    assert made["3/1"].n_fires == 3 and "same" not in server.questions[1]


def test_fewer_than_three_texts_give_no_score_and_cost_no_question():
    made_of = pages()
    for example in made_of[0]["examples"]:
        example["tokens"][0] = "same"
    with stub(knowing) as server:
        made = asked(server, made_of, names=["3/1"])
    assert (made["3/1"].score, made["3/1"].n_fires) == (None, 0)
    assert len(server.bodies) == 1


def test_weaker_examples_are_scored_too_and_never_those_of_a_document_that_was_shown():
    made_of = pages()
    weak = [{"tokens": [f"w{d}", " keys"], "activations": [0.0, 0.2], "peak": 1, "document": d} for d in (10, 70, 71)]
    made_of[0]["intervals"] = [{"low": 0, "high": 1, "count": 3, "examples": weak}]
    made_of[1]["examples"][0]["document"] = 71
    with stub(knowing) as server:
        made = asked(server, made_of, names=["3/1"])
    scored = set(re.findall(r"(w\d+) keys", server.questions[1]))
    assert scored == {"w70", "w71"} and (made["3/1"].n_fires, made["3/1"].n_other) == (6, 6)
    assert "t20" not in server.questions[1]  # a document that the feature's page has


def test_at_most_eight_texts_of_each_kind_are_asked_about():
    made_of = [page("3/1", " keys", n=40), page("3/9", " meal", n=40)]
    with stub(knowing) as server:
        made = asked(server, made_of, names=["3/1"])
    assert (made["3/1"].n_fires, made["3/1"].n_other, made["3/1"].score) == (8, 8, 1.0)


def test_other_windows_are_of_documents_that_the_feature_is_not_known_to_fire_on():
    made_of = [page("3/1", " keys"), page("3/2", " meal", documents=[*range(10, 15), 91, 92, 93, 94])]
    with stub(knowing) as server:
        asked(server, made_of, names=["3/1"])
    others = set(re.findall(r"t(\d+) the meal", server.questions[1]))
    assert others == {"91", "92", "93", "94"}


def test_windows_with_a_word_that_the_feature_peaks_on_are_counted():
    made_of = [page("3/1", " keys"), page("3/2", " Keys")]
    with stub(lambda question: "[1]" if DETECTION in question else "x") as server:
        made = asked(server, made_of, names=["3/1"])
    assert (made["3/1"].n_other, made["3/1"].n_same_word) == (4, 4)


def test_the_question_has_marks_activations_and_promoted_tokens():
    with stub(knowing) as server:
        asked(server, names=["3/1"])
    assert '1. t10 the<< keys>> was  (" keys" 10)' in server.questions[0]
    assert 'more likely next: " of keys"' in server.questions[0]


def test_special_tokens_of_a_text_end_no_question():
    made_of = pages()
    for example in made_of[0]["examples"]:
        example["tokens"][1] = "<|im_end|>"
    with stub(knowing) as server:
        asked(server, made_of, names=["3/1"])
    assert all("<|" not in question and "< |im_end|>" in question for question in server.questions)


def test_texts_are_shuffled_and_in_the_same_order_in_each_call():
    with stub(knowing) as first, stub(knowing) as second:
        asked(first), asked(second)
    assert first.questions == second.questions
    orders = [re.findall(r"^\d+\. \w+ the (\w+)", q, re.MULTILINE) for q in first.questions if DETECTION in q]
    assert all(len(set(order[:4])) > 1 for order in orders)  # not all of the feature's own first


def test_what_was_answered_is_kept_and_not_asked_again():
    kept = {}
    with stub(knowing, plan=[None, None, 401]) as server, pytest.raises(MechstudyError, match="refuses the key"):
        asked(server, keep=lambda made: kept.update(made))
    assert sorted(kept) == ["3/1", "3/2"] and kept["3/1"].score is None
    with stub(knowing) as server:
        made = asked(server, kept=kept)
    assert len(server.bodies) == 1 + 2 * 3
    with stub(knowing) as server:
        assert asked(server, kept=made) == made
    assert server.bodies == []


def test_another_model_or_other_examples_are_asked_again():
    with stub(knowing) as server:
        made = asked(server)
        n = len(server.bodies)
        other = pages()
        other[0]["examples"][0]["activations"][2] = 9.0
        asked(server, other, kept=made)
        assert len(server.bodies) == n + 3
        by_other = ask_labels(Endpoint(server.url, "bigger"), pages(), ["3/1"], made, lambda _: None)
    assert by_other["3/1"].model == "bigger" and by_other["3/2"].model == "stub"


def test_a_label_that_gets_company_is_then_compared():
    with stub(knowing) as server:
        alone = asked(server, names=["3/1"])
        assert alone["3/1"].score == 1.0 and alone["3/1"].shuffled is None
        assert asked(server, kept=alone)["3/1"].shuffled is not None


def test_answers_that_say_nothing_leave_the_label_or_the_score_open():
    with stub(lambda question: "I cannot say." if DETECTION in question else "x") as server:
        assert [one.score for one in asked(server).values()] == [None] * 3
    with stub(lambda question: " \n") as server:
        assert asked(server) == {}


def test_features_without_examples_are_not_asked_for():
    with stub(knowing) as server:
        assert asked(server, [page("3/1", " keys") | {"examples": []}]) == {}
    assert server.bodies == []


@pytest.mark.parametrize(("answer", "label"), [
    ("plural nouns", "plural nouns"),
    ('\n "Plural nouns."\nBecause ...', "Plural nouns"),
    ("**Label:** plural nouns", "plural nouns"),
    ("<script>alert(1)</script>", "<script>alert(1)</script>"),
    ("a\x1b[31m\u202eb", "a[31mb"),
    ("- \n`x`", "x"),
    ("...", None),
    ("", None),
])  # fmt: skip
def test_a_label_is_one_line(answer, label):
    assert label_in(answer) == label


def test_a_long_label_is_cut():
    assert len(label_in("word " * 99)) == LONGEST


@pytest.mark.parametrize(("answer", "chosen"), [
    ("[1, 3]", {0, 2}), ("Texts [2] fit.\n[1]", {0}), ("[]", set()), ("none", None), ("[9]", None), ("[0]", None),
    ("[1" + "0" * 5000 + "]", None),
])  # fmt: skip
def test_a_choice_is_the_last_list_of_numbers_that_exist(answer, chosen):
    assert chosen_in(answer, 3) == chosen


def test_a_file_gives_back_what_was_written(tmp_path):
    labels = {"10/2": AskedLabel("b", "m", "p"), "3/1": AskedLabel("a", "m", "q", 0.75, 0.5, 4, 4, 1)}
    write_asked(tmp_path / "labels.json", labels)
    assert read_asked(tmp_path / "labels.json") == labels
    assert (tmp_path / "labels.json").read_text().index("3/1") < (tmp_path / "labels.json").read_text().index("10/2")
    assert read_asked(tmp_path / "none.json") == {}


@pytest.mark.parametrize("text", [
    "[]", "{}", '{"schema": 2, "labels": {}}', '{"schema": 1, "labels": {"a": 1}}',
    '{"schema": 1, "labels": {"3/1": {"label": "x"}}}',
    '{"schema": 1, "labels": {"31": {"label": "x", "model": "m", "page": "p"}}}',
])  # fmt: skip
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(MechstudyError, match="no labels that"):
        read_asked(tmp_path / "labels.json")


def test_a_label_in_a_file_that_somebody_edited_is_one_short_line_too(tmp_path):
    write_asked(tmp_path / "labels.json", {"3/1": AskedLabel("a\n" + "b" * 500, "m", "p")})
    assert len(read_asked(tmp_path / "labels.json")["3/1"].label) == LONGEST


def test_the_page_of_an_id_is_its_examples_and_promoted_tokens():
    one = page("3/1", " keys")
    assert page_id(one) == page_id(one | {"graphs": {"a": 1}, "frequency": 0.1})
    assert page_id(one) != page_id(one | {"top_logits": []})
