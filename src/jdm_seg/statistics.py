"""Statistics of agreement and comparison: intervals over patients, paired tests, ICC, Lin's CCC, Bland-Altman.

Scans of one patient are not independent, so whatever is resampled or permuted here is the patient: its scans move
together. NaN means undefined everywhere; it is left out and counted, never replaced.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

FloatArray = NDArray[np.float64]

LEVEL = 0.95
_UPPER = 1 - (1 - LEVEL) / 2
_EXACT_PATIENTS = 14
"""Up to here all 2^n sign flips are tried."""
_FLIPS = 9999
_TIE = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval at 95 %; NaN where undefined.

    Attributes:
        value: The figure.
        ci_low: Lower end.
        ci_high: Upper end.
    """

    value: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same cases, first minus second.

    Attributes:
        mean_first: Mean of the first method over the cases where both are defined.
        mean_second: Mean of the second over the same cases.
        difference: Mean paired difference.
        ci_low: Lower end of its 95 % bootstrap interval over patients.
        ci_high: Upper end.
        effect: Matched-pairs rank-biserial correlation, -1 to 1: share of the rank sum in favour of larger values of
            the first, minus the share against; 0 when no patient differs.
        p: Two-sided sign-flip permutation test of the mean difference, over patients.
        p_wilcoxon: Two-sided Wilcoxon signed-rank test of the patients' mean differences.
        n: Cases where both are defined and finite.
        n_undefined: The others.
        n_patients: Patients behind ``n``.
    """

    mean_first: float
    mean_second: float
    difference: float
    ci_low: float
    ci_high: float
    effect: float
    p: float
    p_wilcoxon: float
    n: int
    n_undefined: int
    n_patients: int


@dataclass(frozen=True)
class BlandAltman:
    """Mean difference and 95 % limits of agreement, each with its interval at 95 %.

    Attributes:
        bias: Mean of first minus second.
        lower_limit: Bias minus 1.96 standard deviations of the differences.
        upper_limit: Bias plus as many.
        sd: Standard deviation of the differences (n - 1).
        n: Pairs.
    """

    bias: Estimate
    lower_limit: Estimate
    upper_limit: Estimate
    sd: float
    n: int


def bootstrap_ratio(
    numerators: ArrayLike,
    denominators: ArrayLike | None = None,
    patients: Sequence[Any] | None = None,
    *,
    seed: int = 0,
    n_resamples: int = 2000,
) -> Estimate:
    """Estimate sum over sum, with a percentile bootstrap interval over patients.

    Args:
        numerators: One value per case, shape (n,). A case with a NaN on either side is left out.
        denominators: The same; default 1 each, which makes the figure a mean over cases.
        patients: One name per case; default every case its own.
        seed: Of the resampling.
        n_resamples: Number of resamples.

    Returns:
        The ratio; all NaN without a defined case or with a denominator of 0. Resamples whose denominator is 0 are left
        out. With one patient the interval is its value: there is nothing to resample.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    above = np.asarray(numerators, dtype=np.float64)
    below = np.ones(len(above)) if denominators is None else np.asarray(denominators, dtype=np.float64)
    defined = ~(np.isnan(above) | np.isnan(below))
    _, who = np.unique(_patients(len(above), patients)[defined], return_inverse=True)
    sums = np.stack([np.bincount(who, side[defined]) for side in (above, below)]) if defined.any() else np.zeros((2, 0))
    total = sums.sum(axis=1)
    if not sums.shape[1] or total[1] == 0:
        return Estimate(math.nan, math.nan, math.nan)
    n = sums.shape[1]
    draws = np.random.default_rng(seed).integers(0, n, (n_resamples, n))
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = sums[0][draws].sum(axis=1) / sums[1][draws].sum(axis=1)
    tail = 50 * (1 - LEVEL)
    resampled = resampled[~np.isnan(resampled)]
    if not np.isfinite(resampled).all():  # percentiles interpolate, and infinity minus infinity is nothing
        low, high = (float(end) for end in np.quantile(resampled, (tail / 100, 1 - tail / 100), method="nearest"))
    else:
        low, high = (float(end) for end in np.percentile(resampled, (tail, 100 - tail)))
    return Estimate(float(total[0] / total[1]), low, high)


