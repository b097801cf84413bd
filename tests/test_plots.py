"""The figures: what is drawn is what the runs hold."""

import warnings

import fake
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from scipy.special import softmax

from common import claims, compare, plots, records, stats
from common.claims import Part
from common.data import CLASSES
from common.page import to_bytes
from common.stats import Estimate

SMALL = {"count": 200, "epochs": 16}
NAMES = ("teacher-resnet", "baseline", "student-resnet")


@pytest.fixture(scope="module")
def trio():
    """Three seeds that differ visibly from each other, as do the networks."""
    return fake.trio(3, student={"errors": 0.9 * fake.ERRORS, "speed": 2.0}, noise=0.02, **SMALL)


def line_of(axes, color):
    """The curve of a colour, among markers of the same."""
    (line,) = (x for x in axes.lines if x.get_color() == color and len(x.get_xdata()) > 1)
    return line


def band_of(axes, color):
    """Lowest and highest of the band of a colour, by epoch."""
    (band,) = (b for b in axes.collections if tuple(b.get_facecolor()[0][:3]) == to_rgb(color))
    vertices = band.get_paths()[0].vertices
    return [
        (column[:, 1].min(), column[:, 1].max())
        for column in (vertices[vertices[:, 0] == epoch] for epoch in range(1, 17))
    ]


def columns(runs, column):
    """By seed and epoch."""
    return np.array([run.log[column] for run in runs])


def test_curves_are_means_over_the_seeds_in_bands_from_lowest_to_highest(trio):
    groups = trio.groups()
    loss, parts, train, held_out, test, _ = plots.curves("notes", groups).axes
    for axes, column in (
        (loss, "train_loss"), (train, "train_accuracy"), (held_out, "val_accuracy"),
        (test, "test_accuracy"),
    ):  # fmt: skip
        for name, runs in groups.items():
            color, values = plots.STYLES[name].color, columns(runs, column)
            line = line_of(axes, color)
            assert list(line.get_xdata()) == list(range(1, 17))
            assert line.get_ydata() == pytest.approx(values.mean(0))
            low, high = zip(*band_of(axes, color), strict=True)
            assert low == pytest.approx(values.min(0)) and high == pytest.approx(values.max(0))
    alone, soft, hard = parts.lines  # the baseline has no soft one
    assert alone.get_color() == plots.STYLES["baseline"].color
    assert soft.get_linestyle() == hard.get_linestyle() == "-."  # the network's own
    assert soft.get_linewidth() > 2 * hard.get_linewidth() == 2 * alone.get_linewidth()
    for line, runs, column in (
        (alone, trio.baselines, "train_hard_loss"), (soft, trio.students, "train_soft_loss"),
        (hard, trio.students, "train_hard_loss"),
    ):  # fmt: skip
        assert line.get_ydata() == pytest.approx(columns(runs, column).mean(0))


def test_every_network_has_a_line_of_its_own():
    styles = [*plots.STYLES.values(), *plots.OWN_STYLES]
    assert len({str(style.linestyle) for style in plots.STYLES.values()}) == len(plots.STYLES)
    assert len(set(map(str, styles))) == len(styles)


@pytest.mark.parametrize(("epochs", "whole"), [(3, True), (16, False)])
def test_the_steep_start_of_a_run_is_left_out_but_not_of_a_short_look(epochs, whole):
    run = fake.record("baseline", 0, count=200, epochs=epochs, speed=1.0)
    (axes,) = plots.headline({"notes": {"baseline": [run]}}).axes
    assert (axes.get_ylim()[0] < run.log["test_accuracy"][0]) == whole


def test_the_best_epochs_of_each_seed_are_marked(trio):
    _, _, _, held_out, test, legend = plots.curves("notes", trio.groups()).axes
    shown = {line.get_label(): line.get_marker() for line in legend.get_legend().get_lines()}
    assert shown == {name: plots.STYLES[name].marker for name in NAMES}
    for axes, column in ((held_out, "val_accuracy"), (test, "test_accuracy")):
        for name, runs in trio.groups().items():
            marks = [
                (line.get_xdata()[0], line.get_ydata()[0])
                for line in axes.lines
                if line.get_color() == plots.STYLES[name].color and len(line.get_xdata()) == 1
            ]
            values = columns(runs, column)
            best = list(zip(values.argmax(1) + 1, values.max(1), strict=True))
            np.testing.assert_allclose(marks, best)


