"""Addresses of numbers, their handles, and what lies at them."""

from __future__ import annotations

from mechstudy.report.numbers import Address, at, differences, parse_address


def test_handles_are_made_from_addresses_alone_and_differ():
    a = Address("intervene[x]", "summary.json", "/tests").below("a/b~c", 3)
    assert str(a) == "intervene[x]/summary.json#/tests/a~1b~0c/3" and parse_address(str(a)) == a
    assert a.handle == "g6ssp73" and at({"tests": {"a/b~c": [0, 0, 0, 7]}}, a.pointer) == 7
    handles = {Address("train[1]", "evaluation.json", f"/x/{i}").handle for i in range(20_000)}
    assert len(handles) == 20_000 and parse_address("g6ssp73") is None


def test_differences_are_listed_by_pointer():
    before = {"a": [1, {"b": 2.0}], "c": None}
    assert differences(before, {"a": [1, {"b": 2.0}], "c": None}) == []
    assert differences(before, {"a": [1, {"b": 3.0}], "d": 1}) == [("/a/1/b", 2.0, 3.0), ("/d", None, 1)]
    assert differences([1, 2], [1]) == [("", [1, 2], [1])]
