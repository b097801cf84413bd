"""The claims' verdicts on made-up runs, whose truth is known."""

import math
import re
from dataclasses import replace

import fake
import numpy as np
import pytest
import scipy.stats
from fake import ERRORS, beside

from common import claims, stats
from common.claims import NEGATIVE, Part, judge
from common.stats import Estimate

ABOUT_THE_STUDENT = ("C1", "C2", "C3", "C5", "C6")
TRIALS = 200


def verdict(claim, seeds=5, **options):
    return judge(fake.trio(seeds, **options))[claim]


def with_shirts(share):
    errors = ERRORS.copy()
    errors[claims.SHIRT] = share
    return errors


# ---------------------------------------------------------------- effects that are there

# What one network has that the other has not. The first is what the claim says of the student.
EFFECTS = {
    "C1": ({"speed": 1.5}, {"speed": 5.0}),
    "C2": ({"loss_swing": 0.1, "swing": 0.1}, {"loss_swing": 0.01, "swing": 0.5}),
    "C3": ({"errors": 0.7 * ERRORS}, {"errors": ERRORS}),
    "C5": ({"errors": with_shirts(0.15)}, {"errors": with_shirts(0.25)}),
    "C6": ({"errors": 0.5 * ERRORS + 0.04}, {"errors": ERRORS}),
}


@pytest.mark.parametrize("claim", EFFECTS)
def test_an_effect_that_is_there_is_supported(claim):
    student, baseline = EFFECTS[claim]
    assert verdict(claim, student=student, baseline=baseline).word == "supported"


@pytest.mark.parametrize("claim", EFFECTS)
def test_the_opposite_effect_is_contradicted(claim):
    baseline, student = EFFECTS[claim]
    assert verdict(claim, student=student, baseline=baseline).word == "contradicted"


@pytest.mark.parametrize("claim", EFFECTS)
def test_noise_is_undecided(claim):
    assert verdict(claim).word == "undecided"


@pytest.mark.parametrize("claim", ["C2", "C3"])
def test_half_a_claim_is_not_the_claim(claim):
    half = {"C2": {"loss_swing": 0.1}, "C3": {"errors": 0.7 * ERRORS}}[claim]
    trio = fake.trio(5, student=half)
    if claim == "C3":  # better on the test images alone
        for base, student in trio.pairs():
            student.log["train_accuracy"] = base.log["train_accuracy"]
    found = judge(trio)[claim]
    assert found.word == "undecided"
    assert sum(part.estimate.p < 0.01 for part in found.parts) == 1


def test_c4_teacher_and_baseline_that_err_on_the_same_classes_are_alike():
    found = verdict("C4")
    assert found.word == "supported" and found.parts[0].estimate.value > 0.9
    assert found.parts[0].aside.startswith("over the 90 confusions: 0.9")


@pytest.mark.parametrize("order", [[5, 4, 6, 3, 1, 7, 2, 0, 8, 9], None])
def test_c4_networks_that_err_on_other_classes_are_not(order):
    teacher = np.full(10, 0.08) if order is None else ERRORS[order]
    assert verdict("C4", teacher={"errors": teacher, "noise": 0.0}).word == "undecided"


def test_c4_networks_that_err_on_opposite_classes_contradict_it():
    order = np.empty(10, int)
    order[np.argsort(ERRORS)] = np.argsort(-ERRORS)
    assert verdict("C4", teacher={"errors": np.sqrt(ERRORS[order] / 20)}).word == "contradicted"


def test_c4_a_teacher_without_errors_leaves_it_undecided():
    found = verdict("C4", teacher={"errors": np.zeros(10), "noise": 0.0})
    assert found.word == "undecided" and math.isnan(found.p)


@pytest.mark.parametrize(
    ("swing", "word"), [(3.0, "supported"), (0.2, "contradicted"), (1.1, "undecided")]
)
def test_c7_an_accuracy_swings_strongly_if_more_than_chance_would(swing, word):
    """Chance is √(2 · 0.08 · 0.92 / 1,000) = 1.2 points between epochs: √2 of 0.86 an epoch."""
    swing = 0.86 if word == "undecided" else swing
    assert verdict("C7", baseline={"swing": swing}, swing=0.2).word == word