def test_the_readmes_picture_has_the_test_accuracies_of_each_recipe(trio):
    panels = plots.headline({"notes": trio.groups(), "best": {"baseline": trio.students}}).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["Recipe notes", "Recipe best"]
    drawn = [
        (panels[0], "teacher-resnet", trio.teachers), (panels[0], "baseline", trio.baselines),
        (panels[0], "student-resnet", trio.students), (panels[1], "baseline", trio.students),
    ]  # fmt: skip
    for axes, name, runs in drawn:
        line = line_of(axes, plots.STYLES[name].color)
        assert line.get_label() == name
        assert line.get_ydata() == pytest.approx(columns(runs, "test_accuracy").mean(0))


def rates(run):
    """By class, the share of its images taken for another, in percent."""
    return [100 * np.mean(~run.right[run.labels == label]) for label in range(10)]


def test_errors_class_by_class_are_bars_and_their_change_has_intervals(trio):
    change = [claims.class_error_change(trio, label) for label in range(10)]
    errors, difference = plots.class_errors(trio, change).axes
    for name, bars in zip(NAMES, errors.containers, strict=True):
        expected = np.mean([rates(run) for run in trio.groups()[name]], axis=0)
        assert bars.get_label() == name
        assert [bar.get_width() for bar in bars] == pytest.approx(expected)
    points = [line for line in errors.lines if line.get_marker() == "."]
    seen = sorted(x for line in points for x in line.get_xdata())
    each_run = [rates(run) for runs in trio.groups().values() for run in runs]
    assert seen == pytest.approx(sorted(np.ravel(each_run)))
    (values,) = (line for line in difference.lines if line.get_marker() == "^")
    assert values.get_xdata() == pytest.approx([each.value for each in change])
    bars = [tuple(bar[:, 0]) for lines in difference.collections for bar in lines.get_segments()]
    assert np.ravel(bars) == pytest.approx(np.ravel([each[1:3] for each in change]))
    words = [label.get_text() for label in errors.get_yticklabels()]
    assert words == [f"{name} ({k})" for k, name in enumerate(CLASSES)]


def written(axes):
    """The numbers in the cells of a matrix."""
    found = np.zeros((10, 10))
    for text in axes.texts:
        column, row = text.get_position()
        found[row, column] = float(text.get_text())
    return found


def test_confusions_are_written_in_their_cells(trio):
    panels = plots.confusions(trio).axes
    expected = []
    for axes, (name, runs) in zip(panels, trio.groups().items(), strict=False):
        matrix = np.zeros((10, 10))
        for run in runs:
            for label, predicted in zip(run.labels, run.predicted, strict=True):
                matrix[label, predicted] += 100 / np.sum(run.labels == label) / len(runs)
        assert axes.get_title(loc="left") == f"{name} (%)"
        np.testing.assert_allclose(written(axes), matrix, atol=0.0501)
        expected.append(matrix)
    np.testing.assert_allclose(written(panels[3]), expected[2] - expected[1], atol=0.0501)
    assert panels[3].get_xlabel() == "taken for" and panels[3].get_ylabel() == "is"


def test_reliability_is_accuracy_less_confidence_a_line_a_seed(trio):
    for axes, (name, runs) in zip(plots.reliability(trio).axes, trio.groups().items(), strict=True):
        lines = [line for line in axes.lines if line.get_color() == plots.STYLES[name].color]
        for line, run in zip(lines, runs, strict=True):
            confidence, accuracy, _ = stats.reliability(run.logits, run.labels)
            assert line.get_xdata() == pytest.approx(confidence)
            assert line.get_ydata() == pytest.approx(100 * (accuracy - confidence))
        ece = np.mean([stats.expected_calibration_error(r.logits, r.labels) for r in runs])
        assert axes.get_title(loc="left") == f"{name}: ECE {ece:.1f} points"


