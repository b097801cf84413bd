"""The statistics behind the report: pure functions of arrays.

`right` arrays are (N,) bool, one entry a test image; `logits` (N, C); `labels` (N,); curves (E,),
one value an epoch. Intervals are 95 %. What scipy has is scipy's.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

LEVEL = 0.95
RESAMPLES = 1999
WARMUP_EPOCHS = 5  # left out where the steadiness of a curve is measured


class Estimate(NamedTuple):
    """A value, its 95 % interval, and the two-sided p of the value being 0; nan if unknown."""

    value: float
    low: float = np.nan
    high: float = np.nan
    p: float = np.nan


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (ddof 1; nan for a single value)."""
    values = np.asarray(values, float)
    return values.mean(), values.std(ddof=1) if len(values) > 1 else np.nan


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean of one value a seed, with Student's t-interval and t-test against 0."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return Estimate(values.mean())
    if np.ptp(values) == 0:  # no spread at all: the t statistic is 0/0 or infinite
        return Estimate(values[0], values[0], values[0], float(values[0] == 0))
    test = stats.ttest_1samp(values, 0)
    interval = test.confidence_interval(LEVEL)
    return Estimate(values.mean(), interval.low, interval.high, test.pvalue)


def over_images(
    statistic: Callable[..., np.ndarray], arrays: Sequence[np.ndarray], value: float
) -> Estimate:
    """`value` with a percentile bootstrap interval over test images (Efron and Tibshirani 1993).

    arrays: each (N, ...), resampled together along the first axis; statistic: of such arrays, a
    scalar. p is twice the smaller share of resamples on either side of 0, at least 1/RESAMPLES.
    This is what one seed can tell: how sure the test images make it, not how other seeds differ.
    """
    generator = np.random.default_rng(0)
    count = len(arrays[0])
    draws = np.empty(RESAMPLES)
    for k in range(RESAMPLES):
        index = generator.integers(count, size=count)
        draws[k] = statistic(*(array[index] for array in arrays))
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    tail = min((draws <= 0).mean(), (draws >= 0).mean())
    return Estimate(value, low, high, min(1.0, max(2 * tail, 1 / RESAMPLES)))


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> float:
    """Exact McNemar test that two networks err equally often (McNemar 1947); two-sided p."""
    only_a, only_b = (right_a & ~right_b).sum(), (right_b & ~right_a).sum()
    if only_a + only_b == 0:
        return 1.0
    return stats.binomtest(int(only_b), int(only_a + only_b)).pvalue


def gap_recovered(
    teacher: np.ndarray, baseline: np.ndarray, student: np.ndarray
) -> Estimate | None:
    """(student − baseline) / (teacher − baseline), with a bootstrap interval over the images.

    Arguments: (N,) share of the seeds that get each image right. None where the teacher is not
    better than the baseline: there is no gap to recover.
    """
    # Multinomial counts of images are the bootstrap: the accuracies are linear in them.
    if teacher.mean() <= baseline.mean():
        return None
    differences = np.stack([student - baseline, teacher - baseline], 1)
    counts = np.random.default_rng(0).multinomial(
        len(teacher), np.full(len(teacher), 1 / len(teacher)), RESAMPLES
    )
    gained, gap = (counts @ differences).T
    draws = gained / np.where(gap > 0, gap, np.nan)
    value = differences[:, 0].mean() / differences[:, 1].mean()
    if np.isnan(draws).mean() > (1 - LEVEL) / 2:  # the gap itself may be 0
        return Estimate(value)
    low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, low, high)


def agreement(logits: np.ndarray, teacher_logits: np.ndarray) -> float:
    """Share of images where both networks' top classes are the same, in percent."""
    return 100 * (logits.argmax(1) == teacher_logits.argmax(1)).mean()


def kl_to_teacher(logits: np.ndarray, teacher_logits: np.ndarray) -> float:
    """Mean KL(teacher ‖ network) of the outputs at temperature 1, in nats."""
    log_p = special.log_softmax(teacher_logits.astype(float), axis=1)
    log_q = special.log_softmax(logits.astype(float), axis=1)
    return (np.exp(log_p) * (log_p - log_q)).sum(1).mean()


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean of −log p(label), in nats."""
    log_p = special.log_softmax(logits.astype(float), axis=1)
    return -log_p[np.arange(len(labels)), labels].mean()


def brier_score(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared distance of the probabilities from the one-hot label (Brier 1950), 0 to 2."""
    p = special.softmax(logits.astype(float), axis=1)
    p[np.arange(len(labels)), labels] -= 1
    return (p**2).sum(1).mean()


