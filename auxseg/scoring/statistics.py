"""Uncertainty and comparison: bootstrap by patient, Bland-Altman, paired tests, Holm, calibration.

Cases of one patient are not independent, so everything is resampled and tested by patient. Plain numpy and
scipy; random numbers come from an explicit seed, so a report repeats itself.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np

from auxseg.base.errors import InputError

LEVEL = 0.95
NUM_RESAMPLES = 2000
NUM_FLIPS = 9999
EXACT_PATIENTS = 12
"""Up to this number of patients all sign flips are tried (at most 4,096), else `NUM_FLIPS` random ones."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate with its interval.

    Attributes:
        estimate: NaN where there is nothing to estimate from.
        low: lower end of the `LEVEL` interval, NaN with fewer than two patients.
        high: upper end.
        num_cases: values that went into it.
        num_patients: patients that these come from.
    """

    estimate: float
    low: float
    high: float
    num_cases: int
    num_patients: int


def bootstrap_ratio(numerators, denominators, patients, *, num_resamples=NUM_RESAMPLES, seed=0):
    """Returns the Interval of sum(numerators) / sum(denominators), patients resampled with replacement.

    Means, pooled scores, sensitivities of objects and rates per slice are all such ratios. The interval is
    the percentile one; of fewer than about ten patients it is too narrow. Resamples without a denominator
    are dropped.

    Args:
        numerators: float [N].
        denominators: float [N], not negative.
        patients: [N], any labels; entries of one patient stay together.
        num_resamples: at least 1,000 for a 95 % interval.
        seed: of the resampling.
    """
    numerators, denominators = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    names, index = np.unique(np.asarray(patients), return_inverse=True)
    num = len(names)
    if not len(numerators) or not denominators.sum() > 0:
        return Interval(float("nan"), float("nan"), float("nan"), len(numerators), num)
    sums = np.stack([np.bincount(index, each, num) for each in (numerators, denominators)])
    estimate = float(sums[0].sum() / sums[1].sum())
    if num < 2:
        return Interval(estimate, float("nan"), float("nan"), len(numerators), num)
    above, below = (_resample(num, num_resamples, seed) @ sums.T).T
    low, high = np.quantile(above[below > 0] / below[below > 0], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(estimate, float(low), float(high), len(numerators), num)


@functools.lru_cache(maxsize=4)
def _resample(num, num_resamples, seed):
    """Returns float64 [num_resamples, num]: how often each of `num` patients is drawn. Kept: tables ask often."""
    return (
        np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), num_resamples).astype(np.float64)
    )


def bootstrap_mean(values, patients, **settings):
    """Returns the Interval of the mean over the cases that have a value; NaN values are left out.

    Args:
        values: float [N], NaN where a case has none.
        patients: [N], any labels.
        **settings: as `bootstrap_ratio`.
    """
    values = np.asarray(values, np.float64)
    there = ~np.isnan(values)
    return bootstrap_ratio(values[there], np.ones(there.sum()), np.asarray(patients)[there], **settings)


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Bland-Altman's agreement of two measurements; each pair is (low, high) of the `LEVEL` interval.

    Attributes:
        bias: mean of the differences.
        bias_interval: by Student's t.
        sd: standard deviation of the differences, n - 1.
        lower_limit: bias - 1.96 sd.
        lower_interval: by Bland and Altman's approximation, variance sd^2 (1/n + 1.96^2 / (2 (n - 1))).
        upper_limit: bias + 1.96 sd.
        upper_interval: likewise.
        num_cases: pairs.
    """

    bias: float
    bias_interval: tuple[float, float]
    sd: float
    lower_limit: float
    lower_interval: tuple[float, float]
    upper_limit: float
    upper_interval: tuple[float, float]
    num_cases: int


def bland_altman(differences, *, intervals=True):
    """Returns the Agreement of differences float [N]; NaN where there are too few.

    Without `intervals`, as of cases that are all of one patient, their ends are NaN.

    Source: Bland and Altman, Lancet 1986 and Stat Methods Med Res 1999 (section 2). Cases count as
        independent.
    """
    differences = np.asarray(differences, np.float64)
    num = len(differences)
    bias = float(np.mean(differences)) if num else float("nan")
    sd = float(np.std(differences, ddof=1)) if num > 1 else float("nan")
    z = _stats().norm.ppf((1 + LEVEL) / 2)
    some = max(num, 2)  # of fewer the deviation is not known, and so nothing here
    t = _stats().t.ppf((1 + LEVEL) / 2, some - 1)
    half_bias = t * sd / np.sqrt(some)
    half_limit = t * sd * np.sqrt(1 / some + z**2 / (2 * (some - 1)))

    def around(center, half):
        return (float(center - half), float(center + half)) if intervals else (float("nan"),) * 2

    lower, upper = bias - z * sd, bias + z * sd
    return Agreement(
        bias,
        around(bias, half_bias),
        sd,
        float(lower),
        around(lower, half_limit),
        float(upper),
        around(upper, half_limit),
        num,
    )


