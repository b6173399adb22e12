"""TransformerLens' hook names of sites, which other tools use."""

from __future__ import annotations

import re

_HOOKS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_in": "mlp.hook_in",
    "mlp_act": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
}


def hook_name(site: str) -> str:
    """TransformerLens' name of a site: "mlp_out.3" -> "blocks.3.hook_mlp_out"; other text stays as it is."""
    kind, _, layer = str(site).partition(".")
    return f"blocks.{layer}.{_HOOKS[kind]}" if kind in _HOOKS and layer.isdigit() else str(site)


def site_name(hook: str) -> str:
    """Inverse of `hook_name`; other text stays as it is."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    kinds = {name: kind for kind, name in _HOOKS.items()} | {"mlp.hook_out": "mlp_out"}
    if match is None or match[2] not in kinds:
        return hook
    return f"{kinds[match[2]]}.{match[1]}"