def reliability(
    logits: np.ndarray, labels: np.ndarray, bins: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean confidence, accuracy (0 to 1) and size of bins of equally many images, by confidence."""
    p = special.softmax(logits.astype(float), axis=1)
    confidence, right = p.max(1), p.argmax(1) == labels
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return (
        np.array([confidence[part].mean() for part in parts]),
        np.array([right[part].mean() for part in parts]),
        np.array([len(part) for part in parts]),
    )


def expected_calibration_error(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Mean |accuracy − confidence| over bins of equal mass, in percent (Nguyen, O'Connor 2015)."""
    confidence, accuracy, sizes = reliability(logits, labels, bins)
    return 100 * np.average(np.abs(accuracy - confidence), weights=sizes)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that minimises the NLL of logits / temperature (Guo et al. 2017)."""
    fit = optimize.minimize_scalar(
        lambda log_t: negative_log_likelihood(logits / np.exp(log_t), labels),
        bounds=(-3, 3),
        method="bounded",
    )
    return float(np.exp(fit.x))


def class_errors(labels: np.ndarray, predicted: np.ndarray, classes: int = 10) -> np.ndarray:
    """Share of each class's images that are taken for another, in percent: (C,)."""
    counts = np.bincount(labels, minlength=classes)
    wrong = np.bincount(labels[predicted != labels], minlength=classes)
    return 100 * wrong / np.maximum(counts, 1)


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int = 10) -> np.ndarray:
    """Percent of the images of class i that are taken for class j: (C, C)."""
    counts = np.bincount(labels * classes + predicted, minlength=classes**2)
    counts = counts.reshape(classes, classes)
    return 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)


def coefficient_of_variation(values: np.ndarray) -> float:
    """Standard deviation over mean: how unevenly the errors lie on the classes; 0 if evenly."""
    mean = values.mean()
    return values.std() / mean if mean > 0 else 0.0


def normalised_entropy(values: np.ndarray) -> float:
    """Entropy of the shares of a non-negative vector over its maximum: 1 if all are equal."""
    return stats.entropy(values) / np.log(len(values)) if values.sum() > 0 else 1.0


def permuted_correlation(a: np.ndarray, b: np.ndarray) -> Estimate:
    """Pearson correlation of two vectors, against permutations of one of them (one-sided p).

    The interval is Fisher's.
    """
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return Estimate(np.nan)
    test = stats.pearsonr(
        a, b, alternative="greater",
        method=stats.PermutationMethod(n_resamples=9999, rng=np.random.default_rng(0)),
    )  # fmt: skip
    interval = stats.pearsonr(a, b).confidence_interval(LEVEL)
    return Estimate(test.statistic, interval.low, interval.high, test.pvalue)


def swing(curve: np.ndarray) -> float:
    """Standard deviation of the changes from epoch to epoch after WARMUP_EPOCHS; nan if short."""
    changes = np.diff(curve[WARMUP_EPOCHS:])
    return changes.std(ddof=1) if len(changes) > 2 else np.nan


def sampling_swing(accuracy: float, count: int) -> float:
    """What `swing` would be if `count` fresh images were drawn at every epoch, in points.

    Binomial. The same images are measured every epoch, so chance alone swings less than this.
    """
    share = accuracy / 100
    return 100 * np.sqrt(2 * share * (1 - share) / count)


def first_epoch_at(curve: np.ndarray, level: float) -> float:
    """The first epoch, from 1, at which a curve reaches `level`; nan if it never does."""
    reached = np.flatnonzero(np.asarray(curve) >= level)
    return float(reached[0] + 1) if len(reached) else np.nan


def settled_level(curve: np.ndarray, epochs: int = 5) -> float:
    """The level a curve ends at: the median of its last epochs."""
    return float(np.median(curve[-epochs:]))


def change_point(curve: np.ndarray, margin: int = 3) -> int:
    """The first epoch, from 1, of the later of the two levels that fit a curve best.

    Least squares over all splits (Page 1955; one change in the mean), at least `margin` epochs a
    side, the first WARMUP_EPOCHS left out: every curve rises there.
    """
    curve = np.asarray(curve, float)
    splits = range(WARMUP_EPOCHS + margin, len(curve) - margin + 1)

    def misfit(split: int) -> float:
        parts = curve[WARMUP_EPOCHS:split], curve[split:]
        return sum(((part - part.mean()) ** 2).sum() for part in parts)

    return min(splits, key=misfit) + 1


def within(values: Sequence[float], low: float, high: float) -> tuple[Estimate, float]:
    """Mean with its t-interval, and p of the mean lying outside (low, high).

    Two one-sided t-tests (Schuirmann 1987).
    """
    estimate = over_seeds(values)
    if len(values) < 2:
        return estimate, np.nan
    if np.ptp(values) == 0:
        return estimate, 0.0 if low < values[0] < high else 1.0
    above = stats.ttest_1samp(values, low, alternative="greater").pvalue
    below = stats.ttest_1samp(values, high, alternative="less").pvalue
    return estimate, max(above, below)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjustment (Holm 1979) of several p values; nan stays and is not counted."""
    p = np.asarray(p_values, float)
    adjusted = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return adjusted
