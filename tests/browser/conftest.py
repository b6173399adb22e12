"""What tests of pages share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser.report_browser import Browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A page of 1,300 pixels in width."""
    instance = Browser(1300)
    yield instance
    instance.close()
