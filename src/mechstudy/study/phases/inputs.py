"""What the phases share: the loaded model, the prompts, the dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mechstudy.machine.runtime import Runtime
from mechstudy.store.artifacts import Artifact

if TYPE_CHECKING:
    from mechstudy.behaviours.schema import PromptPair
    from mechstudy.dictionaries.dictionary import Dictionary
    from mechstudy.models.language_model import LanguageModel


def loaded_model(model: Artifact, runtime: Runtime, dtype: str | None = None, *, exact: bool = False) -> LanguageModel:
    """The study's model, in its own precision or another; kept loaded between units of one process.

    ``auto`` is bfloat16 or float32, whichever is faster here; the manifest's runtime says which it was. With ``exact``
    it never uses TF32, whatever ``compute.tf32`` says: graphs and interventions rest on small differences.
    """
    from mechstudy.models.language_model import load_model
    from mechstudy.models.sources import resolve_source

    spec = model.manifest["spec"]
    dtype = dtype or spec["dtype"]
    if dtype == "auto":
        from mechstudy.models.precision import faster_dtype

        shapes = model.read_json("model.json")
        told = runtime.ranks.told.get("model_dtype")  # measured by the leader: ranks must not differ
        dtype = told or faster_dtype(shapes["d_model"], shapes["d_mlp"], runtime.device)
        runtime.chosen["model_dtype"] = dtype
    key = ("model", model.id, dtype, runtime.device)
    if key not in runtime.cache:
        folder = resolve_source(spec["source"], base=runtime.base)
        runtime.cache[key] = load_model(
            folder, dtype=dtype, device=runtime.device, trust_remote_code=spec["trust_remote_code"]
        )
    loaded: LanguageModel = runtime.cache[key]
    loaded.tf32 = runtime.tf32 and not exact
    if loaded.tf32:
        runtime.chosen["tf32"] = "on"
    return loaded


def inputs_of(inputs: Mapping[str, Artifact], phase: str) -> dict[str, Artifact]:
    """The inputs of one phase, by what stands in their name's brackets."""
    prefix = f"{phase}["
    return {name[len(prefix) : -1]: artifact for name, artifact in inputs.items() if name.startswith(prefix)}


def prompts_of(inputs: Mapping[str, Artifact], split: str) -> list[PromptPair]:
    """The prompt pairs of the one behaviour among the inputs."""
    from mechstudy.behaviours.schema import from_jsonl

    [prompts] = inputs_of(inputs, "prompts").values()
    return from_jsonl(prompts.file(f"{split}.jsonl"))


def dictionaries_of(inputs: Mapping[str, Artifact], runtime: Runtime) -> dict[int, Dictionary]:
    """Every trained dictionary among the inputs, by layer; kept loaded between units of one process."""
    from mechstudy.dictionaries.dictionary import Dictionary

    found: dict[int, Any] = {}
    for name, artifact in inputs_of(inputs, "train").items():
        key = ("dictionary", artifact.id, runtime.device)
        if key not in runtime.cache:
            folder = artifact.file("dictionary/cfg.json").parent
            runtime.cache[key] = Dictionary.load(folder, device=runtime.device)
        found[int(name)] = runtime.cache[key]
    return dict(sorted(found.items()))


def behaviour_of(inputs: Mapping[str, Artifact]) -> str:
    """The name of the one behaviour whose prompts are among the inputs."""
    [name] = inputs_of(inputs, "prompts")
    return name
