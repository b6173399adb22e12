"""Small documents, and files of them."""

from __future__ import annotations

import json


def texts(n=60):
    """Documents of 20 to 29 letters, each made of its own character."""
    return [chr(0x21 + i) * (20 + i % 10) for i in range(n)]


def write_jsonl(path, items, field="text"):
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in items))
    return path
