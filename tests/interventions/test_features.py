import polars as pl
import pytest

import mechstudy as ms
from mechstudy.interventions.features import check_features, feature_at, features_at
from tests.support.api_world import error_of

REF = ms.FeatureAt(13, 1741, "all")


@pytest.mark.parametrize("text", ["13/1741", "13/1741@last", "f.13.1741@subject"])
def test_a_name_reads_back(text):
    ref = feature_at(text)
    assert feature_at(str(ref)) == ref
    assert (ref.layer, ref.feature) == (13, 1741)


@pytest.mark.parametrize(
    "named", ["13/1741", REF, (13, 1741), ["13/1741", REF], pl.DataFrame({"feature": ["13/1741"]})]
)
def test_accepted_ways_to_name_features(named):
    assert features_at(named) == [REF]


def test_a_frames_positions_count_where_they_are_names():
    numbers = pl.DataFrame({"feature": ["13/1741", "13/1741"], "position": [1, 2]})
    names = pl.DataFrame({"feature": ["13/1741", "13/1741"], "position": ["subject", "last"]})
    assert features_at(numbers) == [REF]
    assert [ref.position for ref in features_at(names)] == ["subject", "last"]


@pytest.mark.parametrize("named", ["13-1741", [], pl.DataFrame({"node": ["a"]}), ["13/1741/2"]])
def test_what_names_no_feature_is_an_error_with_a_fix(named):
    assert "fix:" in error_of(lambda: features_at(named))


def test_a_feature_that_does_not_exist_is_named_with_the_range(world):
    check_features([feature_at("2/39")], world.dicts)
    assert "features 0-39" in error_of(lambda: check_features([feature_at("2/40")], world.dicts))
    assert "layers with one: 0, 2" in error_of(lambda: check_features([feature_at("1/0")], world.dicts))
