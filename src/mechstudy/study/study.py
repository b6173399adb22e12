"""The study file: the whole truth of what is computed. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mechstudy.activations.config import CorpusConfig, PromptCaptureConfig
from mechstudy.circuits.config import AttributionConfig, no_graphs
from mechstudy.core.config import Config, Lines, load_config_with_lines
from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.interventions.config import InterventionConfig
from mechstudy.models.sites import SiteKind
from mechstudy.study.compute_config import ComputeConfig, StorageConfig

__all__ = ["ComputeConfig", "StorageConfig", "Study", "load_study", "study_dict"]

Dtype = Literal["float32", "bfloat16", "float16"]


class ModelConfig(Config):
    """The model: ``hf:<id>[@revision]``, ``path:<folder>``, ``gguf:<file>`` or ``pypi:<package>==<version>``.

    ``dtype`` is the precision in which behaviour, graphs and interventions are computed (graphs need
    float32); ``chat`` puts every prompt at the beginning of the reply to a user's turn,
    ``chat_instruction``, in the model's chat template.
    """

    source: str
    dtype: Dtype = "float32"
    chat: bool = False
    chat_instruction: str = "Continue the text."
    trust_remote_code: bool = False


class BehaviourConfig(Config):
    """A built-in behaviour by name, or one's own prompts: ``file`` names a JSONL file (docs/behaviours.md)."""

    name: str = Field(pattern=r"^[A-Za-z0-9_\-]+$")
    file: str | None = None
    n_train: int = Field(100, ge=1)
    n_test: int = Field(100, ge=1)

    @model_validator(mode="after")
    def _known(self) -> BehaviourConfig:
        from mechstudy.behaviours.registry import BEHAVIOURS

        if self.file is None and self.name not in BEHAVIOURS:
            guess = nearest(self.name, BEHAVIOURS)
            raise MechstudyError(
                f"there is no built-in behaviour {self.name!r}",
                where="name",
                facts={"built in": ", ".join(sorted(BEHAVIOURS))},
                fix=f"did you mean {guess!r}?" if guess else "give your own prompts: file: <prompts>.jsonl",
            )
        return self


class BaselineConfig(Config):
    """``min_accuracy`` is the gate: a behaviour the model does not show is not studied further.

    ``on_fail: continue`` studies it all the same.
    """

    min_accuracy: float = Field(0.8, ge=0, le=1)
    on_fail: Literal["stop", "continue"] = "stop"
    bootstrap: int = Field(2000, ge=100)