def test_every_seed_is_a_point_and_their_mean_a_bar(trio):
    groups = trio.groups() | {"baseline": trio.baselines[::2]}
    (axes,) = plots.seeds("notes", groups).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(NAMES)
    points, bars = axes.lines[::2], axes.lines[1::2]
    for place, (name, point, bar) in enumerate(zip(NAMES, points, bars, strict=True)):
        values = [100 * run.right.mean() for run in groups[name]]
        assert list(point.get_xdata()) == values
        # One above the other, as runs may be alike.
        assert list(point.get_ydata()) == [place + 0.25 * (run.seed - 1) for run in groups[name]]
        assert bar.get_xdata()[0] == pytest.approx(np.mean(values))


def test_accuracy_stands_against_size_and_compute_the_notes_beside(trio):
    size, compute = plots.cost("notes", trio.groups()).axes
    place = {}
    for name, runs in trio.groups().items():
        values = [100 * run.right.mean() for run in runs]
        for axes in (size, compute):
            (points,) = (line for line in axes.lines if line.get_label() == name)
            assert list(points.get_ydata()) == values
            (place[axes, name],) = set(points.get_xdata())
    for axes, key in ((size, "parameters"), (compute, "multiply_adds")):
        teacher, small = (runs[0].config[key] for runs in (trio.teachers, trio.students))
        left, right = place[axes, "baseline"], place[axes, "student-resnet"]
        assert place[axes, "teacher-resnet"] == teacher
        assert left < small < right < 1.1 * left  # of one size: side by side, it in the middle
        assert left * right == pytest.approx(small**2)
    for name, (accuracy, parameters) in claims.NOTES.items():
        label = f"notes: {name}, best test epoch of 50"
        (point,) = (line for line in size.lines if line.get_label() == label)
        aside = place[size, name] / trio.groups()[name][0].config["parameters"]
        expected = (pytest.approx(parameters * aside), accuracy)
        assert (point.get_xdata()[0], point.get_ydata()[0]) == expected
    of_best = plots.cost("best", trio.groups()).axes[0].lines
    assert [line.get_label() for line in of_best] == list(trio.groups())  # theirs are far below


def test_the_gallery_shows_the_first_images_on_which_the_two_differ(trio):
    teacher, base, student = trio.threes()[0]
    images = np.random.default_rng(0).integers(0, 256, (200, 28, 28), dtype=np.uint8)
    halves = plots.gallery(trio, images, count=3).subfigs
    for half, wrong, other in ((halves[0], base, student), (halves[1], student, base)):
        chosen = [k for k in range(200) if other.right[k] and not wrong.right[k]][:3]
        for k, picture, bars in zip(chosen, half.axes[:3], half.axes[3:], strict=False):
            assert (picture.images[0].get_array() == images[k]).all()
            words = f"is {CLASSES[wrong.labels[k]]}\ntaken for {CLASSES[wrong.predicted[k]]}"
            assert picture.get_title() == words
            expected = [softmax(run.logits[k]) for run in (teacher, base, student)]
            expected.append(softmax(teacher.logits[k] / student.config["temperature"]))
            for container, shares in zip(bars.containers, expected, strict=True):
                assert [bar.get_width() for bar in container] == pytest.approx(shares)


def test_the_gallery_of_a_student_without_a_temperature_takes_1():
    trio = fake.trio(1, student={"errors": 0.9 * fake.ERRORS, "temperature": None}, **SMALL)
    images = np.zeros((200, 28, 28), np.uint8)
    bars = plots.gallery(trio, images, count=2).subfigs[0].axes[2].containers
    assert [bar.get_width() for bar in bars[0]] == [bar.get_width() for bar in bars[3]]


def test_losses_are_drawn_logarithmically_unless_one_is_not_above_zero():
    names = ("student-resnet", "student-mine")
    runs = {name: [fake.record(name, 0, **SMALL)] for name in names}
    loss, parts = plots.curves("notes", runs).axes[:2]
    assert (loss.get_yscale(), parts.get_yscale()) == ("log", "log")
    runs["student-mine"][0].log["train_soft_loss"] -= 2
    loss, parts = plots.curves("notes", runs).axes[:2]
    assert (loss.get_yscale(), parts.get_yscale()) == ("log", "linear")