def compare_paired(
    first: ArrayLike,
    second: ArrayLike,
    patients: Sequence[Any] | None = None,
    *,
    seed: int = 0,
    n_resamples: int = 2000,
) -> Comparison:
    """Compare two methods on the same cases.

    Args:
        first: One figure per case, shape (n,).
        second: The same figure of the other method.
        patients: One name per case; default every case its own.
        seed: Of bootstrap and permutation.
        n_resamples: Of the bootstrap.

    Returns:
        See :class:`Comparison`; NaN without a pair.

    Raises:
        ValueError: If the lengths differ.

    Source: permutation as in Good 2005, exact up to 14 patients and 9999 random flips beyond, counting the observed
    one; effect as in Kerby 2014, Compr. Psychol. 3:11.IT.3.1.
    """
    a, b = (np.asarray(side, dtype=np.float64) for side in (first, second))
    if a.shape != b.shape:
        raise ValueError(f"expected as many figures of both methods, but got {len(a)} and {len(b)}")
    usable = np.isfinite(a) & np.isfinite(b)
    names = _patients(len(a), patients)[usable]
    difference = (a - b)[usable]
    n = len(difference)
    if not n:
        nothing = math.nan
        return Comparison(nothing, nothing, nothing, nothing, nothing, nothing, nothing, nothing, 0, len(a), 0)
    interval = bootstrap_ratio(difference, None, list(names), seed=seed, n_resamples=n_resamples)
    _, who = np.unique(names, return_inverse=True)
    totals = np.bincount(who, difference).astype(np.float64)
    means = totals / np.bincount(who)
    return Comparison(
        mean_first=float(a[usable].mean()),
        mean_second=float(b[usable].mean()),
        difference=interval.value,
        ci_low=interval.ci_low,
        ci_high=interval.ci_high,
        effect=rank_biserial(means),
        p=sign_flip_p(totals, seed=seed),
        p_wilcoxon=wilcoxon_p(means),
        n=n,
        n_undefined=len(a) - n,
        n_patients=len(totals),
    )


def sign_flip_p(totals: FloatArray, *, seed: int = 0) -> float:
    """Return the two-sided p of a sum under random signs: paired differences without a true difference.

    Args:
        totals: Summed difference of each patient, shape (n,).
        seed: Of the random flips, which are used beyond 14 patients.
    """
    n = len(totals)
    observed = abs(totals.sum())
    if n <= _EXACT_PATIENTS:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=n)))
    else:
        flips = np.random.default_rng(seed).integers(0, 2, (_FLIPS, n)) * 2.0 - 1.0
        signs = np.concatenate([np.ones((1, n)), flips])
    reached = np.abs(signs @ totals) >= observed - _TIE * max(1.0, np.abs(totals).sum())
    return float(reached.mean())


def rank_biserial(differences: FloatArray) -> float:
    """Return the matched-pairs rank-biserial correlation of paired differences, shape (n,); zeros are dropped."""
    moved = differences[differences != 0]
    if not len(moved):
        return 0.0
    from scipy import stats  # here and below: its import costs as much as scoring a case

    ranks = stats.rankdata(np.abs(moved))
    return float((ranks * np.sign(moved)).sum() / ranks.sum())


