"""Normalisation, and what it leaves behind in the weights."""

import pytest
import torch

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.evaluation.reconstruction import VarianceSums, fvu
from mechstudy.dictionaries.training.initialise import Normalisation, initial_weights, measure
from mechstudy.dictionaries.weights import Weights


def rows(n: int, d: int, offset: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(d, generator=generator) + 0.1
    return torch.randn(n, d, generator=generator) * scale + offset * torch.randn(d, generator=generator)


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e4])
def test_fvu_of_the_mean_is_one_whatever_the_offsets(offset):
    y = rows(500, 6, offset).double()
    assert fvu(y, y.mean(0).expand_as(y)) == pytest.approx(1.0, abs=1e-9)
    assert fvu(y, y) == 0.0


def test_fvu_of_half_the_deviation_is_a_quarter():
    y = rows(500, 6, 3.0).double()
    assert fvu(y, y.mean(0) + 0.5 * (y - y.mean(0))) == pytest.approx(0.25)


def test_fvu_is_pooled_over_batches_not_averaged():
    y, y_hat = rows(300, 4, 2.0).double(), rows(300, 4, 2.0, seed=1).double()
    sums = VarianceSums()
    for part in (slice(0, 10), slice(10, 250), slice(250, 300)):
        sums.add(y[part], y_hat[part])
    assert sums.fvu() == pytest.approx(fvu(y, y_hat), rel=1e-12)


def test_fvu_of_equal_rows_is_an_error():
    with pytest.raises(MechstudyError, match="no variance"):
        fvu(torch.ones(5, 3), torch.zeros(5, 3))


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_normalised_rows_have_mean_zero_and_mean_square_norm_d(offset):
    x, y = rows(4096, 12, offset), rows(4096, 8, offset, seed=1)
    batches = [(x[i : i + 512], y[i : i + 512]) for i in range(0, 4096, 512)]
    moments = measure(batches, n_rows=4096, with_cross=False)
    x_n, y_n = moments.normalisation.apply(x, y)
    for rows_n, d in ((x_n, 12), (y_n, 8)):
        assert rows_n.mean(0).abs().max() < 1e-4
        assert float(rows_n.square().sum(1).mean()) == pytest.approx(d, rel=1e-4)


def test_normalisation_keeps_x_and_y_one_tensor_for_an_sae():
    x = rows(64, 4, 1.0)
    moments = measure([(x, x)], n_rows=64, with_cross=False)
    x_n, y_n = moments.normalisation.apply(x, x)
    assert x_n is y_n


def test_folding_the_normalisation_leaves_the_reconstruction_equal():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, n_features = 30 * draw(50, 7) + 100, 20
    w = Weights(draw(n_features, 7), draw(n_features), draw(n_features, 5), draw(5), draw(5, 7))
    norm = Normalisation(draw(7) * 100, 31.0, draw(5) * 10, 0.02)
    x_n = (x - norm.mean_in) / norm.scale_in
    f_n = (x_n @ w.enc.T + w.b_enc).relu()
    expected = norm.scale_out * (f_n @ w.dec + w.b_dec + x_n @ w.skip.T) + norm.mean_out
    folded = norm.fold(w)
    f = (x @ folded.enc.T + folded.b_enc).relu()
    torch.testing.assert_close(f @ folded.dec + folded.b_dec + x @ folded.skip.T, expected)
    torch.testing.assert_close(f, norm.scale_out * f_n)
    torch.testing.assert_close(folded.dec, w.dec)


def test_encoder_starts_as_the_decoder_without_sharing_its_storage():
    x = rows(256, 6, 1.0)
    moments = measure([(x, x)], n_rows=256, with_cross=False)
    w = initial_weights("sae", 24, 6, 6, moments, torch.Generator().manual_seed(0))
    torch.testing.assert_close(w.enc, w.dec)
    assert w.enc.data_ptr() != w.dec.data_ptr()
    torch.testing.assert_close(w.dec.norm(dim=1), torch.ones(24))
    assert w.b_dec.abs().max() == 0


def test_skip_path_starts_at_the_linear_regression():
    x = rows(20_000, 6, 4.0)
    matrix = rows(6, 5, 0.0, seed=7)
    y = x @ matrix + 3.0 + 0.01 * rows(20_000, 5, 0.0, seed=8)
    moments = measure([(x, y)], n_rows=20_000, with_cross=True)
    w = initial_weights("skip_transcoder", 24, 6, 5, moments, torch.Generator().manual_seed(0))
    folded = moments.normalisation.fold(Weights(w.enc, w.b_enc, torch.zeros_like(w.dec), w.b_dec, w.skip))
    assert fvu(y, x @ folded.skip.T + folded.b_dec) < 1e-3


def test_equal_rows_are_an_error():
    with pytest.raises(MechstudyError, match="all input rows are equal"):
        measure([(torch.ones(10, 3), torch.ones(10, 3))], n_rows=10, with_cross=False)
