"""Claims about the statistics of a comparison."""

import numpy as np
import pytest

from limbeck.analysis.statistics import holm, judge, paired_difference, spread, verdict
from limbeck.errors import UserError


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_paired_difference_is_scipys_paired_t_test(n):
    from scipy.stats import ttest_rel

    values, baseline = np.random.default_rng(n).normal(90, 1, size=(2, n))
    expected = ttest_rel(values, baseline)
    interval = expected.confidence_interval(0.95)
    found = paired_difference(values, baseline)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-10)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-10)
    assert found.mean == pytest.approx(np.mean(values) - np.mean(baseline))
    assert found.n == n


def test_confidence_sets_the_width_of_the_interval():
    from scipy.stats import ttest_rel

    values, baseline = [1.0, 2.5, 3.0], [1.5, 2.0, 1.0]
    interval = ttest_rel(values, baseline).confidence_interval(0.8)
    assert paired_difference(values, baseline, confidence=0.8).low == pytest.approx(interval.low)


def test_pairing_removes_what_the_seeds_share():
    seeds = np.array([80.0, 90.0, 70.0, 95.0])
    found = paired_difference(seeds + np.array([1.0, 1.1, 0.9, 1.0]), seeds)
    assert found.low is not None
    assert found.low > 0.8


@pytest.mark.parametrize(
    ("values", "baseline"),
    [([91.0], [90.0]), ([90.2, 91.2, 92.2], [90.0, 91.0, 92.0]), ([0.1 + 0.2, 0.7], [0.2, 0.6])],
    ids=["one pair", "same difference on every seed", "same but for rounding"],
)
def test_no_p_value_is_made_up_where_the_t_statistic_does_not_exist(values, baseline):
    found = paired_difference(values, baseline)
    assert (found.low, found.high, found.p) == (None, None, None)
    assert not found.tied
    assert verdict(found, None) == "no test"


def test_ties_are_called_identical_only_where_more_than_they_agrees():
    for values in ([90.0, 91.5], [90.0], [0.0, 0.0]):
        tied = paired_difference(values, values)
        assert tied.tied
        assert judge([tied], [True])[0].verdict == "identical"
        assert judge([tied], [False])[0].verdict == ("no difference seen" if tied.n > 1 else "no test")


def test_a_row_that_ties_by_chance_counts_in_holms_correction():
    tied, other = (
        paired_difference([90.0, 91.5, 92.0], [90.0, 91.5, 92.0]),
        paired_difference([1.0, 1.2, 0.9], [0.0] * 3),
    )
    by_chance, same = judge([tied, other], [False, False]), judge([tied, other], [True, False])
    assert same[1].p_holm == pytest.approx(other.p)
    assert by_chance[1].p_holm == pytest.approx(2 * other.p)
    assert (same[0].p_holm, by_chance[0].p_holm) == (None, 1.0)


def test_holm_is_the_step_down_of_a_hand_computed_example():
    # Sorted: 0.01 x 4 = 0.04; 0.02 x 3 = 0.06; 0.025 x 2 = 0.05, raised to 0.06; 0.3 x 1.
    assert holm([0.02, 0.3, 0.01, 0.025]) == pytest.approx([0.06, 0.3, 0.04, 0.06])


def test_holm_stops_at_one_and_does_not_count_rows_without_a_test():
    assert holm([0.7, None, 0.9]) == [1.0, None, 1.0]
    assert holm([None, 0.04]) == [None, 0.04]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("values", "p", "words"),
    [
        ([1.0, 1.2, 0.9], 0.01, "better"),
        ([-1.0, -1.2, -0.9], 0.01, "worse"),
        ([1.0, 1.2, 0.9], 0.05, "uncertain"),
        ([1.0, -1.2, 0.9], 0.9, "no difference seen"),
    ],
)
def test_words_follow_the_interval_and_the_adjusted_p_value(values, p, words):
    assert verdict(paired_difference(values, [0.0] * len(values)), p) == words


def test_spread_is_the_sample_standard_deviation_and_absent_for_one_value():
    assert spread([1.0, 2.0, 4.0]).std == pytest.approx(np.std([1, 2, 4], ddof=1))
    assert spread([1.0]).std is None
    with pytest.raises(ValueError, match="at least one"):
        spread([])


def test_sides_of_different_length_are_refused():
    with pytest.raises(ValueError, match="2 values and 1 of the baseline"):
        paired_difference([1.0, 2.0], [1.0])


def test_missing_scipy_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "scipy.special", None)
    with pytest.raises(UserError, match=r'pip install "limbeck\[cli\]"'):
        paired_difference([1.0, 2.0], [0.5, 0.0])
