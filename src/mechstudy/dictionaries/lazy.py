"""A dictionary whose matrices stay in their file: read when they are used, and only the rows that are asked for."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.arrays import Array
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.formats.recognise import Source, source_of
from mechstudy.dictionaries.formats.registry import local_path, read
from mechstudy.dictionaries.stored import AnyPath, DictionaryMeta

_SMALL = ("b_enc", "b_dec", "threshold", "W_skip")


class LazyDictionary(Dictionary):
    """A `Dictionary` of which W_enc and W_dec are not held in memory.

    Each use of a matrix maps its file, and the mapping ends with the tensor: what has been read does not accumulate.
    Where a reader has to compute a matrix (a folded norm, a scale; ``.npz``), each use reads the whole file.
    ``input_scale`` [d_in], if any, multiplies what the encoder reads (see `fitted`). Results equal those of
    `Dictionary`. The file must stay as it is while the dictionary is used.
    """

    input_scale: Tensor | None

    def __init__(
        self, place: AnyPath | Source, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
    ) -> None:
        """Read everything but the two matrices.

        Args:
            place: as `formats.registry.read` takes it.
            device: where rows and results go.
            dtype: of them; None keeps the file's.

        Raises:
            MechstudyError: as `formats.registry.read`. Values of the matrices are checked when they are used.
        """
        nn.Module.__init__(self)
        self.source = place if isinstance(place, Source) else source_of(local_path(place))
        stored = read(self.source, mapped=True)
        self.cfg, self._files, self.in_file = stored.cfg, dict(stored.files), stored.in_file
        for name in _SMALL:
            tensor = getattr(stored, name)
            parameter = None if tensor is None else nn.Parameter(tensor.detach().clone(), requires_grad=False)
            self.register_parameter(name, parameter)
        self.register_parameter("input_scale", None)
        self.to(device=device, dtype=dtype)

    def reading(
        self, cfg: DictionaryMeta, scale_D: Float[Tensor, " d_in"], tensors: Mapping[str, Tensor | None]
    ) -> LazyDictionary:
        """A copy with this config and these small tensors whose encoder reads x * scale (see `fitted`)."""
        copied = copy.deepcopy(self)
        copied.cfg = cfg
        for name, tensor in ({"input_scale": scale_D} | dict(tensors)).items():
            parameter = None if tensor is None else nn.Parameter(tensor.to(self.b_enc), requires_grad=False)
            setattr(copied, name, parameter)
        return copied

    @property
    def W_enc(self) -> Tensor:  # type: ignore[override]  # an attribute of Dictionary, read-only here
        """[d_in, F], mapped from the file, or a copy where device or dtype differ."""
        W_enc = self._matrix("W_enc").to(self.b_enc)
        return W_enc if self.input_scale is None else W_enc * self.input_scale[:, None]

    @property
    def W_dec(self) -> Tensor:  # type: ignore[override]  # as W_enc
        """[F, d_out], mapped from the file, or a copy where device or dtype differ."""
        return self._matrix("W_dec").to(self.b_enc)

    def encoder_rows(self, features: Tensor | Sequence[int]) -> Float[Tensor, "n d_in"]:
        """As `Dictionary.encoder_rows`."""
        rows = self._finite(_rows(self._matrix("W_enc").T, features), "W_enc")
        return rows if self.input_scale is None else rows * self.input_scale

    def decoder_rows(self, features: Tensor | Sequence[int]) -> Float[Tensor, "n d_out"]:
        """As `Dictionary.decoder_rows`."""
        return self._finite(_rows(self._matrix("W_dec"), features), "W_dec")

    def pre_activations(self, x: Array) -> Float[Tensor, "*rows f"]:
        """As `Dictionary.pre_activations`.

        Raises:
            MechstudyError: rows of another width, or of integers; or the encoder holds values that are not finite.
        """
        rows = self._rows(x)
        scaled = rows if self.input_scale is None else rows * self.input_scale
        pre = scaled @ self._matrix("W_enc").to(self.b_enc) + self.b_enc
        if bool(rows.isfinite().all()):
            self._finite(pre, "W_enc")
        return pre

    @property
    def _like(self) -> Tensor:
        return self.b_enc

    def _matrix(self, name: str) -> Tensor:
        if name in self._files:
            return self._files[name].tensor()
        tensor: Tensor = getattr(read(self.source, mapped=True), name)
        return tensor

    def _finite(self, values: Tensor, name: str) -> Tensor:
        if not bool(values.isfinite().all()):
            raise MechstudyError(
                f"tensor {name} holds values that are no finite numbers",
                where=str(self.source),
                fix="an earlier checkpoint: this training has diverged",
            )
        return values.to(self.b_enc)


def _rows(matrix: Tensor, features: Tensor | Sequence[int]) -> Tensor:
    """Rows of a matrix that may be mapped from a file, copied: the mapping must not outlive its use."""
    index = torch.as_tensor(features, dtype=torch.int64, device=matrix.device)
    return matrix[index].clone()
