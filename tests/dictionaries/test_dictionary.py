"""The Dictionary: encoding, sinks, and its files."""

import json

import pytest
import torch

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.formats.hooks import hook_name, site_name
from tests.support.dictionary_worlds import D_IN, F, K, random_dictionary, rows

FORMS = [(kind, act) for kind in ("sae", "transcoder", "skip_transcoder") for act in ("topk", "jumprelu")]


def test_topk_keeps_the_k_largest_positive_pre_activations():
    dictionary = random_dictionary()
    x = rows()
    pre, f = dictionary.pre_activations(x), dictionary.encode(x)
    bound = pre.topk(K, dim=1).values[:, -1:]
    torch.testing.assert_close(f, torch.where(pre >= bound, pre.relu(), torch.zeros_like(pre)))


def test_jumprelu_keeps_what_exceeds_its_threshold_and_zero():
    dictionary = random_dictionary(activation="jumprelu")
    dictionary.threshold.data[:4] = -1.0
    pre, f = dictionary.pre_activations(rows()), dictionary.encode(rows())
    keep = (pre > dictionary.threshold) & (pre > 0)
    torch.testing.assert_close(f, pre * keep)
    assert (f >= 0).all()


@pytest.mark.parametrize("kind,activation", FORMS)
def test_sparse_encoding_active_list_and_dense_encoding_agree(kind, activation):
    dictionary = random_dictionary(kind, activation, max_input_norm=3.0)
    x = rows()
    f = dictionary.encode(x)
    values, indices = dictionary.encode_sparse(x)
    torch.testing.assert_close(torch.zeros_like(f).scatter_add_(1, indices, values), f)
    positions, features, active = dictionary.active(x)
    torch.testing.assert_close(f[positions, features], active)
    assert len(active) == int((f > 0).sum()) and (positions.diff() >= 0).all()


@pytest.mark.parametrize("kind,activation", FORMS)
def test_reconstruction_is_decoded_features_plus_skip_for_any_shape(kind, activation):
    dictionary = random_dictionary(kind, activation)
    x = rows().view(4, 10, D_IN)
    expected = dictionary.encode(x) @ dictionary.W_dec + dictionary.b_dec
    if kind == "skip_transcoder":
        expected = expected + x @ dictionary.W_skip.T
    torch.testing.assert_close(dictionary.reconstruct(x), expected)
    torch.testing.assert_close(dictionary(x)[2], dictionary.reconstruct(x[2]))


@pytest.mark.parametrize("kind,activation", FORMS)
def test_sinks_have_no_features_and_others_are_untouched(kind, activation):
    with_limit = random_dictionary(kind, activation, max_input_norm=10.0)
    without = random_dictionary(kind, activation)
    x = rows()
    x[7] *= 100
    f = with_limit.encode(x)
    assert f[7].abs().sum() == 0 and without.encode(x)[7].abs().sum() > 0
    others = torch.arange(len(x)) != 7
    torch.testing.assert_close(f[others], without.encode(x)[others])
    assert 7 not in with_limit.active(x)[0] and with_limit.encode_sparse(x)[0][7].sum() == 0
    rest = with_limit.reconstruct(x)[7] - with_limit.b_dec
    expected = x[7] @ with_limit.W_skip.T if kind == "skip_transcoder" else torch.zeros_like(rest)
    torch.testing.assert_close(rest, expected)


def test_gradients_flow_to_inputs_and_not_to_weights():
    dictionary = random_dictionary("skip_transcoder")
    x = rows().requires_grad_()
    dictionary.reconstruct(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in dictionary.parameters())


@pytest.mark.parametrize("kind,activation", FORMS)
def test_saved_and_loaded_is_the_same_dictionary(kind, activation, tmp_path):
    dictionary = random_dictionary(kind, activation, dtype=torch.float32, max_input_norm=9.5, model_name="tiny")
    dictionary.save(tmp_path)
    loaded = Dictionary.load(tmp_path)
    assert loaded.cfg == dictionary.cfg
    for name, tensor in dictionary.named_parameters():
        assert torch.equal(tensor, dict(loaded.named_parameters())[name])
    first = (tmp_path / "sae_weights.safetensors").read_bytes(), (tmp_path / "cfg.json").read_bytes()
    loaded.save(tmp_path / "again")
    again = tmp_path / "again"
    assert first == ((again / "sae_weights.safetensors").read_bytes(), (again / "cfg.json").read_bytes())
    assert Dictionary.load(tmp_path, dtype=torch.float64).W_enc.dtype == torch.float64


