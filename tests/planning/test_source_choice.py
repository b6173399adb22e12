"""`dictionaries.source: auto`: what decides, and that a run keeps to it."""

from dataclasses import replace

import pytest

from mechstudy.core.jsonio import read_json
from mechstudy.planning import source_choice
from mechstudy.planning.opened_study import open_study
from mechstudy.planning.source_choice import Need, decide
from mechstudy.runner.study_run import execute

FITS = Need(
    disk=2 * 10**9, disk_short=0, disk_free=10**12, memory=10**9, memory_available=10**10, trained_rows=8 * 10**6,
    corpus_rows=10**6,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "source", "words"),
    [
        ({}, "store", ["2 GB of disk (1 TB free)", "8.0 times the corpus"]),
        ({"trained_rows": 10**6}, "stream", ["1,000,000 rows are trained on", "save no forward pass", "2 GB"]),
        ({"disk_short": 5 * 10**8}, "stream", ["a store needs 2 GB of disk, 500 MB more than there is"]),
        ({"memory": 10**11}, "store", ["100 GB of memory, 10 GB are available"]),
        ({"memory": 10**11, "trained_rows": 10}, "store", ["100 GB of memory"]),
        ({"memory": 10**11, "disk_short": 5 * 10**8}, "store", ["neither fits", "layers_per_pass"]),
    ],
)
def test_what_decides(changes, source, words):
    choice = decide(replace(FITS, **changes))
    assert choice.source == source and all(word in choice.note() for word in words), choice.note()


def opened(here, *sets, out="run"):
    return open_study(here / "study.yaml", ["dictionaries.source=auto", *sets], out=here / out)


FEW, MANY = "dictionaries.training.steps=2", "dictionaries.training.steps=2000"


def test_the_choice_shapes_the_units_as_if_the_study_had_named_it(here):
    auto = opened(here, MANY)
    named = open_study(here / "study.yaml", ["dictionaries.source=store", MANY], out=here / "run")
    assert auto.choice.source == "store" and auto.study == named.study and auto.units == named.units
    assert "dictionaries.source: auto is store" in auto.notes[-1] and named.choice is None
    assert any(unit.phase.name == "stream" for unit in opened(here, FEW).units)
    assert opened(here, MANY, "storage.quota=1MB").choice.source == "stream", "no room for a store"


def test_a_run_keeps_to_its_choice(here, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the choice has been made")

    assert opened(here, FEW).choice.source == "stream", "a look decides nothing"
    first = opened(here, MANY)
    execute(first, ["prompts[country_capital]"])
    assert read_json(here / "run" / "resolved.json")["dictionaries.source"]["source"] == "store"
    monkeypatch.setattr(source_choice, "decide", refuse)
    again = opened(here, FEW)
    assert again.choice.source == "store" and again.notes[-1].count("as this run began") == 1
    source_choice.record(here / "run", again.choice)
    assert opened(here, FEW).notes == again.notes
    with pytest.raises(AssertionError):
        opened(here, FEW, out="another")
