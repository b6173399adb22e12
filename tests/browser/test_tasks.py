"""The list of what a reader does with graphs and features, all of it, on a report."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechstudy.report.pages import build_report
from tests.browser.report_browser import Browser, chromium
from tests.browser.tasks import TASKS, done
from tests.support.report_fixture import FakeStudy

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="Chromium is not installed"),
]


def test_every_task_of_the_list_is_done_without_error_or_request(tmp_path: Path) -> None:
    build_report(FakeStudy(tmp_path / "study", prompts=2, big=False).data, tmp_path / "report")
    browser = Browser()
    try:
        results = done(browser, tmp_path / "report")
    finally:
        browser.close()
    assert len(results) == len(TASKS) == 28
    assert {name: result for name, result in results.items() if result != "done"} == {}