@pytest.mark.parametrize(
    ("teacher", "word"),
    [
        ({"change": 30, "settled": 0.3}, "supported"),
        ({"change": 33, "settled": 0.3}, "supported"),
        ({"change": 16, "settled": 0.3}, "contradicted"),
        ({"change": 42, "settled": 0.3}, "contradicted"),
        ({"change": 30, "settled": 3.0}, "contradicted"),
        ({"change": 30, "settled": 1.0}, "undecided"),
    ],
)
def test_c8_the_teacher_changes_level_at_epoch_30_and_is_calm_from_there(teacher, word):
    assert verdict("C8", epochs=50, teacher=teacher).word == word


def test_c8_a_fall_at_epoch_30_is_not_leaving_a_minimum():
    trio = fake.trio(5, epochs=50, teacher={"change": 30, "settled": 0.3})
    for run in trio.teachers:
        run.log["val_accuracy"] = 180 - run.log["val_accuracy"]
    assert judge(trio)["C8"].word == "contradicted"


def test_c8_counts_the_epochs_of_shorter_runs_by_their_share():
    found = verdict("C8", epochs=25, teacher={"change": 15, "settled": 0.3, "swing": 0.1})
    assert found.parts[0].estimate.value == 30


@pytest.mark.parametrize("epochs", [1, 2, 9, 14])
def test_runs_too_short_for_a_claim_leave_it_undecided(epochs):
    short, whole = (judge(trio)["C8"] for trio in (fake.trio(3, epochs=epochs), fake.trio(3)))
    assert short.word == "undecided" and "too short" in short.parts[0].aside
    same = [(part.statistic, part.claimed) for part in (short.parts[0], whole.parts[0])]
    assert same[0] == same[1]  # its figure has both on one axis


# ---------------------------------------------------------------- noise


@pytest.fixture(scope="module", params=[2, 5], ids="{} seeds".format)
def trials(request):
    """Verdicts on pure noise: student and baseline are drawn from one distribution."""
    with pytest.MonkeyPatch.context() as patch:
        # C4 is not about the student, and takes longer than the rest together.
        patch.setattr(stats, "permuted_correlation", lambda a, b: Estimate(0.9, p=1e-4))
        return [
            judge(fake.trio(request.param, stream=k, count=400, swing=0.5)) for k in range(TRIALS)
        ]


def at_most(share):
    """How many of the trials may go wrong where `share` of all do: exceeded once in a thousand."""
    return scipy.stats.binom.ppf(0.999, TRIALS, share)


def test_of_the_claims_on_noise_one_in_twenty_trials_finds_any(trials):
    wrong = [any(t[claim].word != "undecided" for claim in ABOUT_THE_STUDENT) for t in trials]
    assert sum(wrong) <= at_most(claims.SIGNIFICANCE)


def test_each_statistic_on_noise_is_found_in_one_of_twenty_trials(trials):
    for claim in ABOUT_THE_STUDENT:
        for k, part in enumerate(trials[0][claim].parts):
            p = [trial[claim].parts[k].estimate.p for trial in trials]
            found = np.sum(np.array(p) < claims.SIGNIFICANCE)
            assert found <= at_most(claims.SIGNIFICANCE), part.statistic


def test_no_statistic_on_noise_leans_to_one_side(trials):
    for claim in ABOUT_THE_STUDENT:
        for k, part in enumerate(trials[0][claim].parts):
            values = np.array([trial[claim].parts[k].estimate.value for trial in trials])
            up, down = (values > 0).sum(), (values < 0).sum()
            assert scipy.stats.binomtest(int(up), int(up + down)).pvalue > 0.001, part.statistic


# ---------------------------------------------------------------- one seed


@pytest.mark.parametrize("claim", ["C1", "C2", "C3", "C5", "C6", "C7", "C8"])
def test_one_seed_decides_nothing_that_another_may_change(claim):
    student, baseline = EFFECTS.get(claim, ({}, {}))
    options = {"epochs": 50, "teacher": {"change": 30, "settled": 0.1}}
    found = verdict(claim, 1, student=student, baseline=baseline, **options)
    assert found.word == "undecided" and math.isnan(found.p)
    assert not any("nan" in part.aside for part in found.parts)


def test_the_gain_of_one_seed_is_a_bootstrap_over_its_images():
    trio = fake.trio(1, student={"errors": 0.8 * ERRORS})
    difference = 100.0 * trio.students[0].right - 100.0 * trio.baselines[0].right
    interval = scipy.stats.bootstrap(
        (difference,), np.mean, method="percentile", n_resamples=4000, rng=0
    ).confidence_interval
    found = claims.gain(trio)
    assert found.value == pytest.approx(difference.mean())
    assert found[1:3] == pytest.approx((interval.low, interval.high), abs=0.1)


