"""The figures of the report: pure functions of runs and tables. Nothing is drawn on import.

One colour per network, everywhere; the palette is Okabe and Ito's and a grey, which colour-blind
people can tell apart, and every line has a style or a marker of its own besides.
"""

import itertools
import math
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator
from scipy.special import softmax

from common import stats
from common.claims import NOTES, NOTES_EPOCHS, Part, Trio
from common.data import CLASSES
from common.records import Record
from common.stats import Estimate


class Style(NamedTuple):
    """How a network is drawn; the fields are matplotlib's words."""

    color: str
    linestyle: str | tuple
    marker: str


STYLES = {
    "teacher-resnet": Style("#0072B2", "-", "s"),
    "teacher-cnn": Style("#56B4E9", (0, (5, 1)), "D"),
    "baseline": Style("#D55E00", (0, (4, 2)), "o"),
    "student-resnet": Style("#009E73", "-.", "^"),
    "student-cnn": Style("#CC79A7", (0, (1, 1)), "v"),
}
# In turn for networks of the user's own: what the palette has left, with every dash and marker.
OWN_COLORS = ("#E69F00", "#000000", "#888888")
OWN_LINES = (((0, (6, 2, 1, 2)), "*"), ("-", "X"), ((0, (3, 1, 1, 1, 1, 1)), "P"))
OWN_STYLES = [Style(OWN_COLORS[i % 3], *OWN_LINES[(i + i // 3) % 3]) for i in range(9)]
Groups = dict[str, list[Record]]  # by network, one entry a seed


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", dpi=130)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)  # inches: the page draws a frame around
    return figure


def _tidy(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _size(runs: Sequence[Record]) -> tuple[int, int]:
    return runs[0].config["parameters"], runs[0].config["multiply_adds"]


def _beside_notes(groups: Groups) -> set[str]:
    """Networks of one's own that have the size of one of the notes'."""
    taken = {_size(runs) for name, runs in groups.items() if name in STYLES}
    return {name for name, runs in groups.items() if name not in STYLES and _size(runs) in taken}


def _styles(groups: Groups) -> dict[str, Style]:
    """Of one's own networks those of another size first: `cost` has these alone in one panel."""
    own = sorted(
        (name for name in groups if name not in STYLES), key=_beside_notes(groups).__contains__
    )
    return STYLES | dict(zip(own, itertools.cycle(OWN_STYLES), strict=False))


def _curve(
    axes: Axes, runs: Sequence[Record], column: str, color: str, linestyle: object,
    label: str = "", width: float = 1.8,
) -> np.ndarray:  # fmt: skip
    """Mean over the seeds, with the band from the lowest to the highest."""
    table = pd.concat([run.log.set_index("epoch")[column] for run in runs], axis=1)
    mean = table.mean(axis=1)
    axes.plot(
        table.index, mean, color=color, linestyle=linestyle, linewidth=width, label=label,
        marker="." if len(mean) == 1 else "",  # of one epoch there is no line
    )  # fmt: skip
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)  # no half epochs
    if len(runs) > 1:
        axes.fill_between(
            table.index, table.min(axis=1), table.max(axis=1), color=color, alpha=0.15
        )
    return mean.to_numpy()


def _from_the_start_of_interest(panels: Sequence[Axes], curves: Sequence[np.ndarray]) -> None:
    """Leave the steep first epochs of a run out of the pictures: they would flatten the rest."""
    values = np.concatenate([curve[2 if len(curve) > 5 else 0 :] for curve in curves])
    low = np.quantile(values, 0.02)  # a single collapse does not set the scale
    low = min(low, *(curve.max() for curve in curves))  # none is left out as a whole
    high = max(axes.dataLim.y1 for axes in panels)
    margin = 0.05 * (high - low) + 0.05
    for axes in panels:
        axes.set_ylim(low - margin, high + margin)


def _logarithmic(axes: Axes) -> None:
    """The first epochs would flatten the rest; a loss of one's own may be 0 or below, though."""
    if axes.lines and not any(np.any(line.get_ydata() <= 0) for line in axes.lines):
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(
            LogLocator(subs=(1, 2, 5))
            if high > 5 * low
            else MaxNLocator(5, steps=(1, 2, 5, 10))  # of the others there may be one, or none
        )
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_ylabel(f"{axes.get_ylabel()}, log scale")


def _intervals(
    axes: Axes, estimates: Sequence[Estimate], place: Sequence[float], marker: str, color: str
) -> None:
    """Values with their intervals; open and dashed what one seed tells, with or without one."""
    value, low, high = np.array([each[:3] for each in estimates]).T
    unsure = estimates[0].over == "images" or np.isnan(low[0])
    _, _, bars = axes.errorbar(
        # A bootstrap's interval need not hold its value.
        value, place, xerr=np.maximum([value - low, high - value], 0), fmt=marker, color=color,
        capsize=4, markerfacecolor="white" if unsure else color,
    )  # fmt: skip
    for bar in bars if unsure else ():
        bar.set_linestyle("--")


def curves(recipe: str, groups: Groups) -> Figure:
    """Training loss with its parts, and the accuracies, by epoch."""
    figure = _figure(12, 7)
    loss, parts, train, held_out, test, legend = figure.subplots(2, 3).flat
    styles = _styles(groups)
    for name, runs in groups.items():
        color, line, _ = styles[name]
        _curve(loss, runs, "train_loss", color, line)
        if runs[0].role == "student":
            _curve(parts, runs, "train_soft_loss", color, line, width=2.4)
        if runs[0].role != "teacher":
            _curve(parts, runs, "train_hard_loss", color, line, width=1)
    for axes, column, title in (
        (train, "train_accuracy", "Training images, augmented"),
        (held_out, "val_accuracy", "Held-out images"),
        (test, "test_accuracy", "Test images"),
    ):
        lines = []
        for name, runs in groups.items():
            color, line, marker = styles[name]
            lines.append(_curve(axes, runs, column, color, line))
            for run in runs if axes is not train else ():
                row = run.log.loc[run.log[column].idxmax()]
                axes.plot(
                    row["epoch"], row[column], marker, color=color,
                    markeredgecolor="white", markersize=7, clip_on=False, zorder=5,
                )  # fmt: skip
        _from_the_start_of_interest([axes], lines)
        _tidy(axes, title, "epoch", "accuracy (%)")
    _tidy(loss, "Training loss, as minimised", "epoch", "loss (nats)")
    _tidy(parts, "Soft loss thick, hard loss thin", "epoch", "loss (nats), unweighted")
    for axes in (loss, parts):
        _logarithmic(axes)
    if not parts.lines:
        parts.text(0.5, 0.5, "no student of the notes yet", ha="center", transform=parts.transAxes)
    legend.axis("off")
    spread = max(map(len, groups.values())) > 1
    legend.legend(
        handles=[Line2D([], [], **styles[name]._asdict(), label=name) for name in groups],
        loc="upper left", frameon=False, alignment="left", handlelength=3,
        title=f"recipe {recipe}\n"
        + ("line: mean over the seeds,\nband: lowest to highest" if spread else "one seed")
        + "\nmarker: best epoch on those images\n",
    )  # fmt: skip
    return figure


def own_curves(groups: Groups, beside: dict[str, list[str]]) -> Figure:
    """Training loss and held-out accuracy of each network in `beside`, with those it names."""
    abreast = min(2, len(beside))
    rows = math.ceil(len(beside) / abreast)
    figure = _figure(6 * abreast, 2.8 * rows + 0.7)
    panels = figure.subplots(rows, 2 * abreast, squeeze=False).reshape(-1, 2)
    lines, handles = [], {}
    others = dict.fromkeys(itertools.chain(*beside.values()))
    own = (name for name in others if name not in STYLES)  # baselines, plain distillation
    free = (style for style in OWN_STYLES if style.color != "#000000")  # that is the title's
    styles = STYLES | dict(zip(own, itertools.cycle(free), strict=False))
    for (loss, held_out), (name, those) in zip(panels, beside.items(), strict=False):
        for each in (*those, name):
            color, line, _ = Style("black", "-", "") if each == name else styles[each]
            label = "the network of the title" if each == name else each
            _curve(loss, groups[each], "train_loss", color, line, label)
            lines.append(_curve(held_out, groups[each], "val_accuracy", color, line))
        _tidy(loss, name, "epoch", "training loss")
        _logarithmic(loss)
        _tidy(held_out, "", "epoch", "held-out accuracy (%)")
        drawn, labels = loss.get_legend_handles_labels()
        handles |= dict(zip(labels, drawn, strict=True))
    _from_the_start_of_interest(panels[: len(beside), 1], lines)
    for axes in panels[len(beside) :].flat:
        axes.axis("off")
    spread = max(map(len, groups.values())) > 1
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=5, frameon=False,
        title="lines: means over the seeds, bands: lowest to highest" if spread else "one seed",
    )  # fmt: skip
    return figure


def headline(recipes: dict[str, Groups]) -> Figure:
    """Test accuracy by epoch, one panel a recipe: the picture of the README."""
    figure = _figure(5.5 * len(recipes) + 0.5, 4)
    panels = figure.subplots(1, len(recipes), squeeze=False)[0]
    for axes, (recipe, groups) in zip(panels, recipes.items(), strict=True):
        lines, styles = [], _styles(groups)
        for name, runs in groups.items():
            color, line, _ = styles[name]
            lines.append(_curve(axes, runs, "test_accuracy", color, line, name))
        _from_the_start_of_interest([axes], lines)
        _tidy(axes, f"Recipe {recipe}", "epoch", "test accuracy (%)")
        axes.legend(fontsize=9, loc="lower right")
    return figure


def class_errors(trio: Trio, change: Sequence[Estimate]) -> Figure:
    """Errors of the three networks class by class, and what distillation changed.

    change: by class, in percentage points.
    """
    figure = _figure(12, 5)
    errors, difference = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    place = np.arange(len(CLASSES))
    groups = trio.groups()
    styles = _styles(groups)
    for offset, (name, runs) in zip((-0.27, 0, 0.27), groups.items(), strict=True):
        values = np.array([run.class_errors for run in runs])
        errors.barh(place + offset, values.mean(0), 0.25, color=styles[name].color, label=name)
        if len(runs) > 1:
            errors.plot(values.T, place + offset, ".", color="black", markersize=3)
    _tidy(errors, "Errors class by class", "test images of the class taken for another (%)", "")
    errors.set_yticks(place, [f"{name} ({k})" for k, name in enumerate(CLASSES)])
    errors.invert_yaxis()
    errors.legend(loc="lower right")
    difference.axvline(0, color="black", linewidth=0.8)
    color, _, marker = styles[trio.students[0].name]
    _intervals(difference, change, place, marker, color)
    over = "one seed, over the images" if change[0].over == "images" else "over the seeds"
    _tidy(
        difference, f"Student − baseline, 95 % intervals\n{over}", "points (left: fewer errors)", ""
    )
    return figure


def confusions(trio: Trio) -> Figure:
    """Confusion matrices of the three networks, and student − baseline."""
    figure = _figure(12, 11)
    panels = figure.subplots(2, 2).flat
    matrices = {
        name: np.mean([run.confusion for run in runs], axis=0)
        for name, runs in trio.groups().items()
    }
    _, baseline, student = matrices.values()
    for axes, (name, matrix) in zip(
        panels, (matrices | {"student − baseline": student - baseline}).items(), strict=True
    ):
        # Colour by the errors: the diagonal, what is right, is only written.
        shown = np.where(np.eye(len(matrix), dtype=bool), 0, matrix)
        colors, low, high, form, unit = (
            ("Blues", 0, 15, ".1f", "%")
            if name in matrices
            else ("PuOr", -3, 3, "+.1f", "points; orange: fewer errors")
        )
        axes.imshow(shown, colors, vmin=low, vmax=high)
        for (i, j), value in np.ndenumerate(matrix):
            if abs(value) >= 0.05:
                axes.text(
                    j, i, f"{value:{form}}", ha="center", va="center", fontsize=10,
                    color="white" if abs(shown[i, j]) > 0.6 * high else "black",
                )  # fmt: skip
        axes.set_title(f"{name} ({unit})", loc="left", fontsize=11, fontweight="bold")
        axes.set_xticks(range(10), CLASSES, rotation=45, ha="right", fontsize=10)
        axes.set_yticks(range(10), CLASSES, fontsize=10)
        axes.set_xlabel("taken for")
        axes.set_ylabel("is")
    return figure


def reliability(trio: Trio) -> Figure:
    """Accuracy − confidence by confidence, 15 bins of equally many images, a line a seed.

    The ECE is the seeds' mean, as in the table: pooled seeds would hide each other's errors.
    """
    figure = _figure(12, 4.4)
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    groups = trio.groups()
    styles = _styles(groups)
    for axes, (name, runs) in zip(panels, groups.items(), strict=True):
        axes.axhline(0, color="black", linewidth=0.8)
        for run in runs:
            confidence, accuracy, _ = stats.reliability(run.logits, run.labels)
            confidence = np.minimum(confidence, 1 - 1e-6)  # 1 has no place on the axis
            excess = 100 * (accuracy - confidence)
            axes.plot(confidence, excess, linewidth=1.2, **styles[name]._asdict())
        error = np.mean([stats.expected_calibration_error(r.logits, r.labels) for r in runs])
        _tidy(axes, f"{name}: ECE {error:.1f} points", "confidence, logit scale", "")
        axes.set_xscale("logit")  # most images are near 1
        axes.set_xticks(ticks := (0.5, 0.9, 0.99, 0.999, 0.9999), [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    panels[0].set_ylabel("accuracy − confidence (points)\nbelow 0: overconfident")
    return figure


def cost(recipe: str, groups: Groups) -> Figure:
    """Test accuracy against size and against compute; of recipe `notes` beside the notes' points.

    Networks of one size, to 2 %, stand side by side; those of one's own are left out where the
    notes' have their size: there may be many.
    """
    figure = _figure(11, 4.2)
    panels = figure.subplots(1, 2, sharey=True)
    styles, left_out = _styles(groups), _beside_notes(groups)
    shown = {name: runs for name, runs in groups.items() if name not in left_out}
    published = NOTES if recipe == "notes" else {}  # else far below: they would flatten the rest
    keys = ("parameters", "multiply_adds")
    for axes, key, notes in zip(panels, keys, (published, {}), strict=True):
        size = {name: runs[0].config[key] for name, runs in shown.items()}
        sizes = sorted({*size.values(), *(parameters for _, parameters in notes.values())})
        step = max(sizes[-1] / sizes[0], 2) ** 0.025
        alike: list[list[str]] = []
        for name in sorted(size, key=size.get):
            if not alike or size[name] > 1.02 * size[alike[-1][0]]:
                alike.append([])
            alike[-1].append(name)
        aside = {
            name: step ** (place - (len(names) - 1) / 2)
            for names in alike
            for place, name in enumerate(names)
        }
        for name, runs in shown.items():
            color, _, marker = styles[name]
            axes.plot(
                [size[name] * aside[name]] * len(runs),
                [100 * run.right.mean() for run in runs],
                marker, color=color, label=name, markersize=8, alpha=0.8,
            )  # fmt: skip
        for name, (accuracy, parameters) in notes.items():
            axes.plot(
                parameters * aside.get(name, 1), accuracy, STYLES[name].marker,
                markeredgecolor=STYLES[name].color, markerfacecolor="none", markersize=12,
                label=f"notes: {name}, best test epoch of {NOTES_EPOCHS}",
            )  # fmt: skip
        axes.set_xscale("log")
        axes.minorticks_off()
        ticks = sizes[:1]  # the sizes that there are, as far as their labels have room
        for value in sizes:
            if math.log(value / ticks[-1]) > 0.12 * math.log(sizes[-1] / sizes[0]):
                ticks.append(value)
        axes.set_xticks(ticks, [EngFormatter()(float(f"{tick:.3g}")) for tick in ticks])
    accuracy = "test accuracy (%), chosen epoch"
    _tidy(panels[0], f"Against size, recipe {recipe}", "parameters, log scale", accuracy)
    _tidy(panels[1], "Against compute", "multiply-adds an image, log scale", "")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def seeds(recipe: str, groups: Groups) -> Figure:
    """Every seed a point, every network a row; a seed has one height in all of them."""
    figure = _figure(8, 1.6 + 0.45 * len(groups))
    axes = figure.subplots()
    styles = _styles(groups)
    numbers = sorted({run.seed for runs in groups.values() for run in runs})
    half = 0.25 if len(numbers) > 1 else 0
    aside = dict(zip(numbers, np.linspace(-half, half, len(numbers)), strict=True))
    for place, (name, runs) in enumerate(groups.items()):
        values = [100 * run.right.mean() for run in runs]
        color, _, marker = styles[name]
        places = [place + aside[run.seed] for run in runs]
        axes.plot(values, places, marker, markersize=8, color=color, alpha=0.75)
        if len(values) > 1:
            axes.plot(np.mean(values), place, "|", color="black", markersize=20, markeredgewidth=2)
    axes.set_yticks(range(len(groups)), groups)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    each = f"a marker a seed, seed {numbers[0]} uppermost; bar: mean" if half else "one seed"
    title = f"Recipe {recipe}: {each}"
    _tidy(axes, title, "test accuracy (%), chosen epoch", "")
    return figure


def claim(measured: dict[str, tuple[Sequence[Part], str]]) -> Figure:
    """The statistics of a claim with their 95 % intervals, by experiment; shaded: as claimed.

    measured: parts and verdict, in words, by the name of the experiment.
    """
    count = max(len(parts) for parts, _ in measured.values())
    figure = _figure(12, 1.7 + 0.35 * len(measured))
    panels = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    for column, axes in enumerate(panels):
        for place, (parts, _) in enumerate(measured.values()):
            if column >= len(parts):
                continue
            if np.isnan(parts[column].estimate.value):
                edge = axes.get_yaxis_transform()
                white = {"backgroundcolor": "white", "va": "center"}
                axes.text(0.02, place, "no value", transform=edge, **white)
                continue
            _intervals(axes, [parts[column].estimate], [place], "o", "black")
        part = next(parts[column] for parts, _ in measured.values() if column < len(parts))
        for bound in filter(np.isfinite, part.claimed):
            axes.axvline(bound, color="black", linewidth=0.8)
        axes.margins(x=0.08)
        low, high = axes.get_xlim()
        if high - low < 1e-9:  # rounding is all that is between them
            low, high = low - 1, high + 1
        axes.axvspan(*np.clip(part.claimed, low, high), color="#009E73", alpha=0.12, zorder=0)
        axes.set_xlim(low, high)
        _tidy(axes, "", textwrap.fill(part.statistic, 100 // count), "")
    panels[0].set_yticks(
        range(len(measured)), [f"{name}: {word}" for name, (_, word) in measured.items()]
    )
    panels[0].set_ylim(len(measured) - 0.5, -0.5)
    return figure


def gallery(trio: Trio, images: np.ndarray, count: int = 6) -> Figure:
    """Test images that one of baseline and student (first seed) gets right and the other wrong.

    images: (N, 28, 28) uint8, those that the runs were tested on. Beside each the probabilities
    that the three networks give to the classes, and the teacher's softened ones, as the student
    was shown those of training images. Images are the first in file order, not chosen.
    """
    teacher, baseline, student = trio.threes()[0]
    temperature = student.config.get("temperature") or 1
    styles = _styles(trio.groups())
    legend = ()
    figure = _figure(12, 9)
    halves = figure.subfigures(2, 1)
    for half, title, wrong, chosen in (
        (halves[0], "Student right, baseline wrong", baseline, student.right & ~baseline.right),
        (halves[1], "Baseline right, student wrong", student, baseline.right & ~student.right),
    ):
        chosen = np.flatnonzero(chosen)[:count]
        half.suptitle(
            title if len(chosen) else f"{title}: no such image", x=0.01, ha="left", fontsize=11,
            fontweight="bold",
        )  # fmt: skip
        grid = half.subplots(2, count, height_ratios=(1, 1.9))
        for axes in grid[:, len(chosen) :].flat:
            axes.axis("off")
        for k, (picture, bars) in zip(chosen, grid.T, strict=False):
            picture.imshow(images[k], cmap="gray_r")
            picture.axis("off")
            words = f"is {CLASSES[wrong.labels[k]]}\ntaken for {CLASSES[wrong.predicted[k]]}"
            picture.set_title(words, fontsize=10)
            for offset, run in zip((-0.27, 0, 0.27), (teacher, baseline, student), strict=True):
                bars.barh(
                    np.arange(10) + offset, softmax(run.logits[k]), 0.27,
                    color=styles[run.name].color, label=run.name,
                )  # fmt: skip
            bars.barh(
                np.arange(10) - 0.27, softmax(teacher.logits[k] / temperature), 0.27,
                fill=False, linewidth=0.8, label=f"teacher, temperature {temperature:g}",
            )  # fmt: skip
            right = baseline.labels[k]
            bars.axhspan(right - 0.5, right + 0.5, color="#e4e4e4", zorder=0)
            bars.set_yticks(range(10), CLASSES if bars is grid[1, 0] else [], fontsize=10)
            bars.set_ylim(9.5, -0.5)
            bars.set_xlim(0, 1)
            bars.set_xticks((0, 0.5, 1), ("0", "0.5", "1"), fontsize=10)
            bars.set_xlabel("probability", fontsize=10)
            bars.spines[["top", "right"]].set_visible(False)
            legend = bars.get_legend_handles_labels()
    if legend:
        figure.legend(*legend, loc="outside lower center", ncols=4)
    return figure