@pytest.mark.parametrize("spread", [0.02, 0.5, 3, 30])
def test_a_logarithmic_axis_has_ticks_however_narrow_it_is(spread):
    run = fake.record("baseline", 0, **SMALL)
    run.log["train_loss"] = np.linspace(1.02, 1.02 * (1 + spread), len(run.log))
    loss, *_ = plots.curves("notes", {"baseline": [run]}).axes
    low, high = loss.get_ylim()
    assert sum(low <= tick <= high for tick in loss.get_yticks()) >= 2
    assert loss.get_yscale() == "log"


@pytest.mark.parametrize(("epochs", "marker"), [(1, "."), (2, "")])
def test_a_run_of_one_epoch_is_drawn_as_a_point(epochs, marker):
    runs = {"baseline": [fake.record("baseline", 0, count=200, epochs=epochs)]}
    loss, *_ = plots.curves("notes", runs).axes
    assert [line.get_marker() for line in loss.lines] == [marker]
    assert all(tick == int(tick) for tick in loss.get_xticks())  # there is no epoch 0.96


def test_networks_of_ones_own_are_drawn_each_beside_those_it_compares_with(tmp_path):
    fake.write_experiment(tmp_path, 2, **SMALL)
    for name in ("student-mine", "baseline-long", "teacher-resnet-mine"):
        fake.write_run(tmp_path, name, 0, teacher_sha256="teacher-resnet-0", **SMALL)
    for name in ("student-resnet-tiny", "student-resnet-mine-tiny", "baseline-tiny"):
        taught = {"teacher_sha256": "teacher-resnet-0"} if "student" in name else {}
        if "mine" in name:
            taught["loss"] = "mine"
        fake.write_run(tmp_path, name, 0, arch="tiny", parameters=9, **taught, **SMALL)
    comparison = compare.Comparison(records.read_all(tmp_path)[0])
    assert comparison.besides_the_baseline("notes", "student-resnet-tiny") == []  # on baseline-tiny
    (differs,) = comparison.besides_the_baseline("notes", "baseline-tiny")
    assert differs == "arch: 'small-cnn' and 'tiny'"  # which says that its size differs
    groups = comparison.of("notes")
    own = comparison.drawn_beside("notes")
    assert own == {
        "baseline-long": ["baseline"],
        "baseline-tiny": ["baseline"],
        "student-mine": ["baseline", "student-resnet"],
        "student-resnet-mine-tiny": ["baseline-tiny", "student-resnet-tiny"],
        "student-resnet-tiny": ["baseline-tiny"],
        "teacher-resnet-mine": ["teacher-resnet"],
    }
    figure = plots.own_curves(groups, own)
    panels = iter(figure.axes)
    for name, others in own.items():
        loss, held_out = next(panels), next(panels)
        assert loss.get_title(loc="left") == name
        for axes, column in ((loss, "train_loss"), (held_out, "val_accuracy")):
            assert len(axes.lines) == len(others) + 1
            mean = np.mean([run.log[column] for run in groups[name]], axis=0)
            assert axes.lines[-1].get_ydata() == pytest.approx(mean)
            drawn = {(line.get_color(), str(line.get_linestyle())) for line in axes.lines}
            assert len(drawn) == len(others) + 1  # each in its own way
            assert len({color for color, _ in drawn}) == len(drawn)  # and colour
    assert not any(axes.axison for axes in panels)
    assert "bands: lowest to highest" in figure.legends[0].get_title().get_text()
    first = {name: runs[:1] for name, runs in groups.items()}
    assert plots.own_curves(first, own).legends[0].get_title().get_text() == "one seed"
    alone = plots.own_curves(groups, {"student-mine": own["student-mine"]})
    assert len(alone.axes) == 2 and alone.get_figwidth() == figure.get_figwidth() / 2


def test_a_run_of_one_epoch_is_in_the_picture_beside_a_long_one():
    runs = {"baseline": [fake.record("baseline", 0, epochs=1)]}
    runs["teacher-resnet"] = [fake.record("teacher-resnet", 0, epochs=60)]
    runs["baseline"][0].log["val_accuracy"] = 60.0
    runs["teacher-resnet"][0].log["val_accuracy"] = 90.0
    _, held_out = plots.own_curves(runs, {"teacher-resnet": ["baseline"]}).axes
    low, high = held_out.get_ylim()
    assert low < 60 < 90 < high