class VariantConfig(Config):
    """Another dictionary of every layer, from the same rows and by the same recipe, with a start of its own.

    It is judged like the layer's own, compared with it (``agreement.json``) and used by nothing else. Without
    ``architecture`` it has the study's: then it says how much another seed finds again.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_.\-]+$")
    architecture: DictionaryConfig | None = None


class DictionariesConfig(Config):
    """One dictionary per layer. Transcoders read ``mlp_in`` and write ``mlp_out``; an SAE does both at ``site``.

    ``model_dtype`` is the precision of the forward pass over the corpus (``auto``: bfloat16 where this machine is
    faster in it, else float32), ``store_dtype`` that of the stored rows: ``int8`` takes half of bfloat16's disk, and
    ``store.json`` says what that lost (``quantisation_fvu``).
    ``source: stream`` trains from forward passes as they happen: nothing on disk, ``window_rows`` rows of every site in
    memory, and the corpus is read again for every epoch. ``store`` (the default) captures first. ``auto`` takes stream
    where the disk cannot hold a store or a store would save no forward pass; `plan` says which and why, a run keeps to
    what it began with (``resolved.json``), and as it becomes part of artifacts' ids, a study that must be the same on
    two machines names its source.
    ``layers_per_pass`` bounds the disk, or the window: so many layers are captured, trained and (with
    ``storage.retain: {capture: discard}``) deleted before the next.
    ``variants`` are more dictionaries of every layer from the same rows: other k, other architectures, other seeds.
    """

    layers: str | int | tuple[int | str, ...] = "all"
    site: SiteKind = "mlp_out"
    architecture: DictionaryConfig = DictionaryConfig()
    training: TrainConfig = TrainConfig()
    model_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    store_dtype: Literal["bfloat16", "float32", "int8"] = "bfloat16"
    layers_per_pass: int = Field(10, ge=1)
    source: Literal["auto", "store", "stream"] = "store"
    window_rows: int = Field(65_536, ge=1_024)
    evaluation_rows: int = Field(16_384, ge=256)
    evaluation_tokens: int = Field(4096, ge=128)
    variants: tuple[VariantConfig, ...] = ()

    @model_validator(mode="after")
    def _one_dictionary_a_layer(self) -> DictionariesConfig:
        if self.architecture.n_sites > 1:
            raise MechstudyError(
                f"a study trains one dictionary per layer, and a {self.architecture.kind} reads several layers",
                where="architecture.kind",
                fix="sae, transcoder or skip_transcoder here; crosscoders and clts are trained in Python "
                "(docs/dictionaries.md)",
            )
        return self

    @model_validator(mode="after")
    def _variants_of_the_same_rows(self) -> DictionariesConfig:
        names = [variant.name for variant in self.variants]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise MechstudyError(f"two variants are called {repeated[0]!r}", where="variants")
        for number, variant in enumerate(self.variants):
            other = variant.architecture
            if other is not None and (other.n_sites > 1 or (other.kind == "sae") != (self.architecture.kind == "sae")):
                raise MechstudyError(
                    f"variant {variant.name!r}, a {other.kind}, reads other rows than a {self.architecture.kind}",
                    where=f"variants.{number}.architecture.kind",
                    fix="sae for all, or transcoders for all",
                )
        return self

    def sites(self) -> tuple[str, str]:
        """What a dictionary reads and what it writes."""
        return (self.site, self.site) if self.architecture.kind == "sae" else ("mlp_in", "mlp_out")


class FeaturesConfig(Config):
    """Feature pages: how much of the corpus is searched for examples, and how many are shown."""

    documents: int = Field(384, ge=1)
    examples: int = Field(8, ge=1)
    window: int = Field(24, ge=4)
    top_logits: int = Field(8, ge=1)
    per_behaviour: int = Field(150, ge=1)


class Study(Config):
    """A whole study. Every seed in it derives from ``seed``.

    Without behaviours (``behaviours: []``), or with SAEs, it has no graphs: `no_graphs`.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_.\-]+$")
    seed: int = Field(0, ge=0)
    model: ModelConfig
    behaviours: tuple[BehaviourConfig, ...]
    baseline: BaselineConfig = BaselineConfig()
    capture: PromptCaptureConfig = PromptCaptureConfig()
    corpus: CorpusConfig = CorpusConfig(tokens=200_000)
    dictionaries: DictionariesConfig = DictionariesConfig()
    attribution: AttributionConfig = AttributionConfig()
    features: FeaturesConfig = FeaturesConfig()
    interventions: InterventionConfig = InterventionConfig()
    compute: ComputeConfig = ComputeConfig()
    storage: StorageConfig = StorageConfig()

    @field_validator("behaviours")
    @classmethod
    def _distinct(cls, value: tuple[BehaviourConfig, ...]) -> tuple[BehaviourConfig, ...]:
        names = [b.name for b in value]
        if repeated := [n for n in names if names.count(n) > 1]:
            raise MechstudyError(f"behaviour {repeated[0]!r} is named twice")
        return value

    @model_validator(mode="after")
    def _graphs_can_be_made(self) -> Study:
        if self.no_graphs is None and self.model.dtype != "float32":
            raise MechstudyError(
                f"attribution graphs need fp32 weights, the model is to be loaded as {self.model.dtype}",
                where="model",
                fix="dtype: float32 (dictionaries.model_dtype may be another)",
            )
        return self

    @property
    def no_graphs(self) -> str | None:
        """Why nothing is attributed, nor shown by its features or intervened on; None where it is."""
        return no_graphs(len(self.behaviours), self.dictionaries.architecture.kind)


def load_study(path: Path, overrides: Sequence[str] = ()) -> tuple[Study, Lines]:
    """The study and where each of its fields stands, for mistakes that only the model can reveal."""
    return load_config_with_lines(path, Study, overrides)


def study_dict(study: Study) -> dict[str, Any]:
    """The study as plain JSON, for the report."""
    return study.canonical()
