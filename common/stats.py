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
MARGIN = 5  # epochs on either side of a change of level


class Estimate(NamedTuple):
    """A value, its 95 % interval, and the two-sided p of the value being 0; nan if unknown."""

    value: float
    low: float = np.nan
    high: float = np.nan
    p: float = np.nan
    over: str = "seeds"  # what interval and p are over: seeds, images or classes


def over_seeds(values: Sequence[float], grid: float = 0.0) -> Estimate:
    """Mean of one value a seed, with Student's t-interval and t-test against 0.

    grid: the values are multiples of it, such as whole epochs. Then their mean's error is at least
    that of one value's rounding, grid / √12, as all seeds may be rounded alike; else two that
    happen to agree would be proof of anything. Without a grid, no spread means no interval, no p.
    """
    values = np.asarray(values, float)
    count = len(values)
    if count < 2 or np.isnan(values).any():
        return Estimate(values.mean())
    spread = 0.0 if np.ptp(values) < 1e-9 else values.std(ddof=1)  # alike but for rounding
    error = max(spread / np.sqrt(count), grid / np.sqrt(12))
    mean = values.mean()
    if error == 0:
        return Estimate(mean)
    p = 2 * stats.t.sf(abs(mean) / error, count - 1)
    return Estimate(mean, *stats.t.interval(LEVEL, count - 1, mean, error), p)


def resampled(counts: np.ndarray) -> np.ndarray:
    """Bootstrap resamples (RESAMPLES, ...) of the numbers of images of each kind (...).

    Images of one kind are alike to a statistic, so drawing images with replacement is drawing
    the sizes of the kinds from a multinomial distribution.
    """
    draws = np.random.default_rng(0).multinomial(
        counts.sum(), counts.ravel() / counts.sum(), RESAMPLES
    )
    return draws.reshape(RESAMPLES, *counts.shape)


def over_images(statistic: Callable[[np.ndarray], np.ndarray], counts: np.ndarray) -> Estimate:
    """A statistic with a percentile bootstrap interval over test images (Efron, Tibshirani 1993).

    counts: numbers of images of each kind (...); statistic: of (R, ...) such numbers, (R,). This
    is what one seed can tell: how sure the test images make it, not how other seeds differ; so
    there is no p. Draws without a value (nan) lie beyond either end; where they are more than may,
    there is no interval.
    """
    value, draws = float(statistic(counts[None])[0]), statistic(resampled(counts))
    beyond, tail = np.isnan(draws), (1 - LEVEL) / 2
    if beyond.mean() > tail:
        return Estimate(value, over="images")
    low = np.quantile(np.where(beyond, -np.inf, draws), tail, method="inverted_cdf")
    high = np.quantile(np.where(beyond, np.inf, draws), 1 - tail, method="inverted_cdf")
    return Estimate(value, low, high, over="images")


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> float:
    """Exact McNemar test that two networks err equally often (McNemar 1947); two-sided p."""
    only_a, only_b = (right_a & ~right_b).sum(), (right_b & ~right_a).sum()
    if only_a + only_b == 0:
        return 1.0
    return stats.binomtest(int(only_b), int(only_a + only_b)).pvalue


def gap_over_images(teacher: np.ndarray, baseline: np.ndarray, student: np.ndarray) -> Estimate:
    """Of one seed: (student − baseline) / (teacher − baseline), with a bootstrap over the images.

    Arguments: `right` arrays, the teacher's better than the baseline's.
    """

    def share(counts: np.ndarray) -> np.ndarray:
        """counts: (R, 2, 2, 2) images, teacher right, baseline right, student right."""
        t, b, s = counts[:, 1].sum((1, 2)), counts[:, :, 1].sum((1, 2)), counts[..., 1].sum((1, 2))
        return (s - b) / np.where(t > b, t - b, np.nan)

    kinds = 4 * teacher + 2 * baseline + student
    return over_images(share, np.bincount(kinds, minlength=8).reshape(2, 2, 2))


def ratio_over_seeds(numerators: np.ndarray, denominators: np.ndarray) -> Estimate:
    """Ratio of the means of two values a seed, paired, with Fieller's interval (Fieller 1954).

    The interval holds each ratio r for which a t-test does not tell the mean of
    numerators − r · denominators from 0. It has no bounds, and is left out, with one seed, where
    all seeds have the same ratio, and where the mean denominator may be 0.
    """
    a, b = np.mean(numerators), np.mean(denominators)
    value, count = a / b, len(numerators)
    if count < 2 or np.ptp(numerators - value * denominators) < 1e-9:
        return Estimate(value)
    errors = np.cov(numerators, denominators) / count
    (aa, ab), (_, bb) = errors * stats.t.ppf((1 + LEVEL) / 2, count - 1) ** 2
    square, half, rest = b * b - bb, a * b - ab, a * a - aa  # of r, from the test's bound
    if square <= 0:
        return Estimate(value)
    reach = np.sqrt(max(half * half - square * rest, 0.0))
    return Estimate(value, (half - reach) / square, (half + reach) / square)


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


