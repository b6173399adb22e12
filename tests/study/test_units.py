"""The DAG of a study: what depends on what, and what a change reruns."""

from pathlib import Path

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.models.shapes import ModelShapes, shapes_of
from mechstudy.store.artifacts import artifact_id
from mechstudy.study.study import load_study
from mechstudy.study.units import build_units

EXAMPLES = Path(__file__).parents[2] / "examples"
SHAPES: ModelShapes = shapes_of(
    {
        "model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    }
)  # fmt: skip


SAE = "dictionaries.architecture.kind=sae"


def ids(*overrides: str, fingerprint: str = "f", study: str = "demo.yaml") -> dict[str, str]:
    loaded, _ = load_study(EXAMPLES / study, overrides)
    found: dict[str, str] = {}
    for unit in build_units(loaded, SHAPES, fingerprint, EXAMPLES):
        inputs = {source: found[source] for source in unit.sources}
        found[unit.name] = artifact_id(unit.phase.name, unit.phase.version, unit.canonical_spec, inputs)
    return found


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before | after if before.get(name) != after.get(name)}


def phases(names: set[str]) -> set[str]:
    return {name.split("[")[0] for name in names}


def test_every_example_makes_a_dag_with_inputs_before_consumers():
    for path in sorted(EXAMPLES.glob("*.yaml")):
        assert "report" in ids(study=path.name)


def test_interventions_rerun_interventions_and_report_alone():
    assert phases(changed(ids(), ids("interventions.n_samples=7"))) == {"intervene", "report"}


def test_how_it_runs_changes_no_id():
    how = ("compute.threads=1", "compute.batch_tokens=64", "storage.quota=50GB", "compute.stage=off")
    assert changed(ids(), ids(*how)) == set()
    levers = ("compute.checkpointing=on", "compute.tf32=true", "compute.compile=on", "compute.stripe=8")
    assert changed(ids(), ids(*levers)) == set()
    assert changed(ids(), ids("storage.activations=keep")) == set()
    assert changed(ids(), ids("storage.retain={capture: keep, corpus: keep}")) == set()


def test_other_weights_under_the_same_name_are_another_study():
    assert changed(ids(), ids(fingerprint="g")) == set(ids())


def test_a_dictionary_recipe_leaves_prompts_corpus_and_capture_alone():
    after = changed(ids(), ids("dictionaries.training.steps=7"))
    assert phases(after) == {"train", "attribute", "features", "intervene", "verdict", "report"}


def test_a_larger_test_split_leaves_corpus_and_dictionaries_alone():
    after = changed(ids(), ids("behaviours.0.n_test=50"))
    assert not phases(after) & {"model", "corpus", "train"}
    assert {n for n in after if "indirect_object" in n} == {"verdict[indirect_object_identification]"}  # on all prompts


def test_another_seed_reruns_all_but_the_model():
    assert set(ids()) - changed(ids(), ids("seed=1")) <= {"model"} | {n for n in ids() if n.startswith("capture")}


@pytest.mark.parametrize("field", ["dictionaries.layers=28-31", "capture.layers=40"])
def test_a_layer_that_does_not_exist_is_named_with_its_field(field):
    with pytest.raises(MechstudyError, match=r"layer (30|40) does not exist") as caught:
        ids(field)
    assert caught.value.where == field.split("=")[0]


def test_layers_are_captured_in_groups():
    names = ids("dictionaries.layers=0-24", "dictionaries.layers_per_pass=10")
    assert {"capture[corpus:0-9]", "capture[corpus:10-19]", "capture[corpus:20-24]"} <= set(names)


def test_a_misspelt_behaviour_is_refused_with_the_nearest_name():
    with pytest.raises(MechstudyError, match="subject_verb_agrement") as caught:
        ids("behaviours=[{name: subject_verb_agrement}]")
    assert "did you mean 'subject_verb_agreement'" in str(caught.value)


GRAPHS = {"attribute", "features", "intervene", "verdict"}


ACTS = "dictionaries.site=mlp_act"  # which no node of a graph stands for


def test_saes_of_a_site_without_nodes_have_all_but_graphs_and_what_stands_on_them():
    with_graphs, without = ids("dictionaries.layers=[7]", SAE), ids("dictionaries.layers=[7]", SAE, ACTS)
    assert phases(set(with_graphs)) - phases(set(without)) == GRAPHS
    assert set(without) == {name for name in with_graphs if name.split("[")[0] not in GRAPHS}


def test_dictionaries_alone_need_no_behaviour_and_are_the_same_ones():
    study, alone = ids("dictionaries.layers=[7]", SAE), ids("dictionaries.layers=[7]", SAE, "behaviours=[]")
    assert set(alone) == {"model", "corpus", "capture[corpus:7]", "train[7]", "report"}
    assert all(alone[name] == study[name] for name in alone if name != "report")


@pytest.mark.parametrize("fewer", [("behaviours=[]",), (SAE, ACTS)])
def test_only_graphs_need_a_model_in_float32(fewer):
    assert "report" in ids("model.dtype=bfloat16", *fewer)
    with pytest.raises(MechstudyError, match="graphs need fp32 weights"):
        ids("model.dtype=bfloat16", SAE)


def test_neurons_need_no_dictionaries_and_nothing_is_trained():
    planned = phases(set(ids("attribution.basis=neurons")))
    assert not planned & {"train", "stream", "published"} and planned >= GRAPHS
