"""What running the study's model costs: the parts that estimates of several phases share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mechstudy.behaviours.user import Outline
from mechstudy.core.work import Estimate, Held, Work, flops_of
from mechstudy.models.shapes import ModelShapes
from mechstudy.study.preflight import n_prompts
from mechstudy.study.study import BehaviourConfig, Study

TYPICAL_PROMPT = 16  # tokens; prompts are known only once they are made
TYPICAL_POSITIONS = 4  # named ones of a prompt
LENGTHS = 6  # distinct lengths of a behaviour's prompts, each a batch of its own


class ModelCosts:
    """Costs of the model of one study.

    Args:
        outlines: of the behaviours' own prompt files.
    """

    def __init__(self, study: Study, shapes: ModelShapes, outlines: Mapping[str, Outline]) -> None:
        self.study, self.shapes, self.outlines = study, shapes, outlines

    def n_prompts(self, behaviour: BehaviourConfig) -> Mapping[str, int]:
        """Prompts per split."""
        return n_prompts(behaviour, self.outlines)

    def total_prompts(self, behaviour: BehaviourConfig) -> int:
        """Prompts of both splits."""
        return sum(self.n_prompts(behaviour).values())

    @property
    def batch(self) -> int:
        """Tokens of a batch."""
        return max(TYPICAL_PROMPT, self.study.compute.batch_tokens)

    def model(self, dtype: str, blocks: int | None = None, *, embedding: bool = False) -> Held:
        """The model in memory: its first ``blocks``, and the embedding of many tokens or of a few."""
        x = self.shapes
        converted = self.study.model.source.startswith(("pypi:", "gguf:"))  # into float32 (models.sources)
        stored = "float32" if converted else "bfloat16"
        if blocks is None:
            return Held("model", x.n_parameters, dtype, stored=stored)
        touched = round(x.n_block_parameters * blocks / x.n_layers) + embedding * x.vocab_size * x.d_model
        return Held("model", x.n_parameters, dtype, min(touched, x.n_parameters), stored)

    def forward(
        self,
        tokens: float,
        layers: int,
        dtype: str,
        *,
        batches: float,
        logits: float = 0,
        context: int = TYPICAL_PROMPT,
    ) -> list[Work]:
        """Blocks over this many tokens, and the unembedding of ``logits`` of them."""
        x = self.shapes
        work = []
        if tokens and layers:
            attention = 2.0 * context * x.n_heads * x.head_dim * layers  # scores and mixing, half of them masked
            flops = tokens * (2.0 * x.n_block_parameters * layers / x.n_layers + attention)
            work.append(Work("forward", flops, dtype, x.d_model, batches * layers))
            # Norms, rotations, gates and additions pass over what the products leave.
            work.append(Work("stream", tokens * layers * (12.0 * x.d_model + 6.0 * x.d_mlp) * 4))
        if logits:
            work.append(Work("forward", 2.0 * logits * x.vocab_size * x.d_model, dtype, x.d_model))
        return work

    def block_bytes(self, tokens: int) -> int:
        """Tensors of one block that are alive at a time."""
        x = self.shapes
        return 4 * tokens * (6 * x.d_model + 3 * x.d_mlp + 2 * x.head_dim * (x.n_heads + 2 * x.n_kv_heads))

    def of_model(
        self, held: Held, disk: int, working: int, work: Sequence[Work], *more: Held, flops: float = 0.0
    ) -> Estimate:
        """The estimate of a unit that uses the model, and loads it where it is not loaded yet."""
        holds = (held, *more)
        load = Work("load", 4.0 * held.count, held.dtype)
        memory = sum(h.bytes() for h in holds) + working
        return Estimate(disk, memory, flops or flops_of(list(work)), holds=holds, work=(load, *work))