def test_two_seeds_with_the_same_difference_prove_nothing():
    trio = fake.trio(2)
    for runs in (trio.baselines, trio.students):
        runs[1] = runs[0]
    assert all(each.word == "undecided" for claim, each in judge(trio).items() if claim != "C4")


def test_a_student_that_is_the_baseline_gains_nothing():
    trio = fake.trio(3)
    trio.students[:] = trio.baselines
    found = claims.gain(trio)
    assert found.value == 0 and found.p == 1 and found.low < 0 < found.high
    verdicts = judge(trio)
    assert all(verdicts[claim].word == "undecided" for claim in ABOUT_THE_STUDENT)


# ---------------------------------------------------------------- the statistics themselves


def test_differences_by_class_are_those_of_the_predictions():
    trio = fake.trio(4, student={"errors": 0.8 * ERRORS})
    for label in range(10):
        values = [
            100 * (np.mean(~s.right[s.labels == label]) - np.mean(~b.right[b.labels == label]))
            for b, s in trio.pairs()
        ]
        found = claims.class_error_change(trio, label)
        test = scipy.stats.ttest_1samp(values, 0)
        assert found.value == pytest.approx(np.mean(values))
        assert found.p == pytest.approx(test.pvalue)
        assert found.low == pytest.approx(test.confidence_interval().low)


def test_a_class_without_test_images_does_not_change():
    trio = fake.trio(2, count=400)
    for run in trio.baselines + trio.students:
        run.labels[run.labels == 3] = 4
    assert claims.class_error_change(trio, 3).value == 0


def test_c1_counts_epochs_to_the_level_that_both_reach():
    """Baseline settles at 90, first reached in epoch 6; the student at 91, past 90 in epoch 3."""
    trio = fake.trio(2, epochs=10)
    for base, student in trio.pairs():
        base.log["val_accuracy"] = [70, 80, 85, 88, 89, 90, 90, 90, 90, 90.0]
        student.log["val_accuracy"] = [70, 85, 90, 91, 91, 91, 91, 91, 91, 91.0]
    (epochs, *_, p, _), (area, *_) = (part.estimate for part in claims.faster(trio))
    assert p < 1  # two seeds that agree: the spread is that of whole epochs
    assert epochs == 3 and area == pytest.approx((5 + 5 + 3 + 2 + 5) / 10)
    # The baseline is at 89 in epoch 5, the student at 90 in epoch 3.
    assert beside(claims.faster(trio)[0], "at 1 point below its own final level") == 2
    swapped = claims.Trio("notes", 2, trio.teachers, trio.students, trio.baselines)
    assert claims.faster(swapped)[0].estimate.value == -3


def test_c2_compares_swings_of_the_changes():
    trio = fake.trio(3)
    parts = claims.steadier(trio)
    found = [part.estimate.value for part in parts]
    aside = ("of the hard loss alone", "blind to the loss's descent")
    found += [beside(parts[0], name) for name in aside]
    orders = (("train_loss", 1), ("val_accuracy", 1), ("train_hard_loss", 1), ("train_loss", 2))
    for at, (value, (column, order)) in enumerate(zip(found, orders, strict=True)):
        logs = []
        for base, student in trio.pairs():
            swings = [np.diff(run.log[column][5:], order).std(ddof=1) for run in (student, base)]
            means = [run.log[column].mean() if "loss" in column else 1 for run in
                     (student, base)]  # fmt: skip
            logs.append(np.log(swings[0] / means[0] * means[1] / swings[1]))
        # What stands besides is rounded, in words.
        assert value == pytest.approx(np.mean(logs), abs=0.006 if at > 1 else None)


def test_c2_knows_no_unit_of_loss():
    trio = fake.trio(3)
    before = claims.steadier(trio)[0]
    for run in trio.students:
        run.log[["train_loss", "train_hard_loss"]] *= 3
    after = claims.steadier(trio)[0]
    assert after.estimate.value == pytest.approx(before.estimate.value)
    assert after.aside == before.aside and "blind to the loss's descent" in after.aside


def test_c2_has_no_value_where_a_baseline_stands_still():
    trio = fake.trio(2)
    trio.baselines[1].log["val_accuracy"] = 90.0
    assert np.isnan(claims.steadier(trio)[1].estimate.value)


