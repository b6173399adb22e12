"""A prompt as a linear model: per layer the frozen maps, and what writes into the stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from mechstudy.circuits.active_nodes import ActiveNodes
from mechstudy.circuits.live_attention import LiveScores
from mechstudy.models.architectures import AttentionWeights, LinearNorm
from mechstudy.models.linear_mlp import LinearMlp


@dataclass(frozen=True)
class FrozenMlp:
    """An MLP and the norm after it, linear at the prompt: from ``mlp_in`` to ``mlp_out``."""

    mlp: LinearMlp
    norm_post: LinearNorm | None

    def forward(self, x_TD: Tensor) -> Tensor:
        """``mlp_out``, affine in ``mlp_in``."""
        y = self.mlp.forward(x_TD)
        return y if self.norm_post is None else self.norm_post.forward(y)

    def backward(self, g_RTD: Tensor) -> Tensor:
        """Gradient at ``mlp_out`` -> gradient at ``mlp_in``."""
        return self.mlp.backward(g_RTD if self.norm_post is None else self.norm_post.backward(g_RTD))

    def linear(self, x_TD: Tensor) -> Tensor:
        """`forward` without constants."""
        y = self.mlp.linear(x_TD)
        return y if self.norm_post is None else self.norm_post.linear(y)

    def at(self, where: Tensor | slice) -> FrozenMlp:
        """It at some positions."""
        return FrozenMlp(self.mlp.at(where), None if self.norm_post is None else self.norm_post.at(where))


@dataclass(frozen=True)
class Skip:
    """A skip transcoder's linear path from ``mlp_in`` to ``mlp_out``, at the positions where it applies."""

    matrix_DD: Tensor
    valid_T: Tensor

    def forward(self, x_TD: Tensor) -> Tensor:
        """What it writes."""
        return (x_TD @ self.matrix_DD.T) * self.valid_T[:, None]

    def backward(self, g_RTD: Tensor) -> Tensor:
        """Gradient at ``mlp_out`` -> gradient at ``mlp_in``."""
        return (g_RTD * self.valid_T[:, None]) @ self.matrix_DD

    linear = forward

    def at(self, where: Tensor | slice) -> Skip:
        """It at some positions."""
        return Skip(self.matrix_DD, self.valid_T[where])


@dataclass(frozen=True)
class LinearLayer:
    """The affine maps and the sources of one layer. T positions, D model width.

    ``nodes`` stand for what the site of kind ``writes`` holds, and read ``read_TD`` at the site of kind ``reads``;
    ``error_TD`` is what they leave unexplained there: all of it where the layer has no nodes and its MLP is an error,
    or where a dictionary does not apply (`applies_at`); None where there is nothing to explain. What arrives at
    ``writes`` from above ends there, and goes on only through ``skip``. ``below`` are lower layers whose nodes write at
    this layer's ``mlp_out`` (cross-layer transcoders). ``mlp`` is the whole MLP as a linear map, for what passes it.

    ``bias_TD`` are constants written at ``writes``, ``mlp_bias_TD`` and ``attention_bias_TD`` those of the linear MLP
    and of attention.

    A layer of a difference between two runs (`tangents`) has the same form: ``scores`` are there, so that patterns
    respond, norms and MLPs are derivatives at a point between the runs, sources are differences, and nothing is
    constant.
    """

    pattern_QTS: Tensor
    attention: AttentionWeights
    norm_attn: LinearNorm
    norm_attn_post: LinearNorm | None
    norm_mlp: LinearNorm
    parallel: bool
    mlp_in_TD: Tensor
    attention_bias_TD: Tensor | None
    writes: str = "mlp_out"
    reads: str = "mlp_in"
    nodes: ActiveNodes | None = None
    read_TD: Tensor | None = None
    error_TD: Tensor | None = None
    bias_TD: Tensor | None = None
    skip: Skip | None = None
    mlp: FrozenMlp | None = None
    mlp_bias_TD: Tensor | None = None
    below: Mapping[int, ActiveNodes] = field(default_factory=dict)
    scores: LiveScores | None = None

    @property
    def is_replaced(self) -> bool:
        """Whether what arrives at ``writes`` ends there."""
        return self.nodes is not None or self.error_TD is not None

    def through_attention(self, g_RTD: Tensor) -> Tensor:
        """Gradient at ``attn_out`` -> gradient at the residual stream that attention read."""
        if self.norm_attn_post is not None:
            g_RTD = self.norm_attn_post.backward(g_RTD)
        if self.scores is None:
            return self.norm_attn.backward(self.attention.backward(self.pattern_QTS, g_RTD))
        return self.norm_attn.backward(self.scores.backward(self.attention, self.pattern_QTS, g_RTD))

    def through_mlp(self, g_RTD: Tensor, *, whole: bool) -> Tensor:
        """Gradient at ``mlp_out`` -> gradient at the stream, through the whole MLP or through the skip path alone."""
        path = self.mlp if whole else self.skip
        assert path is not None
        return self.norm_mlp.backward(path.backward(g_RTD))

    def until(self, n: int) -> LinearLayer:
        """The first ``n`` positions, on which later ones have no effect."""

        def cut(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[:n]

        return replace(
            self,
            pattern_QTS=self.pattern_QTS[:, :n, :n],
            norm_attn=self.norm_attn.until(n),
            norm_attn_post=None if self.norm_attn_post is None else self.norm_attn_post.until(n),
            norm_mlp=self.norm_mlp.until(n),
            mlp_in_TD=self.mlp_in_TD[:n],
            attention_bias_TD=cut(self.attention_bias_TD),
            nodes=None if self.nodes is None else self.nodes.until(n),
            read_TD=cut(self.read_TD),
            error_TD=cut(self.error_TD),
            bias_TD=cut(self.bias_TD),
            skip=None if self.skip is None else self.skip.at(slice(n)),
            mlp=None if self.mlp is None else self.mlp.at(slice(n)),
            mlp_bias_TD=cut(self.mlp_bias_TD),
            below={layer: nodes.until(n) for layer, nodes in self.below.items()},
            scores=None if self.scores is None else self.scores.until(n),
        )


@dataclass(frozen=True)
class LinearisedPrompt:
    """A whole prompt, linearised.

    ``tokens_TD`` is what each token's embedding wrote, ``position_TD`` what position embeddings wrote (GPT-2),
    ``resid_final_TD`` the input of the final norm.
    """

    tokens_T: Tensor
    layers: tuple[LinearLayer, ...]
    tokens_TD: Tensor
    position_TD: Tensor | None
    final_norm: LinearNorm
    resid_final_TD: Tensor
    logits_V: Tensor

    @property
    def n_positions(self) -> int:
        """Number of tokens."""
        return self.tokens_T.shape[0]

    def until(self, n: int) -> LinearisedPrompt:
        """The first ``n`` positions."""
        if n == self.n_positions:
            return self
        return replace(
            self,
            tokens_T=self.tokens_T[:n],
            layers=tuple(layer.until(n) for layer in self.layers),
            tokens_TD=self.tokens_TD[:n],
            position_TD=None if self.position_TD is None else self.position_TD[:n],
            final_norm=self.final_norm.until(n),
            resid_final_TD=self.resid_final_TD[:n],
        )


def written_at(layers: Sequence[LinearLayer], layer: int) -> Iterator[tuple[int, ActiveNodes, int]]:
    """Which layers have nodes that write at a layer's ``writes``: their number, nodes, and how far below they are."""
    for source, nodes in sorted(layers[layer].below.items()):
        yield source, nodes, layer - source
    own = layers[layer].nodes
    if own is not None:
        yield layer, own, 0