@pytest.mark.parametrize(
    "kind,activation,architecture",
    [
        ("sae", "topk", "topk"),
        ("sae", "jumprelu", "jumprelu"),
        ("transcoder", "topk", "topk_transcoder"),
        ("transcoder", "jumprelu", "jumprelu_transcoder"),
        ("skip_transcoder", "topk", "topk_skip_transcoder"),
        ("skip_transcoder", "jumprelu", "jumprelu_skip_transcoder"),
    ],
)
def test_files_carry_saelens_names(kind, activation, architecture, tmp_path):
    random_dictionary(kind, activation, dtype=torch.float32).save(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert cfg["architecture"] == architecture
    assert cfg["apply_b_dec_to_input"] is False and cfg["normalize_activations"] == "none"
    assert cfg["metadata"]["sae_lens_version"].startswith("6.")
    assert cfg["metadata"]["hook_name"] == ("blocks.3.hook_mlp_out" if kind == "sae" else "blocks.3.mlp.hook_in")
    assert ("d_out" in cfg) == (kind != "sae")


@pytest.mark.parametrize("kind", ["transcoder", "skip_transcoder"])
def test_topk_transcoders_of_before_they_had_names_of_their_own_are_read(kind, tmp_path):
    dictionary = random_dictionary(kind, "topk")
    dictionary.save(tmp_path)
    change_cfg(architecture=kind)(tmp_path)
    torch.testing.assert_close(Dictionary.load(tmp_path).reconstruct(rows()), dictionary.reconstruct(rows()))
    change_cfg(architecture=f"jumprelu_{kind}")(tmp_path)
    with pytest.raises(MechstudyError, match="contradict each other"):
        Dictionary.load(tmp_path)


def test_metadata_that_is_not_json_is_refused_before_writing(tmp_path):
    with pytest.raises(MechstudyError, match="metadata cannot be written"):
        random_dictionary(loss=float("nan")).save(tmp_path / "sae")
    assert not (tmp_path / "sae").exists()


def test_site_names_survive_the_translation():
    for site in ("resid_pre.0", "mlp_in.12", "mlp_out.3", "attn_out.7", "mlp_act.1"):
        assert site_name(hook_name(site)) == site
    assert site_name("blocks.3.attn.hook_z") == "blocks.3.attn.hook_z"


def foreign(folder, content, **changes):
    """A file as SAELens writes it."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    tensors = {"W_enc": draw(D_IN, F), "b_enc": draw(F), "W_dec": draw(F, D_IN), "b_dec": draw(D_IN)} | changes
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(tensors, folder / "sae_weights.safetensors")
    base = {"d_in": D_IN, "d_sae": F, "metadata": {"hook_name": "blocks.2.hook_resid_post", "model_name": "gpt2"}}
    (folder / "cfg.json").write_text(json.dumps(base | content))
    return tensors


@pytest.mark.parametrize("apply_b_dec", [True, False])
@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu"])
def test_saelens_files_compute_what_saelens_computes(architecture, apply_b_dec, tmp_path):
    threshold = torch.rand(F) if architecture == "jumprelu" else None
    content = {"architecture": architecture, "apply_b_dec_to_input": apply_b_dec, "k": K}
    t = foreign(tmp_path, content, threshold=threshold)
    x = rows().float()
    pre = (x - t["b_dec"] * apply_b_dec) @ t["W_enc"] + t["b_enc"]
    if architecture == "topk":
        f = torch.zeros_like(pre).scatter(1, pre.topk(K).indices, pre.topk(K).values.relu())
    else:
        f = pre.relu() * (pre > (0.0 if threshold is None else threshold))
    loaded = Dictionary.load(tmp_path)
    torch.testing.assert_close(loaded.encode(x), f)
    torch.testing.assert_close(loaded.reconstruct(x), f @ t["W_dec"] + t["b_dec"])
    assert loaded.cfg.site_in == loaded.cfg.site_out == "resid_post.2"
    assert loaded.metadata["model_name"] == "gpt2"


def test_decoder_norms_of_a_rescaled_topk_file_are_folded(tmp_path):
    t = foreign(tmp_path, {"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True})
    norms = t["W_dec"].norm(dim=1)
    x = rows().float()
    pre = ((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) * norms
    f = torch.zeros_like(pre).scatter(1, pre.topk(K).indices, pre.topk(K).values.relu())
    loaded = Dictionary.load(tmp_path)
    torch.testing.assert_close(loaded.reconstruct(x), (f / norms) @ t["W_dec"] + t["b_dec"])


def test_topk_of_saelens_before_version_six_is_known(tmp_path):
    foreign(tmp_path, {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}, "hook_name": "x"})
    loaded = Dictionary.load(tmp_path)
    assert loaded.cfg.activation == "topk" and loaded.cfg.k == 4


def cut_weights(folder):
    path = folder / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def change_cfg(**changes):
    def change(folder):
        content = json.loads((folder / "cfg.json").read_text())
        (folder / "cfg.json").write_text(json.dumps(content | changes))

    return change


@pytest.mark.parametrize(
    "damage,message",
    [
        (lambda folder: (folder / "cfg.json").unlink(), "cfg.json is missing"),
        (lambda folder: (folder / "cfg.json").write_text("{"), "cannot be read as JSON"),
        (lambda folder: (folder / "sae_weights.safetensors").unlink(), "sae_weights.safetensors is missing"),
        (cut_weights, "truncated or damaged"),
        (lambda folder: foreign(folder, {}, W_dec=None), "tensor W_dec is missing"),
        (lambda folder: foreign(folder, {}, b_enc=torch.zeros(F + 1)), "tensor b_enc has the wrong shape"),
        (change_cfg(architecture="temporal"), "architecture 'temporal' cannot be used"),
        (change_cfg(architecture="gated"), "tensor b_gate is missing"),
        (change_cfg(architecture="jumprelu"), "tensor threshold is missing"),
        (change_cfg(architecture="topk", k=F + 1), "k must be between"),
        (change_cfg(normalize_activations="layer_norm"), "layer_norm"),
        (change_cfg(d_sae=0), "d_sae must be a positive integer"),
        (change_cfg(metadata={"mechstudy": {"format": 99}}), "format 99"),
    ],
)
def test_broken_folders_are_named(damage, message, tmp_path):
    foreign(tmp_path, {"architecture": "standard"})
    damage(tmp_path)
    with pytest.raises(MechstudyError, match=message) as caught:
        Dictionary.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_activations_of_another_width_are_refused():
    with pytest.raises(MechstudyError, match="7 wide, but this dictionary reads 6"):
        random_dictionary().encode(torch.zeros(2, 7))