def test_c4_correlates_the_mean_errors_of_all_teachers_and_all_baselines():
    trio = fake.trio(3, teacher={"noise": 0.02}, noise=0.02)
    rates = [
        np.mean([[np.mean(~run.right[run.labels == k]) for k in range(10)] for run in runs], axis=0)
        for runs in (trio.teachers, trio.baselines)
    ]
    assert claims.alike(trio)[0].estimate.value == pytest.approx(np.corrcoef(*rates)[0, 1])


def test_c7_compares_the_swing_with_that_of_fresh_images_at_the_level_reached():
    trio = fake.trio(3)
    logs = []
    for run in trio.baselines:
        share = np.median(run.log["val_accuracy"][-5:]) / 100
        chance = 100 * np.sqrt(2 * share * (1 - share) / len(run.val_labels))
        logs.append(np.log(run.log["val_accuracy"][5:].diff().std() / chance))
    assert claims.oscillates(trio)[0].estimate.value == pytest.approx(np.mean(logs))


def test_c8_compares_what_comes_before_the_change_but_for_the_start_with_what_comes_after():
    trio = fake.trio(3, epochs=50, teacher={"change": 30, "settled": 0.3})
    rises, calms = [], []
    for run in trio.teachers:
        curve = run.log["val_accuracy"]
        before, after = curve[5:29], curve[29:]
        rises.append(after.mean() - before.mean())
        calms.append(np.log(after.diff().std() / before.diff().std()))
    parts = claims.settles(trio)
    where, rise, calm = (part.estimate for part in parts)
    assert where.value == 30 and parts[0].claimed == (25, 35)
    assert rise.value == pytest.approx(np.mean(rises))
    assert calm.value == pytest.approx(np.mean(calms))


# ---------------------------------------------------------------- what stands beside them


def test_c1_tells_how_much_earlier_a_level_is_reached_that_all_reach():
    trio = fake.trio(2, epochs=10)
    for base, student in trio.pairs():
        base.log["val_accuracy"] = [70, 80, 85, 88, 89, 90.9, 90, 90, 90, 90]
        student.log["val_accuracy"] = [70, 85, 90, 91, 91, 91, 91, 91, 91, 91.0]
    assert beside(claims.faster(trio)[0], "at 90 %, which all runs reach,") == 3


def test_c1_tells_earlier_from_higher():
    """A student that is as fast and ends higher is earlier at any level, but not at its own."""
    trio = fake.trio(2, epochs=50)
    curve = 93 - 10 * np.exp(-np.arange(1, 51) / 8)
    for base, student in trio.pairs():
        base.log["val_accuracy"], student.log["val_accuracy"] = curve, curve + 1
    epochs = claims.faster(trio)[0]
    assert epochs.estimate.value > 20
    assert beside(epochs, "at 1 point below its own final level") == 0
    trio.students[1].log["val_accuracy"] = np.roll(curve, -6).clip(max=curve[-1])
    trio.students[1].log.loc[44:, "val_accuracy"] = curve[-1]
    assert beside(claims.faster(trio)[0], "at 1 point below its own final level") == 3


def test_c1_knows_that_epochs_are_whole_in_what_stands_beside_it_too():
    """Five pairs that save 1, 1, 1, 1 and 2 epochs, however they are counted."""
    trio = fake.trio(5)
    for seed, (base, student) in enumerate(trio.pairs()):
        level = np.full(30, 90.0)
        level[:10] = 50
        base.log["val_accuracy"] = level
        student.log["val_accuracy"] = np.roll(level, -1 - (seed == 4))
        student.log.loc[25:, "val_accuracy"] = 90
    part = claims.faster(trio)[0]
    p = claims.p_in_words(part.estimate.p)
    assert part.estimate.value == pytest.approx(1.2)
    assert part.aside.count(f"+1.20 (p by itself {p})") == 2


@pytest.mark.parametrize(("restless", "sign"), [(slice(None), 1), (slice(0, 20), -1)])
def test_c7_tells_whether_the_end_is_still_restless(restless, sign):
    """Chance is 1.2 points; of 30 epochs the last third begins with the 21st."""
    trio = fake.trio(3)
    for run in trio.baselines:
        swings = np.full(30, 0.1)
        swings[restless] = 3
        run.log["val_accuracy"] = 90 + swings * (-1.0) ** np.arange(30)
    (part,) = claims.oscillates(trio)
    assert part.estimate.value > 0
    assert np.sign(beside(part, "in the last third of the epochs")) == sign