def wilcoxon_p(differences: FloatArray) -> float:
    """Return the two-sided p of the Wilcoxon signed-rank test, shape (n,); zeros are dropped, none left is 1."""
    from scipy import stats

    moved = differences[differences != 0]
    return float(stats.wilcoxon(moved).pvalue) if len(moved) else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for their number, by Holm's step-down method; NaN stays NaN and does not count.

    Source: Holm 1979, Scand. J. Stat. 6:65.
    """
    values = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(len(values), math.nan)
    order = np.argsort(values)  # NaN comes last
    m = int((~np.isnan(values)).sum())
    running = 0.0
    for rank, place in enumerate(order[:m]):
        running = max(running, min(1.0, (m - rank) * values[place]))
        adjusted[place] = running
    return [float(value) for value in adjusted]


def icc(ratings: ArrayLike, *, model: int) -> Estimate:
    """Compute the intraclass correlation of single ratings, by two-way analysis of variance.

    Args:
        ratings: Shape (n, k): n subjects, each rated by the same k raters or methods. A row with a NaN is left out.
        model: 2 for ICC(2,1), absolute agreement, raters are a sample; 3 for ICC(3,1), consistency, raters are fixed.

    Returns:
        With its 95 % interval; NaN with fewer than two subjects or raters, or when the subjects do not vary.

    Raises:
        ValueError: For another model or shape.

    Source: Shrout and Fleiss 1979, Psychol. Bull. 86:420; intervals there and in McGraw and Wong 1996.
    """
    table = np.asarray(ratings, dtype=np.float64)
    if model not in (2, 3) or table.ndim != 2:
        raise ValueError(f"expected model 2 or 3 and a table (n, k), but got model {model} and shape {table.shape}")
    table = table[~np.isnan(table).any(axis=1)]
    n, k = table.shape
    if n < 2 or k < 2 or not np.ptp(table):
        return Estimate(math.nan, math.nan, math.nan)
    rows, columns = table.mean(axis=1), table.mean(axis=0)
    between = k * float(((rows - table.mean()) ** 2).sum()) / (n - 1)
    raters = n * float(((columns - table.mean()) ** 2).sum()) / (k - 1)
    residual = table - rows[:, None] - columns[None] + table.mean()
    error = float((residual**2).sum()) / ((n - 1) * (k - 1))
    if error <= _TIE * max(between, raters):
        error = 0.0
    if between == error == 0:  # the raters differ by a constant and the subjects not at all
        return Estimate(math.nan, math.nan, math.nan)
    if model == 3:
        return _icc3(between, error, n, k)
    return _icc2(between, raters if raters > _TIE * between else 0.0, error, n, k)


def _icc3(between: float, error: float, n: int, k: int) -> Estimate:
    value = (between - error) / (between + (k - 1) * error)
    if error == 0:
        return Estimate(value, value, value)
    f, df = between / error, (n - 1, (n - 1) * (k - 1))
    low, high = f / special.fdtri(*df, _UPPER), f * special.fdtri(*reversed(df), _UPPER)
    return Estimate(value, float((low - 1) / (low + k - 1)), float((high - 1) / (high + k - 1)))


def _icc2(between: float, raters: float, error: float, n: int, k: int) -> Estimate:
    value = (between - error) / (between + (k - 1) * error + k * (raters - error) / n)
    if error == raters == 0:
        return Estimate(value, value, value)
    a = k * value / (n * (1 - value))
    b = 1 + k * value * (n - 1) / (n * (1 - value))
    # Satterthwaite's degrees of freedom of the mixture of both mean squares
    df = (a * raters + b * error) ** 2 / ((a * raters) ** 2 / (k - 1) + (b * error) ** 2 / ((n - 1) * (k - 1)))
    f_low, f_high = special.fdtri(n - 1, df, _UPPER), special.fdtri(df, n - 1, _UPPER)
    mixture = k * raters + (k * n - k - n) * error
    low = n * (between - f_low * error) / (f_low * mixture + n * between)
    high = n * (f_high * between - error) / (mixture + n * f_high * between)
    return Estimate(value, float(low), float(high))


def concordance(first: ArrayLike, second: ArrayLike) -> Estimate:
    """Compute Lin's concordance correlation coefficient with its 95 % interval.

    Args:
        first: One value per case, shape (n,). A pair with a NaN is left out.
        second: The same cases by another method.

    Returns:
        NaN with fewer than two pairs or when neither varies and both agree; the interval needs three pairs and a
        correlation other than 0.

    Source: Lin 1989, Biometrics 45:255, with variances over n; interval by Fisher's z with the variance corrected in
    Biometrics 2000, 56:324.
    """
    x, y = _pairs(first, second)
    n = len(x)
    if n < 2:
        return Estimate(math.nan, math.nan, math.nan)
    spread = float(x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    if spread == 0:
        return Estimate(math.nan, math.nan, math.nan)
    covariance = float(((x - x.mean()) * (y - y.mean())).mean())
    value, scale = 2 * covariance / spread, float(x.std() * y.std())
    if n < 3 or covariance == 0:
        return Estimate(value, math.nan, math.nan)
    if 1 - abs(value) < _TIE:
        return Estimate(value, value, value)
    r, u2 = covariance / scale, float((x.mean() - y.mean()) ** 2) / scale
    variance = (
        (1 - r**2) * value**2 * (1 - value**2) / r**2
        + 2 * value**3 * (1 - value) * u2 / r
        - 0.5 * value**4 * u2**2 / r**2
    ) / (n - 2)
    half = special.ndtri(_UPPER) * math.sqrt(max(0.0, variance)) / (1 - value**2)
    z = math.atanh(value)
    return Estimate(value, math.tanh(z - half), math.tanh(z + half))


def bland_altman(first: ArrayLike, second: ArrayLike) -> BlandAltman:
    """Compute bias and 95 % limits of agreement of first minus second.

    Args:
        first: One value per case, shape (n,). A pair with a NaN is left out. For skewed volumes pass ``log1p`` of both:
            the limits are then those of the log ratio of 1 + volume.
        second: The same cases by another method.

    Returns:
        NaN where there are fewer than two pairs.

    Source: Bland and Altman 1986, Lancet 327:307; error of the limits from 1999, Stat. Methods Med. Res. 8:135.
    """
    x, y = _pairs(first, second)
    n, difference = len(x), x - y
    if n < 2:
        nothing = Estimate(math.nan, math.nan, math.nan)
        return BlandAltman(nothing, nothing, nothing, math.nan, n)
    bias, sd = float(difference.mean()), float(difference.std(ddof=1))
    z, t = special.ndtri(_UPPER), special.stdtrit(n - 1, _UPPER)
    of_bias, of_limit = t * sd / math.sqrt(n), t * sd * math.sqrt(1 / n + z**2 / (2 * (n - 1)))

    def around(value: float, half: float) -> Estimate:
        return Estimate(float(value), float(value - half), float(value + half))

    return BlandAltman(around(bias, of_bias), around(bias - z * sd, of_limit), around(bias + z * sd, of_limit), sd, n)


def _patients(n: int, patients: Sequence[Any] | None) -> NDArray[Any]:
    if patients is None:
        return np.arange(n)
    if len(patients) != n:
        raise ValueError(f"expected one patient per case, but got {len(patients)} for {n} cases")
    return np.asarray(patients)


def _pairs(first: ArrayLike, second: ArrayLike) -> tuple[FloatArray, FloatArray]:
    x, y = (np.asarray(side, dtype=np.float64) for side in (first, second))
    if x.shape != y.shape:
        raise ValueError(f"expected as many values on both sides, but got {len(x)} and {len(y)}")
    usable = np.isfinite(x) & np.isfinite(y)
    return x[usable], y[usable]
