"""The notes' claims C1 to C8, each as one test.

The tests were fixed before any result was looked at, but for three things (results/NOTES.md): which
seeds of the teachers C4 and C8 take, that whole epochs cannot be averaged more finely than one of
them is rounded, and that one seed decides no claim about distillation. What stands beside them as
an aside was added later and decides nothing.

A claim of two parts is supported only if both hold. The p values of an experiment are adjusted
together (Holm), so that among claims that say nothing true, one in twenty times at most any is
found supported or contradicted. A claim without a p, as of a single run, is undecided and not
counted.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from common import stats
from common.records import CLASS_COUNT, Record
from common.stats import Estimate

SHIRT = 6
SIGNIFICANCE = 0.05
NOTES_CHANGE_EPOCH, TOLERANCE, NOTES_EPOCHS = 30, 5, 50  # C8

# Test accuracy at the best test epoch, as the notes print it, and their parameters.
NOTES = {
    "teacher-resnet": (93.67, 1_351_100),
    "baseline": (92.29, 175_000),
    "student-resnet": (93.05, 175_000),
}


@dataclass(frozen=True)
class Trio:
    """Runs paired by seed, student by baseline, and all seeds of the teachers.

    Where Comparison.trio is told so, a control or plain distillation stands in the baselines'
    place, and the students may be baselines of other settings; `experiment` is 0 where it is none
    of the notes'.
    """

    recipe: str
    experiment: int
    teachers: list[Record]
    baselines: list[Record]
    students: list[Record]

    def groups(self) -> dict[str, list[Record]]:
        """Teachers, baselines and students under the names of their rows."""
        return {runs[0].name: runs for runs in (self.teachers, self.baselines, self.students)}

    def students_by_teacher(self) -> Counter[tuple[str, ...]]:
        """How many students each teacher has, or each ensemble, by the digests they recorded."""
        return Counter(student.teacher_digests for student in self.students)

    def pairs(self) -> list[tuple[Record, Record]]:
        return list(zip(self.baselines, self.students, strict=True))

    def threes(self) -> list[tuple[Record, Record, Record]]:
        """(teacher, baseline, student) of each seed whose teacher is among the runs."""
        teachers = {teacher.weights_sha256: teacher for teacher in self.teachers}
        return [
            (teachers[digest], base, student)
            for base, student in self.pairs()
            if (digest := "+".join(student.teacher_digests)) in teachers
        ]


POSITIVE, NEGATIVE = (0.0, math.inf), (-math.inf, 0.0)


@dataclass(frozen=True)
class Part:
    """One statistic of a claim, and between which bounds the claim says it lies."""

    statistic: str
    estimate: Estimate
    claimed: tuple[float, float] = POSITIVE
    aside: str = ""  # what else was measured, in words; not tested

    @property
    def as_claimed(self) -> bool:
        low, high = self.claimed
        return low < self.estimate.value < high


@dataclass(frozen=True)
class Verdict:
    parts: list[Part]
    p: float  # after Holm's adjustment

    @property
    def word(self) -> str:
        if not self.p < SIGNIFICANCE:  # nan, too
            return "undecided"
        return "supported" if all(part.as_claimed for part in self.parts) else "contradicted"


def _difference(trio: Trio, value: Callable[[Record], float], grid: float = 0.0) -> Estimate:
    """Student − baseline, paired by seed."""
    return stats.over_seeds([value(student) - value(base) for base, student in trio.pairs()], grid)


# f(images, wrong) of numbers (..., 10) by class
ClassStatistic = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _paired(trio: Trio, statistic: ClassStatistic, grid: float = 0.0) -> Estimate:
    """Student − baseline of a statistic: over the seeds, or with one seed over the images."""

    def difference(counts: np.ndarray) -> np.ndarray:
        """counts: (..., 10, 2, 2) images by class, baseline right, student right."""
        images = counts.sum((-2, -1))
        base_wrong, student_wrong = counts[..., 0, :].sum(-1), counts[..., :, 0].sum(-1)
        return statistic(images, student_wrong) - statistic(images, base_wrong)

    counts = [
        np.bincount(
            4 * base.labels + 2 * base.right + student.right, minlength=4 * CLASS_COUNT
        ).reshape(CLASS_COUNT, 2, 2)
        for base, student in trio.pairs()
    ]
    if len(counts) == 1:
        return stats.over_images(difference, counts[0])
    return stats.over_seeds([float(difference(each)) for each in counts], grid)


def gain(trio: Trio) -> Estimate:
    """Test accuracy of student − baseline in points, at the epochs chosen on held-out images."""
    return _paired(
        trio,
        lambda images, wrong: 100 * (1 - wrong.sum(-1) / images.sum(-1)),
        grid=100 / len(trio.baselines[0].labels),
    )


def gain_at_best_test_epoch(trio: Trio) -> Estimate:
    """Test accuracy of student − baseline in points, at the notes' epochs: each run's best."""
    return _difference(trio, lambda run: run.log["test_accuracy"].max())


def gain_at_last_epoch(trio: Trio) -> Estimate:
    """Test accuracy of student − baseline in points, where no epoch was chosen."""
    return _difference(trio, lambda run: run.log["test_accuracy"].iloc[-1])


def p_in_words(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _aside(measured: dict[str, Estimate]) -> str:
    """In words what else was measured; of several seeds with its p, which nothing adjusts."""
    return ", ".join(
        f"{name} {value:+.2f}" + ("" if math.isnan(p) else f" (p by itself {p_in_words(p)})")
        for name, (value, _, _, p, _) in measured.items()
        if not math.isnan(value)
    )


def _last_third(curve: np.ndarray) -> np.ndarray:
    """Of its epochs: there a rate that falls has fallen, and curves are level."""
    return curve[len(curve) * 2 // 3 :]


def _log_ratio(a: float, b: float) -> float:
    return math.log(a / b) if a > 0 and b > 0 else math.nan


def faster(trio: Trio) -> list[Part]:
    def saved(base: Record, student: Record) -> float:
        curves = [run.log["val_accuracy"].to_numpy() for run in (base, student)]
        # A level that both reach. The baseline's own would be unfair to the student: the baseline
        # is sure to reach it, and a student that is no worse but by chance is not.
        level = min(map(stats.settled_level, curves))
        return stats.first_epoch_at(curves[0], level) - stats.first_epoch_at(curves[1], level)

    area = _difference(trio, lambda run: run.log["val_accuracy"].mean())
    runs = [*trio.baselines, *trio.students]
    level = math.floor(min(run.log["val_accuracy"].max() for run in runs))
    reached = _difference(
        trio, lambda run: -stats.first_epoch_at(run.log["val_accuracy"].to_numpy(), level), grid=1
    )

    def nearly_settled(run: Record) -> float:
        """The epoch; whoever ends higher gains nothing by that."""
        curve = run.log["val_accuracy"].to_numpy()
        return stats.first_epoch_at(curve, stats.settled_level(curve) - 1)

    others = {
        f"at {level} %, which all runs reach,": reached,
        "at 1 point below its own final level": _difference(
            trio, lambda run: -nearly_settled(run), grid=1
        ),
    }
    return [
        Part(
            "epochs that the student is earlier at the lower of both final held-out accuracies",
            stats.over_seeds([saved(*pair) for pair in trio.pairs()], grid=1),
            aside=_aside(others),
        ),
        Part("held-out accuracy, mean over all epochs, student − baseline, points", area),
    ]


def _swing_ratio(
    trio: Trio, column: str, relative: bool, order: int = 1, end: bool = False
) -> Estimate:
    """end: of the last third of the epochs alone, and relative to the mean there."""

    def swing(run: Record) -> float:
        curve, start = run.log[column].to_numpy(), stats.WARMUP_EPOCHS
        if end:
            curve, start = _last_third(curve), 0
        return stats.swing(curve / curve.mean() if relative else curve, start, order)

    return stats.over_seeds([_log_ratio(swing(s), swing(b)) for b, s in trio.pairs()])


def steadier(trio: Trio) -> list[Part]:
    others = {
        "blind to the loss's descent": _swing_ratio(trio, "train_loss", relative=True, order=2),
        "of the hard loss alone": _swing_ratio(trio, "train_hard_loss", relative=True),
        "in the last third of the epochs": _swing_ratio(trio, "train_loss", True, end=True),
    }
    return [
        Part(
            "swing of the training loss relative to its mean, natural log of student / baseline",
            _swing_ratio(trio, "train_loss", relative=True),
            aside=_aside(others),
        ),
        Part(
            "swing of held-out accuracy, natural log of student / baseline",
            _swing_ratio(trio, "val_accuracy", relative=False),
            claimed=NEGATIVE,
        ),
    ]


def better(trio: Trio) -> list[Part]:
    train = _difference(trio, lambda run: run.best_row["train_accuracy"])
    last = _difference(trio, lambda run: run.log["train_accuracy"].iloc[-1])
    return [
        Part(
            "train accuracy, student − baseline, points",
            train,
            aside=_aside({"at the last epoch": last}),
        ),
        Part("test accuracy, student − baseline, points", gain(trio)),
    ]


def _mean_correlation(pairs: Iterable[tuple[Record, Record]]) -> float:
    """Of the class errors of two runs."""
    return np.mean([stats.correlation(a.class_errors, b.class_errors) for a, b in pairs])


def alike(trio: Trio) -> list[Part]:
    both = trio.teachers, trio.baselines
    errors = [np.mean([run.class_errors for run in runs], axis=0) for runs in both]
    matrices = [np.mean([run.confusion for run in runs], axis=0) for runs in both]
    off_diagonal = ~np.eye(CLASS_COUNT, dtype=bool)
    confusions = stats.correlation(*(matrix[off_diagonal] for matrix in matrices))
    asides = {"over the 90 confusions": f"{confusions:.2f}"}
    if len(trio.baselines) > 1:
        with_teacher = _mean_correlation(itertools.product(trio.teachers, trio.baselines))
        with_baseline = _mean_correlation(itertools.combinations(trio.baselines, 2))
        asides |= {"one run each": f"{with_teacher:.3f}", "two baselines": f"{with_baseline:.3f}"}
    return [
        Part(
            "correlation of teacher's and baseline's errors over the classes",
            stats.permuted_correlation(*errors),
            # nan: the errors of a run are the same in all classes, as where there are none.
            aside=", ".join(f"{name}: {r}" for name, r in asides.items() if r != "nan"),
        )
    ]


def class_error_change(trio: Trio, label: int) -> Estimate:
    """Errors on the images of a class, student − baseline, in percent of the class."""
    count = max(1, (trio.baselines[0].labels == label).sum())
    return _paired(
        trio,
        lambda images, wrong: 100 * wrong[..., label] / np.maximum(images[..., label], 1),
        grid=100 / count,
    )


def fewer_shirts(trio: Trio) -> list[Part]:
    change = class_error_change(trio, SHIRT)
    return [Part("errors on class 6 (Shirt), student − baseline, points", change, claimed=NEGATIVE)]


def more_even(trio: Trio) -> list[Part]:
    estimate = _paired(
        trio,
        lambda images, wrong: stats.coefficient_of_variation(wrong / np.maximum(images, 1)),
    )
    entropy = _difference(trio, lambda run: stats.normalised_entropy(run.class_errors))
    return [
        Part(
            "coefficient of variation of the error rates of the classes, student − baseline",
            estimate,
            claimed=NEGATIVE,
            aside=f"normalised entropy: {entropy.value:+.3f}",
        )
    ]


def oscillates(trio: Trio) -> list[Part]:
    def excess(end: bool) -> Estimate:
        ratios = []
        for run in trio.baselines:
            curve = run.log["val_accuracy"].to_numpy()
            chance = stats.sampling_swing(stats.settled_level(curve), len(run.val_labels))
            swing = stats.swing(_last_third(curve), 0) if end else stats.swing(curve)
            ratios.append(_log_ratio(swing, chance))
        return stats.over_seeds(ratios)

    return [
        Part(
            "swing of the baseline's held-out accuracy, natural log of swing / chance",
            excess(end=False),
            aside=_aside({"in the last third of the epochs": excess(end=True)}),
        )
    ]


def settles(trio: Trio) -> list[Part]:
    curves = [run.log["val_accuracy"].to_numpy() for run in trio.teachers]
    points = [stats.change_point(curve) for curve in curves]
    where = (
        f"epoch of {NOTES_EPOCHS} where the teacher's held-out accuracy changes level, "
        f"claimed {NOTES_CHANGE_EPOCH} ± {TOLERANCE}"
    )
    claimed = NOTES_CHANGE_EPOCH - TOLERANCE, NOTES_CHANGE_EPOCH + TOLERANCE
    if np.isnan(points).any():
        return [Part(where, Estimate(math.nan), claimed, aside="the runs are too short")]
    halves = [
        np.split(curve, [int(point) - 1]) for curve, point in zip(curves, points, strict=True)
    ]
    scale = [NOTES_EPOCHS / len(curve) for curve in curves]
    epoch = stats.within(np.multiply(points, scale), *claimed, grid=max(scale))
    rise = [after.mean() - before[stats.WARMUP_EPOCHS :].mean() for before, after in halves]
    calm = [_log_ratio(stats.swing(after, 0), stats.swing(before)) for before, after in halves]
    return [
        Part(where, epoch, claimed),
        Part("by how much it rises there, points", stats.over_seeds(rise)),
        Part(
            "its swing from there on, natural log of after / before",
            stats.over_seeds(calm),
            claimed=NEGATIVE,
        ),
    ]


# id: (what the notes claim, how it is tested, the test)
CLAIMS: dict[str, tuple[str, str, Callable[[Trio], list[Part]]]] = {
    "C1": (
        "The distilled network converges faster than the same network trained alone.",
        "A run's final level is the median of its last five held-out accuracies. Counted is how "
        "many epochs earlier than the baseline the student first reaches the lower of the two "
        "final levels, the one that both reach; and by how much its curve lies above the "
        "baseline's, mean over all epochs. Both must hold. Final levels are those of a plateau, "
        "where chance decides which epoch is the first: beside it stands by how many epochs the "
        "student is earlier at the highest whole percent that all runs reach.",
        faster,
    ),
    "C2": (
        "Its training loss is less stable than the baseline's, yet its validation accuracy is "
        "steadier.",
        "Swing is the standard deviation of the changes from one epoch to the next, the first "
        "five epochs left out; that of the loss is divided by its mean over all epochs. Both "
        "halves must hold. A loss that still falls swings by falling, too, and the student's has "
        "a part that the baseline's has not: beside it stands what is left without the descent, "
        "measured by the changes of the changes, the swing of the part that both have, and that of "
        "the last third of the epochs.",
        steadier,
    ),
    "C3": (
        "It fits the training set better and generalises better.",
        "Accuracies at the epoch chosen on held-out images, paired by seed; train accuracy is that "
        "of the augmented images while they were trained on. Both halves must hold.",
        better,
    ),
    "C4": (
        "Teacher and baseline make strikingly alike errors, class by class.",
        "Pearson correlation of the error rates of the ten classes, means over seeds, against all "
        "ways to permute the classes of one of them (9,999 drawn: p is at least 0.0002 before its "
        "adjustment). Test and interval (Fisher's) are over the ten classes: they say nothing "
        "of other seeds. Beside it stand the means over all pairs of a teacher's run and a "
        "baseline's, and of two baselines' runs: so much alike any two networks are.",
        alike,
    ),
    "C5": (
        "After distillation, errors on class 6 (Shirt) drop clearly.",
        "Share of the Shirt test images taken for something else, paired by seed.",
        fewer_shirts,
    ),
    "C6": (
        "The student's errors are spread more evenly over the classes than the baseline's.",
        "Standard deviation over mean of the error rates of the ten classes, paired by seed. "
        "Beside it the change of the entropy of the classes' shares of all errors, 1 where even.",
        more_even,
    ),
    "C7": (
        "The baseline's accuracy oscillates strongly.",
        "Strongly means: more than if every epoch were measured on fresh images by an unchanging "
        "network (binomial). Swing as in C2; beside it that of the last third of the epochs.",
        oscillates,
    ),
    "C8": (
        "The teacher leaves a local minimum around epoch 30 of 50 and is stable from there.",
        "The split of the held-out curve into two levels that fits best must lie within five "
        "epochs of epoch 30 of 50 (two one-sided tests), the second level must be the higher "
        "one, and the swing must be smaller after the split than before it.",
        settles,
    ),
}


def _p(parts: list[Part]) -> float:
    """p of the whole claim: all parts hold (the largest p), or one does not (Bonferroni).

    nan where a part's p is: what cannot be tested is left undecided.
    """
    p = np.array([part.estimate.p for part in parts])
    against = np.array([not part.as_claimed for part in parts])
    if np.isnan(p).any():
        return math.nan
    return min(1.0, p[against].min() * len(parts)) if against.any() else p.max()


def judge(trio: Trio) -> dict[str, Verdict]:
    """A verdict on each claim. Needs runs of all three networks."""
    parts = {claim: test(trio) for claim, (_, _, test) in CLAIMS.items()}
    adjusted = stats.holm([_p(each) for each in parts.values()])
    return dict(zip(parts, map(Verdict, parts.values(), adjusted), strict=True))