def test_a_network_of_ones_own_has_a_point_against_cost_where_its_size_is_new():
    names = ("baseline", "student-mine", "mine")
    runs = {name: [fake.record(name, 0, count=200)] for name in names}
    runs["mine"][0].config["multiply_adds"] += 1
    size, _ = plots.cost("notes", runs).axes
    labels = [line.get_label() for line in size.lines]
    assert labels[:2] == ["baseline", "mine"] and "student-mine" not in labels


def test_networks_of_ones_own_that_share_a_panel_of_cost_have_colours_of_their_own():
    names = ("baseline", "a", "b", "c", "d", "e")
    runs = {name: [fake.record(name, 0, count=200)] for name in names}
    for name in "ade":
        runs[name][0].config["multiply_adds"] += 1
    size, _ = plots.cost("notes", runs).axes
    colors = {
        line.get_label(): line.get_color() for line in size.lines if line.get_label() in names
    }
    assert set(colors) == {"baseline", *"ade"} and len(set(colors.values())) == 4


def test_a_best_epoch_that_comes_first_is_in_the_picture():
    """A marker far outside of its frame would leave the frames no room."""
    run = fake.record("baseline", 0, epochs=2)
    run.log["val_accuracy"] = run.log["test_accuracy"] = [80.0, 10.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_bytes(plots.curves("notes", {"baseline": [run]}), "png")


def test_sizes_that_there_are_stand_on_the_axes_of_cost():
    runs = {name: [fake.record(name, 0, count=200)] for name in ("baseline", "mine", "teacher-cnn")}
    runs["mine"][0].config["parameters"] = 25_000_000
    size, _ = plots.cost("notes", runs).axes
    assert [label.get_text() for label in size.get_xticklabels()] == ["175 k", "1.03 M", "25 M"]


def test_networks_of_nearly_one_size_stand_side_by_side_in_cost():
    runs = {name: [fake.record(name, 0, count=200)] for name in ("baseline", "mine", "yours")}
    for name, parameters in (("mine", 174_000), ("yours", 190_000)):
        runs[name][0].config["parameters"] = parameters
    size, _ = plots.cost("notes", runs).axes
    place = {line.get_label(): line.get_xdata()[0] for line in size.lines}
    assert place["mine"] < 174_000 < 175_018 < place["baseline"] and place["yours"] == 190_000


def test_a_value_outside_of_its_interval_is_drawn():
    """As a bootstrap's may be."""
    parts = {"one seed": ([Part("spread", Estimate(-1.0, -0.95, -0.87, over="images"))], "?")}
    (axes,) = plots.claim(parts).axes
    (bar,) = (bar for lines in axes.collections for bar in lines.get_segments() if len(bar))
    assert bar[:, 0].tolist() == [-1.0, pytest.approx(-0.87)]


def test_values_that_are_all_at_the_bound_have_an_axis_that_can_be_read():
    parts = {"one seed": ([Part("epochs", Estimate(-1e-17), claims.POSITIVE)], "undecided")}
    assert plots.claim(parts).axes[0].get_xlim() == (-1, 1)


def test_a_statistic_without_a_value_says_so_in_its_place():
    parts = {
        name: ([Part("log ratio", Estimate(value))], "undecided")
        for name, value in {"2 epochs": np.nan, "50 epochs": 5.0}.items()
    }
    (axes,) = plots.claim(parts).axes
    assert [(text.get_text(), text.get_position()[1]) for text in axes.texts] == [("no value", 0)]


def test_a_value_without_an_interval_is_drawn_as_one_that_is_not_sure():
    parts = {
        name: ([Part("epochs", Estimate(*values))], "undecided")
        for name, values in {"one seed": (5.0,), "five seeds": (5.0, 4.0, 6.0)}.items()
    }
    (axes,) = plots.claim(parts).axes
    unsure, sure = (line for line in axes.lines if line.get_marker() == "o")
    assert unsure.get_markerfacecolor() == "white" and sure.get_markerfacecolor() == "black"
    bars = [bar for lines in axes.collections for bar in lines.get_segments() if len(bar)]
    assert [np.ptp(bar[:, 0]) for bar in bars] == [2]  # and not one of no length
