"""Sizes before anything is written."""

import pytest
import torch
from safetensors.torch import save_file

from mechstudy.core.sizes import human, safetensors_bytes


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0 B"), (999, "999 B"), (1250, "1.25 kB"), (999_499, "999 kB"), (999_900, "1 MB"), (3.4e15, "3.4e+03 TB")],
)
def test_bytes_as_text(n, text):
    assert human(n) == text


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "float32"), (torch.bfloat16, "bfloat16")])
@pytest.mark.parametrize("shapes", [{"tokens": (1300, 128)}, {"W_enc": (7, 11), "b": (3,), "W_dec": (11, 7)}])
def test_a_safetensors_file_has_exactly_the_predicted_bytes(tmp_path, shapes, dtype, name):
    save_file({key: torch.zeros(shape, dtype=dtype) for key, shape in shapes.items()}, tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors").stat().st_size == safetensors_bytes(shapes, name)
