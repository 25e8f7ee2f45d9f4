"""Published tables first, then the definitions by brute force, then how intervals behave on simulated data."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from jdm_seg.statistics import (
    bland_altman,
    bootstrap_ratio,
    compare_paired,
    concordance,
    holm,
    icc,
    rank_biserial,
    sign_flip_p,
)

NAN, INF = math.nan, math.inf

# Shrout and Fleiss 1979, table 2: six targets, four judges
SHROUT_FLEISS = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]

# Bland and Altman 1986, table 1: peak expiratory flow in L/min, first readings of both meters
WRIGHT = [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427]
MINI_WRIGHT = [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451]


class TestIcc:
    # values and intervals as published for this table (R package psych, ICC, its documentation)
    @pytest.mark.parametrize(("model", "expected"), [(2, (0.29, 0.019, 0.761)), (3, (0.71, 0.342, 0.946))])
    def test_shrout_and_fleiss(self, model, expected):
        found = icc(SHROUT_FLEISS, model=model)
        assert round(found.value, 2) == expected[0]
        assert (found.ci_low, found.ci_high) == pytest.approx(expected[1:], abs=6e-4)

    def test_by_hand(self):
        # means of rows 1.5, 3.5, 5.5 and of columns 3, 4: between 8, raters 1.5, error 0
        found = icc([[1, 2], [3, 4], [5, 6]], model=2)
        assert found.value == pytest.approx(8 / (8 + 2 * 1.5 / 3))
        assert found.ci_low < found.value < found.ci_high
        assert icc([[1, 2], [3, 4], [5, 6]], model=3).value == 1.0
        assert icc([[1, 1], [2, 2]], model=2).value == 1.0

    def test_undefined(self):
        for table in ([[1.0, 2.0]], [[1.0], [2.0]], [[1.0, 1.0], [1.0, 1.0]], [[1.0, 2.0], [NAN, 1.0]]):
            assert math.isnan(icc(table, model=2).value)
        assert icc([[1, 2], [3, 5], [5, 6], [NAN, 1]], model=2) == icc([[1, 2], [3, 5], [5, 6]], model=2)
        with pytest.raises(ValueError, match="expected model 2 or 3"):
            icc(SHROUT_FLEISS, model=1)

    @pytest.mark.parametrize("model", [2, 3])
    def test_interval_holds_the_truth_as_often_as_it_says(self, model):
        """Subjects SD 2, raters SD 1 (fixed for model 3), error SD 1: ICC(2,1) is 4 / 6, ICC(3,1) 4 / 5."""
        rng = np.random.default_rng(0)
        truth, hits = (4 / 6 if model == 2 else 4 / 5), 0
        for _ in range(600):
            table = rng.normal(0, 2, (20, 1)) + rng.normal(0, 1, (1, 6)) + rng.normal(0, 1, (20, 6))
            found = icc(table, model=model)
            hits += found.ci_low <= truth <= found.ci_high
        assert 0.92 < hits / 600 < 0.98


class TestConcordance:
    def test_by_its_definition(self):
        """One minus the mean squared difference over the one expected of independent pairs (Lin 1989)."""
        x, y = (np.array(side, dtype=float) for side in (WRIGHT, MINI_WRIGHT))
        expected = 1 - np.mean((x - y) ** 2) / np.mean((x[:, None] - y[None]) ** 2)
        assert concordance(x, y).value == pytest.approx(expected, rel=1e-12)

    def test_by_hand(self):
        assert concordance([1, 2, 3], [1, 2, 3]).value == 1.0
        assert concordance([1, 2, 3], [3, 2, 1]).value == -1.0
        # covariance 2/3, variances 2/3, shift 1: 4/3 over 4/3 + 1
        assert concordance([1, 2, 3], [2, 3, 4]).value == pytest.approx(4 / 7)
        assert concordance([1, 2, NAN, 3], [2, 3, 9, 4]) == concordance([1, 2, 3], [2, 3, 4])

    def test_undefined(self):
        assert math.isnan(concordance([1.0], [1.0]).value)
        assert math.isnan(concordance([1.0, 1.0], [1.0, 1.0]).value)
        assert concordance([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]).value == 0.0
        with pytest.raises(ValueError, match="as many values on both sides"):
            concordance([1.0], [1.0, 2.0])

    def test_interval_holds_the_truth_as_often_as_it_says(self):
        rng = np.random.default_rng(1)
        truth, hits = 2 * 0.8 / (1 + 1 + 0.25), 0
        for _ in range(800):
            x, y = rng.multivariate_normal([0, 0.5], [[1, 0.8], [0.8, 1]], 40).T
            found = concordance(x, y)
            hits += found.ci_low <= truth <= found.ci_high
        assert 0.92 < hits / 800 < 0.98


class TestBlandAltman:
    def test_published(self):
        """Bland and Altman 1986 give a mean difference of -2.1 L/min, SD 38.8 and -22.0 to 17.8 for the bias."""
        found = bland_altman(WRIGHT, MINI_WRIGHT)
        assert found.n == 17
        assert (round(found.bias.value, 1), round(found.sd, 1)) == (-2.1, 38.8)
        assert (found.bias.ci_low, found.bias.ci_high) == pytest.approx((-22.0, 17.8), abs=0.06)
        # they round 1.96 to 2: -79.7 and 75.5; with 1.96 each lies 0.04 SD further in
        assert found.lower_limit.value == pytest.approx(-79.7 + 0.04 * 38.8, abs=0.1)
        assert found.upper_limit.value == pytest.approx(75.5 - 0.04 * 38.8, abs=0.1)
        # standard error of a limit by the approximation of 1986, root 3 / n: 16.3, times t(16) = 2.12
        half = (found.upper_limit.ci_high - found.upper_limit.ci_low) / 2
        assert half == pytest.approx(2.12 * 16.3, rel=0.02)

    def test_log_limits_are_ratios(self):
        reference = np.array([0.0, 0.1, 1.0, 10.0, 100.0])
        prediction = 1.2 * (1 + reference) - 1  # always a fifth more of 1 + mL
        found = bland_altman(np.log1p(prediction), np.log1p(reference))
        assert math.exp(found.bias.value) == pytest.approx(1.2)
        assert math.exp(found.upper_limit.value) == pytest.approx(1.2)

    def test_too_few(self):
        assert math.isnan(bland_altman([1.0], [2.0]).bias.value)
        assert bland_altman([1.0, NAN, 3.0], [2.0, 1.0, 3.0]).n == 2


class TestBootstrap:
    def test_mean_of_many_is_normal(self):
        values = np.random.default_rng(0).normal(0.7, 0.1, 400)
        found = bootstrap_ratio(values, seed=3)
        half = 1.96 * values.std() / 20
        assert found.value == pytest.approx(values.mean())
        assert (found.ci_low, found.ci_high) == pytest.approx((values.mean() - half, values.mean() + half), abs=2e-3)

    def test_patients_move_together(self):
        """Forty patients with ten equal scans each: the interval is that of forty values, not of four hundred."""
        means = np.random.default_rng(1).normal(0, 1, 40)
        values, patients = np.repeat(means, 10), np.repeat(np.arange(40), 10).tolist()
        together = bootstrap_ratio(values, None, patients)
        one_each = bootstrap_ratio(means)
        assert (together.ci_low, together.ci_high) == pytest.approx((one_each.ci_low, one_each.ci_high))
        alone = bootstrap_ratio(values)
        width = (together.ci_high - together.ci_low) / (alone.ci_high - alone.ci_low)
        assert width == pytest.approx(math.sqrt(10), rel=0.1)

    def test_ratio_of_sums(self):
        found = bootstrap_ratio([1, 0, 3], [2, 4, 4])
        assert found.value == 0.4
        assert 0 <= found.ci_low <= 0.4 <= found.ci_high <= 0.75
        # by all 27 equally likely resamples
        draws = np.array(list(itertools.product(range(3), repeat=3)))
        exact = np.array([1, 0, 3])[draws].sum(axis=1) / np.array([2, 4, 4])[draws].sum(axis=1)
        assert {found.ci_low, found.ci_high} <= set(exact.tolist())

    def test_undefined_and_single(self):
        assert math.isnan(bootstrap_ratio([]).value)
        assert math.isnan(bootstrap_ratio([NAN, NAN]).ci_low)
        assert math.isnan(bootstrap_ratio([0.0, 0.0], [0.0, 0.0]).value)
        one = bootstrap_ratio([NAN, 0.5])
        assert (one.value, one.ci_low, one.ci_high) == (0.5, 0.5, 0.5)
        assert bootstrap_ratio([1.0, INF, 2.0]).ci_high == INF
        with pytest.raises(ValueError, match="one patient per case"):
            bootstrap_ratio([1.0], None, ["a", "b"])

    def test_seeded(self):
        values = np.random.default_rng(2).random(30)
        assert bootstrap_ratio(values, seed=1) == bootstrap_ratio(values, seed=1)
        assert bootstrap_ratio(values, seed=1) != bootstrap_ratio(values, seed=2)


class TestPaired:
    def test_hand_worked(self):
        found = compare_paired([0.9, 0.8, 0.7, NAN, 0.5], [0.8, 0.6, 0.4, 0.9, NAN])
        assert (found.n, found.n_undefined, found.n_patients) == (3, 2, 3)
        assert (found.mean_first, found.mean_second, found.difference) == pytest.approx((0.8, 0.6, 0.2))
        assert found.effect == 1.0
        assert found.p == pytest.approx(2 / 8)  # only all plus and all minus reach the sum
        assert found.p_wilcoxon == pytest.approx(2 / 8)
        assert found.ci_low == pytest.approx(0.1)
        assert found.ci_high == pytest.approx(0.3)

    def test_exact_flips_against_scipy(self):
        rng = np.random.default_rng(0)
        for n in (2, 5, 9):
            totals = rng.normal(0.3, 1, n)
            expected = stats.permutation_test(
                (totals, np.zeros(n)), lambda a, b, axis: (a - b).mean(axis=axis), permutation_type="samples",
                n_resamples=10**6, vectorized=True,
            )  # fmt: skip
            assert sign_flip_p(totals) == pytest.approx(expected.pvalue)

    def test_random_flips_agree_with_the_t_test(self):
        differences = np.random.default_rng(1).normal(0.25, 1, 80)
        assert sign_flip_p(differences, seed=4) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.01)
        assert sign_flip_p(np.ones(40)) == pytest.approx(1 / 10000)  # never 0

    def test_no_difference(self):
        found = compare_paired([0.5, 0.6], [0.5, 0.6])
        assert (found.difference, found.effect, found.p, found.p_wilcoxon) == (0.0, 0.0, 1.0, 1.0)

    def test_wilcoxon_and_effect_are_of_patients(self):
        first, second = np.array([1.0, 2.0, 3.0, 9.0, 5.0, 6.0]), np.array([2.0, 1.0, 1.0, 4.0, 6.0, 8.0])
        patients = ["a", "a", "b", "c", "d", "d"]
        found = compare_paired(first, second, patients)
        means = np.array([0.0, 2.0, 5.0, -1.5])
        assert found.n_patients == 4
        assert found.effect == pytest.approx((2 + 3 - 1) / 6)  # ranks of 1.5, 2 and 5; the zero is dropped
        assert found.p == pytest.approx(sign_flip_p(np.array([0.0, 2.0, 5.0, -3.0])))
        assert found.p_wilcoxon == pytest.approx(stats.wilcoxon(means).pvalue)

    def test_rank_biserial(self):
        assert rank_biserial(np.array([1.0, -2.0, 3.0])) == pytest.approx((1 - 2 + 3) / 6)
        assert rank_biserial(np.zeros(3)) == 0.0

    def test_nothing_to_compare(self):
        found = compare_paired([NAN, 1.0], [1.0, INF])
        assert (found.n, found.n_undefined) == (0, 2)
        assert math.isnan(found.p)
        with pytest.raises(ValueError, match="as many figures of both"):
            compare_paired([1.0], [1.0, 2.0])

    def test_p_is_uniform_without_a_difference(self):
        rng = np.random.default_rng(5)
        p = [sign_flip_p(rng.normal(0, 1, 8)) for _ in range(400)]
        assert 0.02 < np.mean(np.array(p) <= 0.05) < 0.08


def test_holm():
    # by hand: 0.01·3, then max(0.03, 0.02·2), then max(0.04, 0.03)
    assert holm([0.03, 0.01, NAN, 0.02]) == pytest.approx([0.04, 0.03, NAN, 0.04], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("model", [2, 3])
def test_icc_of_subjects_that_do_not_vary_is_undefined(model):
    assert math.isnan(icc([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]], model=model).value)
