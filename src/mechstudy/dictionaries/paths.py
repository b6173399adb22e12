"""Where files are: what the public functions take for a folder or a file."""

from __future__ import annotations

import os

AnyPath = str | os.PathLike[str]
