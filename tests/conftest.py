"""For all tests: tables are as wide as they are for a user whose output is a pipe."""

from __future__ import annotations

import os

# pytest imports readline, which sets these for child processes, and those of pytest-xdist are such.
for _name in ("COLUMNS", "LINES"):
    os.environ.pop(_name, None)
