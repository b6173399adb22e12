"""The model card of a dictionary on the hub. Its values are escaped: data, never markup."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from mechstudy.dictionaries.formats.saelens import read_by_saelens
from mechstudy.dictionaries.stored import DictionaryLike, shown_activation

_KINDS = {"sae": "Sparse autoencoder", "transcoder": "Transcoder", "skip_transcoder": "Skip transcoder"}


def model_card(
    dictionary: DictionaryLike, repo: str, inside: str, revision: str | None, metrics: Mapping[str, Any]
) -> str:
    """README.md: what the dictionary is, where it reads and writes, how good it is, and how to load it.

    Args:
        dictionary: the one described.
        repo: ``owner/name``.
        inside: its folder there, or "".
        revision: its branch, or None.
        metrics: numbers and text are shown; nested values are left out.
    """
    cfg = dictionary.cfg
    model = str(cfg.metadata.get("model_name") or "")
    front: dict[str, Any] = {"library_name": "mechstudy"}
    front["tags"] = ["mechanistic-interpretability", "sparse-autoencoder" if cfg.kind == "sae" else "transcoder"]
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", model):
        front["base_model"] = model
    k = "" if cfg.k is None else f"{cfg.k:,}" + ("" if cfg.activation == "topk" else " on average")
    rows = {
        "Model": model or "not recorded",
        "Reads": cfg.site_in,
        "Writes": cfg.site_out if cfg.kind != "sae" else "",
        "Widths": f"{cfg.d_in:,} to {cfg.d_sae:,} features" + (f" to {cfg.d_out:,}" if cfg.kind != "sae" else ""),
        "Activation": shown_activation(cfg, dictionary.threshold),
        "Active features": k,
        "Weights": str(dictionary.W_enc.dtype).removeprefix("torch."),
        "Rows without features": f"L2 norm above {cfg.metadata['max_input_norm']:.6g}, dropped in training"
        if isinstance(cfg.metadata.get("max_input_norm"), int | float)
        else "",
    }  # fmt: skip
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float | str)}
    place = json.dumps(f"hf:{repo}" + (f"/{inside}" if inside else "") + (f"@{revision}" if revision else ""))
    lines = [
        # Every JSON value is a YAML value.
        "---",
        *(f"{name}: {json.dumps(value)}" for name, value in front.items()),
        "---",
        "",
        f"# {_KINDS[cfg.kind]} on {escaped(cfg.site_out)}" + (f" of {escaped(model)}" if model else ""),
        "",
        *_table("what", "", rows),
    ]
    if numbers:
        shown = {name: f"{v:.4g}" if isinstance(v, float) else str(v) for name, v in numbers.items()}
        lines += ["", "## Measured", "", *_table("metric", "value", shown)]
    lines += [
        "", "## Load", "", "```python", "from mechstudy.dictionaries import Dictionary", "",
        f"dictionary = Dictionary.load({place})",
        f"features = dictionary.encode(activations)  # [..., {cfg.d_in}] -> [..., {cfg.d_sae}]", "```", "",
    ]  # fmt: skip
    if not read_by_saelens(cfg):
        lines += ["SAELens has no class for this architecture and refuses it.", ""]
    elif not inside or revision:
        lines += ["With SAELens: download the folder, then `SAE.load_from_disk(folder)`.", ""]
    else:
        lines += [
            "```python", "from sae_lens import SAE", "",
            f"sae = SAE.from_pretrained({json.dumps(repo)}, {json.dumps(inside)})", "```", "",
        ]  # fmt: skip
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Text that Markdown shows literally, on one line, also in a table's cell."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>~&$@:-])", r"\\\1", " ".join(str(text).split()))


def _table(left: str, right: str, rows: Mapping[str, str]) -> list[str]:
    body = [f"| {escaped(name)} | {escaped(value)} |" for name, value in rows.items() if value]
    return [f"| {left} | {right} |", "|---|---|", *body]