def correlation(x, y, *, intervals=True):
    """Returns Pearson's R of two float [N] as an Interval by Fisher's z; cases count as independent.

    Without `intervals`, as of cases that are all of one patient, its ends are NaN.

    R is NaN with fewer than 3 pairs or a constant side, its interval with fewer than 4.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    num = len(x)
    if num < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Interval(float("nan"), float("nan"), float("nan"), num, num)
    r = float(np.corrcoef(x, y)[0, 1])
    if num < 4 or abs(r) >= 1 or not intervals:
        return Interval(r, *((r, r) if abs(r) >= 1 and intervals else (float("nan"),) * 2), num, num)
    half = _stats().norm.ppf((1 + LEVEL) / 2) / np.sqrt(num - 3)
    return Interval(r, float(np.tanh(np.arctanh(r) - half)), float(np.tanh(np.arctanh(r) + half)), num, num)


@dataclasses.dataclass(frozen=True)
class PairedTest:
    """Two arms on the same cases, second minus first.

    Attributes:
        difference: the mean difference over cases, with its bootstrap interval by patient.
        p_value: of the sign-flip test on the patients' mean differences, two-sided, not corrected.
        effect_size: Cohen's d_z, mean over standard deviation of the patients' differences; NaN if that is
            0.
        wilcoxon_p: of Wilcoxon's signed-rank test on the same, for comparison; 1 if all differences are 0.
        exact: whether all sign flips were tried.
    """

    difference: Interval
    p_value: float
    effect_size: float
    wilcoxon_p: float
    exact: bool


def paired_test(first, second, patients, *, seed=0):
    """Returns the PairedTest of two arms' scores on the same cases; pairs with a NaN are left out.

    The sign-flip (permutation) test asks nothing of the distribution but symmetry under the null
    hypothesis. Up to `EXACT_PATIENTS` patients it is exact; the smallest p that n patients allow is
    2^(1-n), so five cannot reach 0.05.

    Args:
        first: float [N], one score a case.
        second: float [N], of the same cases in the same order.
        patients: [N], any labels.
        seed: of the resampling and of the random flips.

    Raises:
        InputError: lengths differ.
    """
    first, second, patients = (
        np.asarray(first, np.float64),
        np.asarray(second, np.float64),
        np.asarray(patients),
    )
    if not first.shape == second.shape == patients.shape:
        raise InputError(
            f"paired_test: got {first.shape}, {second.shape} scores and {patients.shape} patients, "
            "expected as many of each; pair the cases first"
        )
    there = ~np.isnan(first) & ~np.isnan(second)
    differences, patients = (second - first)[there], patients[there]
    interval = bootstrap_mean(differences, patients, seed=seed)
    names, index = np.unique(patients, return_inverse=True)
    num = len(names)
    if num < 2:
        return PairedTest(interval, float("nan"), float("nan"), float("nan"), True)
    means = np.bincount(index, differences) / np.bincount(index)
    spread = np.std(means, ddof=1)
    effect = float(means.mean() / spread) if spread > 0 else float("nan")
    wilcoxon = float(_stats().wilcoxon(means).pvalue) if np.any(means) else 1.0
    return PairedTest(interval, _sign_flip(means, seed), effect, wilcoxon, num <= EXACT_PATIENTS)


def _sign_flip(means, seed):
    num = len(means)
    slack = 1e-12 * np.abs(means).max()
    if num <= EXACT_PATIENTS:
        signs = np.array(list(itertools.product((-1, 1), repeat=num)))
        return float(np.mean(np.abs(signs @ means) >= abs(means.sum()) - slack))
    rng = np.random.default_rng(seed)
    flips = rng.integers(0, 2, (NUM_FLIPS, num), dtype=np.int8) * 2 - 1
    return float((1 + np.sum(np.abs(flips @ means) >= abs(means.sum()) - slack)) / (1 + NUM_FLIPS))


def holm(p_values):
    """Returns float64 [K], Holm's corrected p-values of a family of K; a NaN stays NaN and is no member.

    Source: Holm, Scand J Statist 1979. A corrected p below 0.05 keeps the family's error at 5 %.
    """
    p_values = np.asarray(p_values, np.float64)
    corrected = np.full(p_values.shape, np.nan)
    members = np.flatnonzero(~np.isnan(p_values))
    order = members[np.argsort(p_values[members], kind="stable")]
    stepped = p_values[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1, np.maximum.accumulate(stepped))
    return corrected


def _stats():
    """Returns scipy.stats, whose import takes longer than a slice's mask, which does without."""
    from scipy import stats

    return stats
