"""The shape of an error's text, and the search for the nearest name."""

import pickle

from mechstudy.core.errors import MechstudyError, nearest


def test_text_is_where_what_facts_and_fix_in_columns():
    error = MechstudyError(
        "capture.layers: layer 31 does not exist",
        where="study.yaml:14",
        facts={"model": "SmolLM2-135M-Instruct has layers 0-29"},
        fix="layers: 10-29",
    )
    assert str(error) == (
        "study.yaml:14: capture.layers: layer 31 does not exist\n"
        "  model: SmolLM2-135M-Instruct has layers 0-29\n"
        "  fix:   layers: 10-29"
    )


def test_long_labels_widen_the_column_and_further_lines_are_indented():
    error = MechstudyError("bad", facts={"available": "a\nb"}, fix="c")
    assert str(error) == "bad\n  available: a\n             b\n  fix:       c"


def test_absent_parts_leave_no_lines():
    assert str(MechstudyError("bad")) == "bad"


def test_it_crosses_processes_whole():
    error = MechstudyError("bad", where="here", facts={"a": "b"}, fix="c")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and again.facts == {"a": "b"}


def test_nearest_finds_a_misspelling_whatever_its_case_and_nothing_far():
    assert nearest("Layrs", ["layers", "sites"]) == "layers"
    assert nearest("zzz", ["layers", "sites"]) is None