def expected_calibration_error(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean |accuracy − confidence| over bins of equal mass, in percent (Nguyen, O'Connor 2015)."""
    confidence, accuracy, sizes = reliability(logits, labels)
    return 100 * np.average(np.abs(accuracy - confidence), weights=sizes)


def chance_calibration_error(logits: np.ndarray, labels: np.ndarray) -> float:
    """About what that error would be, in percent, of a network whose confidences are all true.

    Only by how many of so few images it happens to get right, normally distributed.
    """
    confidence, _, sizes = reliability(logits, labels)
    deviation = np.sqrt(confidence * (1 - confidence) / sizes)
    return 100 * np.average(np.sqrt(2 / np.pi) * deviation, weights=sizes)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that minimises the NLL of logits / temperature (Guo et al. 2017)."""
    fit = optimize.minimize_scalar(
        lambda log_t: negative_log_likelihood(logits / np.exp(log_t), labels),
        bounds=(-3, 3),
        method="bounded",
    )
    return float(np.exp(fit.x))


def class_errors(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Share of each class's images that are taken for another, in percent: (10,)."""
    counts = np.bincount(labels, minlength=10)
    wrong = np.bincount(labels[predicted != labels], minlength=10)
    return 100 * wrong / np.maximum(counts, 1)


def confusion(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Percent of the images of class i that are taken for class j: (10, 10)."""
    counts = np.bincount(10 * labels + predicted, minlength=100).reshape(10, 10)
    return 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)


def coefficient_of_variation(values: np.ndarray) -> np.ndarray:
    """Standard deviation over mean, (..., C) to (...); 0 where the mean is 0."""
    mean = values.mean(-1)
    return values.std(-1) / np.where(mean > 0, mean, 1)


def normalised_entropy(values: np.ndarray) -> float:
    """Entropy of the shares of a non-negative vector over its maximum: 1 if all are equal."""
    return stats.entropy(values, base=len(values)) if values.sum() > 0 else 1.0


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of two vectors; nan if one is constant."""
    return stats.pearsonr(a, b).statistic if np.ptp(a) > 0 and np.ptp(b) > 0 else np.nan


def permuted_correlation(a: np.ndarray, b: np.ndarray) -> Estimate:
    """Pearson correlation of two vectors, against permutations of one of them (two-sided p).

    The interval is Fisher's. Both take the vectors' entries for a sample.
    """
    if np.isnan(correlation(a, b)):
        return Estimate(np.nan)
    method = stats.PermutationMethod(n_resamples=9999, rng=np.random.default_rng(0))
    test = stats.pearsonr(a, b, method=method)
    interval = test.confidence_interval(LEVEL)
    return Estimate(test.statistic, interval.low, interval.high, test.pvalue, over="classes")


def swing(curve: np.ndarray, start: int = WARMUP_EPOCHS, order: int = 1) -> float:
    """Standard deviation of the changes from epoch to epoch after the first `start`.

    order: 2 takes the changes of the changes, which a curve's slow rise or fall hardly moves,
    scaled to give the same for a level curve with independent noise. nan for fewer than three.
    """
    changes = np.diff(curve[start:], order)
    return changes.std(ddof=1) / np.sqrt(2 * order - 1) if len(changes) > 2 else np.nan


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


def settled_level(curve: np.ndarray) -> float:
    """The level a curve ends at: the median of its last five epochs."""
    return float(np.median(curve[-5:]))


def change_point(curve: np.ndarray) -> float:
    """The first epoch, from 1, of the later of the two levels that fit a curve best.

    Least squares over all splits (one change in the mean), at least MARGIN epochs a side, the
    first WARMUP_EPOCHS left out: every curve rises there. nan for a curve too short for that.
    """
    curve = np.asarray(curve, float)

    def misfit(split: int) -> float:
        parts = curve[WARMUP_EPOCHS:split], curve[split:]
        return sum(((part - part.mean()) ** 2).sum() for part in parts)

    splits = range(WARMUP_EPOCHS + MARGIN, len(curve) - MARGIN + 1)
    return float(min(splits, key=misfit) + 1) if splits else np.nan


def within(values: Sequence[float], low: float, high: float, grid: float = 0.0) -> Estimate:
    """Mean of one value a seed with its t-interval, and p for which side of the bounds it is on.

    Inside: p is below 0.05 where the interval lies within (low, high) whole, which is two
    one-sided tests (Schuirmann 1987) at half the level. Outside: where it lies beyond, whole.
    """
    values = np.asarray(values, float)
    nearer = max(over_seeds(values - bound, grid).p for bound in (low, high))
    return over_seeds(values, grid)._replace(p=nearer)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjustment (Holm 1979) of several p values; nan stays and is not counted."""
    p = np.asarray(p_values, float)
    adjusted = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return adjusted
