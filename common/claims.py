"""The notes' claims C1 to C8, each as one test that was fixed before any result was looked at.

A claim of two parts is supported only if both hold. The eight p values of an experiment are
adjusted together (Holm), so that among eight claims that say nothing true, one in twenty times any
is found supported or contradicted.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from common import stats
from common.records import Record
from common.stats import Estimate

SHIRT = 6
SIGNIFICANCE = 0.05
NOTES_CHANGE_EPOCH, NOTES_EPOCHS, TOLERANCE = 30, 50, 0.1  # C8; tolerance as share of the epochs


@dataclass(frozen=True)
class Trio:
    """The runs of one experiment: baselines and students paired by seed; teachers as they are."""

    recipe: str
    experiment: int
    teachers: list[Record]
    baselines: list[Record]
    students: list[Record]

    def pairs(self) -> list[tuple[Record, Record]]:
        return list(zip(self.baselines, self.students, strict=True))


@dataclass(frozen=True)
class Part:
    """One statistic of a claim, and the sign that the claim says it has."""

    statistic: str
    estimate: Estimate
    sign: int = 1

    @property
    def as_claimed(self) -> bool:
        return self.sign * self.estimate.value > 0


@dataclass(frozen=True)
class Verdict:
    claim: str
    text: str
    how: str
    parts: list[Part]
    p: float  # after Holm's adjustment
    word: str  # supported, contradicted or undecided


def _difference(trio: Trio, value: Callable[[Record], float]) -> Estimate:
    """Student − baseline, paired by seed."""
    return stats.over_seeds([value(student) - value(base) for base, student in trio.pairs()])


def _paired(
    trio: Trio,
    statistic: Callable[[np.ndarray, np.ndarray], float],
) -> Estimate:
    """Student − baseline of f(labels, predicted): over the seeds, or with one over the images."""

    def difference(labels: np.ndarray, base: np.ndarray, student: np.ndarray) -> float:
        return statistic(labels, student) - statistic(labels, base)

    arrays = [
        (base.labels, base.logits.argmax(1), student.logits.argmax(1))
        for base, student in trio.pairs()
    ]
    values = [difference(*each) for each in arrays]
    return (
        stats.over_seeds(values)
        if len(values) > 1
        else stats.over_images(difference, arrays[0], values[0])
    )


def gain(trio: Trio) -> Estimate:
    """Test accuracy of student − baseline in points, at the epochs chosen on held-out images."""
    return _paired(trio, lambda labels, predicted: 100 * (predicted == labels).mean())


def _log_ratio(a: float, b: float) -> float:
    return math.log(a / b) if a > 0 and b > 0 else math.nan


def faster(trio: Trio) -> list[Part]:
    def saved(base: Record, student: Record) -> float:
        level = stats.settled_level(base.log["val_accuracy"])
        epoch = stats.first_epoch_at(student.log["val_accuracy"], level)
        if math.isnan(epoch):  # it never gets there within its epochs
            epoch = len(student.log) + 1
        return stats.first_epoch_at(base.log["val_accuracy"], level) - epoch

    area = _difference(trio, lambda run: run.log["val_accuracy"].mean())
    return [
        Part(
            "epochs saved until held-out accuracy first reaches the baseline's final level "
            f"(mean over all epochs: {area.value:+.2f} points)",
            stats.over_seeds([saved(*pair) for pair in trio.pairs()]),
        )
    ]


def _swing_ratio(trio: Trio, column: str, relative: bool) -> Estimate:
    def swing(run: Record) -> float:
        curve = run.log[column].to_numpy()
        return stats.swing(curve / curve.mean() if relative else curve)

    return stats.over_seeds([_log_ratio(swing(s), swing(b)) for b, s in trio.pairs()])


def steadier(trio: Trio) -> list[Part]:
    return [
        Part(
            "swing of the training loss relative to its mean, log of student / baseline",
            _swing_ratio(trio, "train_loss", relative=True),
        ),
        Part(
            "swing of held-out accuracy, log of student / baseline",
            _swing_ratio(trio, "val_accuracy", relative=False),
            sign=-1,
        ),
    ]


def better(trio: Trio) -> list[Part]:
    train = _difference(trio, lambda run: run.best_row["train_accuracy"])
    return [
        Part("train accuracy, student − baseline, points", train),
        Part("test accuracy, student − baseline, points", gain(trio)),
    ]


def _mean_class_errors(runs: list[Record]) -> np.ndarray:
    return np.mean([stats.class_errors(r.labels, r.logits.argmax(1)) for r in runs], axis=0)


def alike(trio: Trio) -> list[Part]:
    errors = [_mean_class_errors(runs) for runs in (trio.teachers, trio.baselines)]
    matrices = [
        np.mean([stats.confusion(r.labels, r.logits.argmax(1)) for r in runs], axis=0)
        for runs in (trio.teachers, trio.baselines)
    ]
    off_diagonal = ~np.eye(len(matrices[0]), dtype=bool)
    pairs = np.corrcoef(*(matrix[off_diagonal] for matrix in matrices))[0, 1]
    return [
        Part(
            "correlation of teacher's and baseline's errors over the classes "
            f"(over the 90 confusions: {pairs:.2f})",
            stats.permuted_correlation(*errors),
        )
    ]


def class_error_change(trio: Trio, label: int) -> Estimate:
    """Errors on the images of a class, student − baseline, in percent of the class."""
    return _paired(trio, lambda labels, predicted: stats.class_errors(labels, predicted)[label])


def fewer_shirts(trio: Trio) -> list[Part]:
    change = class_error_change(trio, SHIRT)
    return [Part("errors on class 6 (Shirt), student − baseline, points", change, sign=-1)]


def more_even(trio: Trio) -> list[Part]:
    estimate = _paired(
        trio,
        lambda labels, predicted: stats.coefficient_of_variation(
            stats.class_errors(labels, predicted)
        ),
    )
    entropy = _difference(
        trio,
        lambda run: stats.normalised_entropy(stats.class_errors(run.labels, run.logits.argmax(1))),
    )
    return [
        Part(
            "coefficient of variation of the error rates of the classes, student − baseline "
            f"(normalised entropy: {entropy.value:+.3f})",
            estimate,
            sign=-1,
        )
    ]


def oscillates(trio: Trio) -> list[Part]:
    def excess(run: Record) -> float:
        curve = run.log["val_accuracy"].to_numpy()
        chance = stats.sampling_swing(curve[stats.WARMUP_EPOCHS :].mean(), len(run.val_labels))
        return _log_ratio(stats.swing(curve), chance)

    estimate = stats.over_seeds([excess(run) for run in trio.baselines])
    return [Part("swing of the baseline's held-out accuracy, log of swing / chance", estimate)]


def settles(trio: Trio) -> list[Part]:
    curves = [run.log["val_accuracy"].to_numpy() for run in trio.teachers]
    epochs = max(map(len, curves))
    if min(map(len, curves)) < 2 * stats.WARMUP_EPOCHS + 6:
        return [Part("epoch of change (the runs are too short)", Estimate(math.nan))]
    points = [stats.change_point(curve) for curve in curves]
    target, margin = epochs * NOTES_CHANGE_EPOCH / NOTES_EPOCHS, epochs * TOLERANCE
    estimate, p_outside = stats.within(points, target - margin, target + margin)
    distance = abs(estimate.value - target)
    # As claimed: near epoch 30. The sign of `margin − distance` says so; p is of what it says.
    beyond = [abs(point - target) - margin for point in points]
    p = p_outside if distance < margin else stats.over_seeds(beyond).p
    calm = [
        _log_ratio(curve[point - 1 :].std(ddof=1), curve[stats.WARMUP_EPOCHS : point - 1].std())
        for curve, point in zip(curves, points, strict=True)
    ]
    return [
        Part(
            f"epoch where the teacher's held-out accuracy changes level, claimed {target:.0f}"
            f" ± {margin:.0f}",
            estimate._replace(p=p),
            sign=1 if distance < margin else -1,
        ),
        Part("its spread from there on, log of after / before", stats.over_seeds(calm), sign=-1),
    ]


# id: (what the notes claim, how it is tested, the test)
CLAIMS: dict[str, tuple[str, str, Callable[[Trio], list[Part]]]] = {
    "C1": (
        "The distilled network converges faster than the same network trained alone.",
        "The baseline's final level is the median of its last five held-out accuracies. Counted "
        "is how many epochs earlier than the baseline the student first reaches it.",
        faster,
    ),
    "C2": (
        "Its training loss is less stable than the baseline's, yet its validation accuracy is "
        "steadier.",
        "Swing is the standard deviation of the changes from one epoch to the next, the first "
        "five epochs left out; that of the loss is divided by the mean loss. Both halves must "
        "hold.",
        steadier,
    ),
    "C3": (
        "It fits the training set better and generalises better.",
        "Accuracies at the epoch chosen on held-out images, paired by seed. Both halves must hold.",
        better,
    ),
    "C4": (
        "Teacher and baseline make strikingly alike errors, class by class.",
        "Pearson correlation of the error rates of the ten classes, mean over seeds, against all "
        "ways to permute the classes of one of them (9,999 drawn).",
        alike,
    ),
    "C5": (
        "After distillation, errors on class 6 (Shirt) drop clearly.",
        "Share of the Shirt test images taken for something else, paired by seed.",
        fewer_shirts,
    ),
    "C6": (
        "The student's errors are spread more evenly over the classes than the baseline's.",
        "Standard deviation over mean of the error rates of the ten classes, paired by seed.",
        more_even,
    ),
    "C7": (
        "The baseline's accuracy oscillates strongly.",
        "Strongly means: more than if every epoch were measured on fresh images by an unchanging "
        "network (binomial). Swing as in C2.",
        oscillates,
    ),
    "C8": (
        "The teacher leaves a local minimum around epoch 30 of 50 and is stable from there.",
        "The split of the held-out curve into two levels that fits best must lie within a tenth "
        "of the epochs of epoch 30 of 50 (two one-sided tests), and the spread must be smaller "
        "after it than before.",
        settles,
    ),
}


def _p(parts: list[Part]) -> float:
    """p of the whole claim: all parts hold (the largest p), or one does not (Bonferroni)."""
    against = [part.estimate.p for part in parts if not part.as_claimed]
    if any(math.isnan(part.estimate.value) for part in parts):
        return math.nan
    if against:
        return float(np.minimum(1, np.min(against) * len(parts)))
    return float(np.max([part.estimate.p for part in parts]))


def judge(trio: Trio) -> list[Verdict]:
    """A verdict on each claim. Needs runs of all three networks."""
    parts = {claim: test(trio) for claim, (_, _, test) in CLAIMS.items()}
    adjusted = stats.holm([_p(each) for each in parts.values()])
    verdicts = []
    for (claim, each), p in zip(parts.items(), adjusted, strict=True):
        word = "undecided"
        if p < SIGNIFICANCE:
            word = "supported" if all(part.as_claimed for part in each) else "contradicted"
        text, how, _ = CLAIMS[claim]
        verdicts.append(Verdict(claim, text, how, each, p, word))
    return verdicts
