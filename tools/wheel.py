"""Build hook of the wheel: the demo's study is a file of examples/, and of the package that users install."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class DemoInPackage(BuildHookInterface):
    """Puts examples/demo.yaml into wheels. An editable installation reads it from examples/ itself."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before a wheel is built; ``version`` is standard or editable."""
        if version == "standard":
            build_data["force_include"]["examples/demo.yaml"] = "mechstudy/cli/demo.yaml"
