"""Whether a model works here: its files, its family, its tokenizer, and every identity in each precision."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mechstudy import models
from mechstudy.core.errors import MechstudyError
from mechstudy.core.sizes import human
from mechstudy.doctor.machine import Check
from mechstudy.machine.devices import free_memory
from mechstudy.models.folder import hub_revision, model_name, read_config, weight_files
from mechstudy.models.shapes import shapes_of
from mechstudy.models.sources import full_source, resolve_source

PRECISIONS = ("float32", "bfloat16")


def check_model(source: str, base: Path, *, device: str = "auto", quick: bool = False) -> Iterator[Check]:
    """Checks a model, which is fetched and converted first where it has to be.

    Args:
        source: a model source, a bare folder, a GGUF file or a hub id.
        base: the folder that relative paths start from.
        device: where it is loaded.
        quick: do not load the weights, and so check no identity.
    """
    folder = base
    try:
        folder = resolve_source(full_source(source, base), base=base)
        weights = weight_files(folder)
        size = human(sum(path.stat().st_size for path in weights))
        revision = hub_revision(folder)
        commit = f" at {revision[:12]}" if revision else ""
        yield Check("files", "ok", f"{model_name(folder)}{commit}: {len(weights)} safetensors, {size}")
        shapes = shapes_of(read_config(folder))
        idle = f" ({human_count(shapes.n_idle_parameters)} idle per token)" if shapes.n_idle_parameters else ""
        yield Check(
            "family",
            "ok",
            f"{shapes.family} ({shapes.model_type}): {shapes.n_layers} layers of width {shapes.d_model}, "
            f"{human_count(shapes.n_parameters)} parameters{idle}",
        )
        if quick:
            return
        for dtype in PRECISIONS:
            yield from _loaded(folder, dtype, device, first=dtype == PRECISIONS[0])
    except MechstudyError as error:
        where = f" ({error.where})" if error.where else ""
        facts = "".join(f"; {name}: {value}" for name, value in error.facts.items())
        yield Check("model", "bad", f"{error.what}{where}{facts}", error.fix or "")


def human_count(n: int) -> str:
    """A number of parameters: 134.5M."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.1f}{unit}"
    return str(n)


def _loaded(folder: Path, dtype: str, device: str, *, first: bool) -> Iterator[Check]:
    model = models.load_model(folder, dtype=dtype, device=device, validate=False)
    if first:
        yield _tokenizer(model)
    allowed = models.TOLERANCE[model.dtype]
    attention = model.hf.config._attn_implementation
    residuals = models.identities(model)
    broken = None if all(residual <= allowed for residual in residuals.values()) else models.not_finite(model)
    if broken is not None:
        yield Check(f"weights {dtype}", "bad", broken, "fetch the weights again, or an earlier checkpoint")
        return
    for name, residual in residuals.items():
        good = residual <= allowed
        yield Check(
            f"{name} {dtype}",
            "ok" if good else "bad",
            f"relative residual {residual:.1e}, at most {allowed:.0e} is allowed ({attention} on {model.device.type})",
            "" if good else "this variant of the family is not supported: please report it",
        )
    del model
    free_memory()


def _tokenizer(model: models.LanguageModel) -> Check:
    ids = model.encode("a")
    n = len(model.tokenizer)
    bos = "adds a BOS token" if len(ids) > 1 and ids[0] == model.tokenizer.bos_token_id else "adds no BOS token"
    chat = "has a chat template" if getattr(model.tokenizer, "chat_template", None) else "has no chat template"
    found = f"{n:,} tokens for {model.vocab_size:,} rows of the unembedding; {bos}; {chat}"
    if n <= model.vocab_size:
        return Check("tokenizer", "ok", found)
    return Check("tokenizer", "warn", found, "ids past the embedding cannot be used: is it this model's tokenizer?")
