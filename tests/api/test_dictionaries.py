import pytest
import torch

import mechstudy as ms
from mechstudy.dictionaries.formats.circuit_tracer import write_set
from tests.support.api_world import error_of
from tests.support.interventions_world import transcoder


@pytest.fixture
def folders(tmp_path):
    for layer in (3, 1):
        transcoder(8, layer).save(tmp_path / "set" / f"layer{layer}")
    return tmp_path / "set"


def test_a_folder_of_dictionaries_loads_by_layer(folders):
    dicts = ms.load_dictionaries(folders)
    assert list(dicts) == [1, 3]
    torch.testing.assert_close(dicts[3].W_enc, transcoder(8, 3).W_enc, check_dtype=False)


def test_a_single_folder_a_list_and_a_mapping_load_alike(folders):
    one = ms.load_dictionaries(folders / "layer3")
    listed = ms.load_dictionaries([str(folders / "layer3"), transcoder(8, 1)])
    named = ms.load_dictionaries({3: folders / "layer3", 1: transcoder(8, 1)})
    assert (list(one), list(listed), list(named)) == ([3], [1, 3], [1, 3])


def test_a_transcoder_set_of_files_loads_by_layer(tmp_path):
    write_set([transcoder(8, 0), transcoder(8, 1)], tmp_path, model_name="org/model")
    assert list(ms.load_dictionaries(tmp_path)) == [0, 1]


def test_a_mapping_cannot_give_a_file_another_layer_than_its_own(tmp_path, folders):
    write_set([transcoder(8, 0), transcoder(8, 1)], tmp_path / "tracer", model_name="org/model")
    for place in (tmp_path / "tracer" / "layer_1.safetensors", folders / "layer1", transcoder(8, 1)):
        with pytest.raises(ms.MechstudyError, match="of layer 1, and is given as layer 0's"):
            ms.load_dictionaries({0: place})


def test_a_number_in_a_file_name_that_is_no_layer_gives_way_to_the_mapping(tmp_path):
    write_set([transcoder(8, 0)], tmp_path, model_name="org/model")
    other = (tmp_path / "layer_0.safetensors").rename(tmp_path / "width_16k.safetensors")
    assert ms.load_dictionaries({2: other})[2].cfg.site_in == "mlp_in.2"


def test_the_frame_has_a_row_for_each(folders):
    frame = ms.load_dictionaries(folders).frame
    assert frame["layer"].to_list() == [1, 3]
    assert frame["d_sae"].to_list() == [40, 40]


def test_a_layer_without_dictionary_is_named_with_those_there_are(folders):
    dicts = ms.load_dictionaries(folders)
    assert error_of(lambda: dicts[2]) == "there is no dictionary of layer 2\n  layers: 1, 3"
    assert 2 not in dicts
    assert dicts.get(2) is None


def test_two_of_one_layer_are_refused(folders):
    message = error_of(lambda: ms.load_dictionaries([folders / "layer1", transcoder(8, 1)]))
    assert message.endswith("one dictionary for each layer") and "two dictionaries read layer 1" in message


def test_a_dictionary_that_names_no_layer_asks_for_it(tmp_path):
    sae = ms.train(torch.randn(64, 8), ms.DictionaryConfig(kind="sae", k=2),
                   ms.TrainConfig(steps=2, batch_size=32, precision="float32"))  # fmt: skip
    sae.save(tmp_path / "sae")
    assert "load_dictionaries({12: ...})" in error_of(lambda: ms.load_dictionaries(tmp_path / "sae"))
    assert list(ms.load_dictionaries({12: tmp_path / "sae"})) == [12]


@pytest.mark.parametrize(("name", "what"), [("nothing", "no such file or folder"), (".", "no dictionary here")])
def test_where_there_is_none_the_error_says_so(tmp_path, monkeypatch, name, what):
    monkeypatch.chdir(tmp_path)
    text = error_of(lambda: ms.load_dictionaries(name))
    assert what in text and "fix:" in text


@pytest.mark.parametrize("given", [None, 5, [None], {0: 5}])
def test_what_is_no_place_of_a_dictionary_is_refused_with_what_is(given):
    assert "a folder, a file or hf:" in error_of(lambda: ms.load_dictionaries(given))