def test_c2_tells_the_swing_at_the_end_by_the_mean_there():
    trio = fake.trio(3, student={"loss_swing": 0.05})
    logs = []
    for base, student in trio.pairs():
        ends = [run.log["train_loss"].to_numpy()[20:] for run in (student, base)]
        logs.append(np.log(np.divide(*(np.diff(end).std(ddof=1) / end.mean() for end in ends))))
    found = beside(claims.steadier(trio)[0], "in the last third of the epochs")
    assert found == pytest.approx(np.mean(logs), abs=0.006)


def test_c3_tells_the_train_accuracy_of_the_last_epoch():
    trio = fake.trio(3)
    for base, student in trio.pairs():
        base.log.loc[29, "train_accuracy"], student.log.loc[29, "train_accuracy"] = 95, 93.5
    assert beside(claims.better(trio)[0], "at the last epoch") == -1.5


def test_c4_tells_how_much_alike_two_baselines_are():
    trio = fake.trio(3, teacher={"errors": np.full(10, 0.08), "noise": 0.0}, count=20_000)
    part = claims.alike(trio)[0]
    assert abs(beside(part, "one run each:")) < 0.6 and beside(part, "two baselines:") > 0.99


@pytest.mark.parametrize("sign", [1, -1])
def test_errors_that_are_more_even_have_the_greater_entropy(sign):
    student, baseline = EFFECTS["C6"][::sign]
    (part,) = claims.more_even(fake.trio(5, student=student, baseline=baseline))
    assert np.sign(beside(part, "normalised entropy:")) == sign


def test_c4_leaves_out_what_a_flawless_run_has_no_correlation_for():
    flawless = fake.record("baseline", 0, errors=np.zeros(10), noise=0.0)
    trio = fake.trio(3)
    part = claims.alike(replace(trio, baselines=[flawless, *trio.baselines[1:]]))[0]
    assert math.isfinite(part.estimate.value)
    assert re.fullmatch(r"over the 90 confusions: 0\.\d\d", part.aside)
    good = fake.record("baseline", 1)
    two = [replace(flawless, val_labels=good.val_labels), good]  # of a teacher there is one pair
    assert "one run each" not in claims.alike(replace(trio, baselines=two))[0].aside
    part = claims.alike(replace(trio, baselines=[flawless]))[0]
    assert math.isnan(part.estimate.value) and part.aside == ""


# ---------------------------------------------------------------- from parts to verdicts


@pytest.mark.parametrize(
    ("parts", "p", "word"),
    [
        ([(+1, 0.01)], 0.01, "supported"),
        ([(-1, 0.01)], 0.01, "contradicted"),
        ([(+1, 0.06)], 0.06, "undecided"),
        # All hold: as sure as the least sure. One does not: it was the likeliest of several.
        ([(+1, 0.01), (+1, 0.03)], 0.03, "supported"),
        ([(+1, 0.001), (+1, 0.2)], 0.2, "undecided"),
        ([(+1, 0.001), (-1, 0.02)], 0.04, "contradicted"),
        ([(-1, 0.03), (-1, 0.9)], 0.06, "undecided"),
        ([(-1, 0.9), (+1, 0.5)], 1.0, "undecided"),
        ([(+1, 0.001), (+1, math.nan)], math.nan, "undecided"),
        ([(-1, 0.001), (+1, math.nan)], math.nan, "undecided"),
    ],
)
def test_a_claims_p_comes_from_its_parts(monkeypatch, parts, p, word):
    made = [Part("", Estimate(value, p=p)) for value, p in parts]
    monkeypatch.setattr(claims, "CLAIMS", {"C": ("", "", lambda trio: made)})
    (found,) = judge(None).values()
    assert found.p == pytest.approx(p, nan_ok=True) and found.word == word


def test_verdicts_are_adjusted_for_the_number_of_claims(monkeypatch):
    """Holm by hand: 0.01 × 4, 0.02 × 3, 0.03 × 2 but no less than 0.06, 0.2 × 1."""
    p_values = {"A": 0.03, "B": 0.01, "C": 0.2, "D": 0.02, "E": math.nan}
    monkeypatch.setattr(
        claims,
        "CLAIMS",
        {
            claim: ("", "", lambda trio, p=p: [Part("", Estimate(-2.0, p=p), NEGATIVE)])
            for claim, p in p_values.items()
        },
    )
    found = {claim: (each.p, each.word) for claim, each in judge(None).items()}
    assert [found[k][0] for k in "ABCD"] == pytest.approx([0.06, 0.04, 0.2, 0.06])
    assert [found[k][1] for k in "ABCDE"] == ["undecided", "supported"] + ["undecided"] * 3
