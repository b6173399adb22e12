"""Checkpoints come back exactly, or not at all."""

import math

import pytest
import torch

from mechstudy.core.errors import MechstudyError
from mechstudy.store.checkpoint import load_checkpoint, save_checkpoint


def saved(path):
    torch.manual_seed(0)
    tensors = {
        "w": torch.randn(3, 4),
        "half": torch.randn(5).bfloat16(),
        "rng": torch.get_rng_state(),
        "step": torch.tensor(7),
        "none": torch.empty(0, 3),
        "mask": torch.tensor([True, False]),
    }
    state = {"step": 7, "loss": math.nan, "best": math.inf, "name": "träin", "seed": 2**62 + 1}
    save_checkpoint(path, tensors, state)
    return tensors, state


def test_tensors_and_state_come_back_exactly(tmp_path):
    path = tmp_path / "deep" / "c.safetensors"
    tensors, state = saved(path)
    loaded, loaded_state = load_checkpoint(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor)
    assert math.isnan(loaded_state.pop("loss")) and loaded_state == {k: state[k] for k in loaded_state}
    assert [p.name for p in path.parent.iterdir()] == ["c.safetensors"]


def test_views_and_tensors_that_share_memory_are_stored_separately(tmp_path):
    base = torch.arange(6.0)
    tensors = {"a": base, "b": base, "t": base.view(2, 3).T, "row": base.view(2, 3)[1]}
    save_checkpoint(tmp_path / "c", tensors, {})
    loaded, _ = load_checkpoint(tmp_path / "c")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_loaded_tensors_do_not_change_with_the_file(tmp_path):
    save_checkpoint(tmp_path / "c", {"w": torch.zeros(8)}, {})
    loaded, _ = load_checkpoint(tmp_path / "c")
    (tmp_path / "c").write_bytes(b"\xff" * (tmp_path / "c").stat().st_size)
    assert torch.equal(loaded["w"], torch.zeros(8))


def test_no_checkpoint_is_none(tmp_path):
    assert load_checkpoint(tmp_path / "c") is None


def test_a_new_checkpoint_replaces_the_old_whole(tmp_path):
    saved(tmp_path / "c")
    save_checkpoint(tmp_path / "c", {"w": torch.ones(1)}, {"step": 8})
    tensors, state = load_checkpoint(tmp_path / "c")
    assert list(tensors) == ["w"] and state == {"step": 8}


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, -1])
def test_a_truncated_checkpoint_is_refused_by_name(tmp_path, keep):
    path = tmp_path / "c"
    saved(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(MechstudyError, match="c: the checkpoint is damaged"):
        load_checkpoint(path)


def test_any_flipped_byte_is_refused(tmp_path):
    path = tmp_path / "c"
    save_checkpoint(path, {"w": torch.arange(4.0), "v": torch.ones(2)}, {"step": 12})
    whole = path.read_bytes()
    expected, _ = load_checkpoint(path)
    for position in range(len(whole)):
        broken = bytearray(whole)
        broken[position] ^= 1
        path.write_bytes(bytes(broken))
        try:
            loaded, state = load_checkpoint(path)
        except MechstudyError:
            continue
        # Only the padding of the header may change unseen: what comes back is still what was saved.
        assert state == {"step": 12} and loaded.keys() == expected.keys(), position
        assert all(torch.equal(loaded[n], expected[n]) for n in expected), position


def test_another_safetensors_file_is_no_checkpoint(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.ones(1)}, tmp_path / "c")
    with pytest.raises(MechstudyError, match="not a checkpoint of this version"):
        load_checkpoint(tmp_path / "c")


def test_a_state_json_cannot_hold_is_refused_before_the_old_one_is_touched(tmp_path):
    saved(tmp_path / "c")
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "c", {}, {"rng": object()})
    assert load_checkpoint(tmp_path / "c")[1]["step"] == 7


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    saved(tmp_path / "c")

    def full(*_args, **_kwargs):
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(MechstudyError, match="the disk is full"):
        save_checkpoint(tmp_path / "c", {"w": torch.ones(1)}, {"step": 8})
    assert load_checkpoint(tmp_path / "c")[1]["step"] == 7
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
