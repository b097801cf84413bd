"""Compare runs: results table, curves, errors class by class, the notes' claims.

  python analyze.py                          runs/ if it has finished runs, else
                                             the published ones in results/
  python analyze.py --runs results/best --out /tmp/report

Reads run folders and trains nothing. Leaves results.csv, claims.csv,
report.html, report.md and figures/ in the output folder. A folder
NAME/seed-K with a run of a method of your own becomes a row of its own.

Exit code 1 if a run is missing, unfinished or damaged (the rest is reported),
2 if there is none.
"""

import contextlib
import re
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd

from common import claims, plots, stats
from common.claims import Trio, Verdict
from common.compare import (
    Comparison,
    agreement_table,
    gap_recovered,
    more_than_the_loss,
    otherwise_taught,
)
from common.config import RESULTS_DIR, RUNS_DIR, Parser, is_finished, named_teachers, no_folder
from common.data import CLASSES, load
from common.errors import UserError, script, warn
from common.missing import missing
from common.page import (
    Block,
    Heading,
    Picture,
    Points,
    Table,
    Text,
    markdown_table,
    to_bytes,
    to_html,
    to_markdown,
)
from common.records import (
    LOSS_SETTINGS,
    NAMES,
    Record,
    Unreadable,
    own_settings,
    read,
    read_all,
    run_folders,
)
from common.stats import Estimate

TITLE = "Distillation on Fashion-MNIST"
DASH = "–"  # where there is nothing to show
ONE_SEED = " †"
ONE_SEED_EXPLAINED = (
    "† one seed of each of the two: the interval is over the test images alone and says nothing of "
    "other seeds."
)
UNEQUAL = " ‡"
UNEQUAL_EXPLAINED = (
    "‡ it differs from its baseline in more than the loss: in what, is said below the table."
)
OTHER_LOSSES = "Training losses of different loss functions are not comparable."
README_MARKS = {  # around what --readme writes
    part: (f"<!-- {part}, written by analyze.py -->", f"<!-- end of {part} -->")
    for part in ("results", "claims", "controls")
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("--runs", type=Path, metavar="DIR", help="folder with runs, at any depth")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default="report", help="report folder (default: report)"
    )
    parser.add_argument(
        "--readme",
        type=Path,
        nargs="+",
        action="extend",
        metavar="FILE",
        default=[],
        help="write results, claims and controls between their marks, the picture beside them",
    )
    args = parser.parse_args(argv)
    pages = {path: read_marked(path) for path in args.readme}

    own = []
    if not args.runs:
        if why := no_folder(RUNS_DIR):
            what_to_do = f"put that right, or use --runs {RESULTS_DIR}"
            raise UserError("cannot read your runs", why, what_to_do)
        own = run_folders(RUNS_DIR)
    root = args.runs or (RUNS_DIR if any(map(is_finished, own)) else RESULTS_DIR)
    if root == RESULTS_DIR and own:
        warn(f"no run in {RUNS_DIR} is finished: this report is on the published ones")
    records, problems = read_all(root)
    lent = lent_teachers(records)
    comparison = Comparison(records, lent)
    problems += missing(comparison, root)
    for problem in problems:
        warn(problem)
    if not comparison.groups:
        raise UserError(
            f"no finished run in {root}",
            "there is nothing to report"
            if root.is_dir()
            else no_folder(root) or "there is no such folder",
            "run `make reproduce`, or name another folder with --runs",
        )
    verdicts = {
        (trio.recipe, trio.experiment): claims.judge(trio) for trio in comparison.experiments()
    }
    try:
        write_report(args.out, comparison, verdicts, problems)
        if pages:
            write_marked(pages, comparison, verdicts)
    except OSError as error:
        raise UserError("cannot write the report", str(error), "choose another --out", 1) from error

    published = "published " * (root == RESULTS_DIR)
    print(f"{published}runs in {root}\n{TERMINAL_EXPLAINED}")
    headlines = [(trio.recipe, headline(trio)) for trio in comparison.experiments()]
    for recipe in comparison.recipes:
        words, own = terminal_table(comparison, recipe), own_in_words(comparison, recipe)
        own += unequal_in_words(comparison, recipe, comparison.of(recipe))
        own += comparison.remarks(recipe)
        print(f"\nrecipe {recipe}, accuracies in %\n{words}")
        told = [text for of, text in headlines if of == recipe]
        for each in marks_explained("\n".join([words, *own, *told])):
            print(wrapped(each))
        if own:
            print()
        for line in own:
            print(wrapped(line, indent="  "))
    for _, text in headlines:
        print(f"\n{wrapped(text)}")
    print(f"\nreport: {args.out / 'report.html'}")
    return 1 if problems else 0


def lent_teachers(records: Sequence[Record]) -> list[Record]:
    """Teachers of the students here that are elsewhere: the published ones, and one's own."""
    wanted = {digest for record in records for digest in record.teacher_digests}
    wanted -= {record.weights_sha256 for record in records}
    if not wanted:
        return []
    paths = (path for record in records for path in named_teachers(record.config))
    folders = sorted(RESULTS_DIR.glob("*/teacher-*/seed-*"))
    folders += [(RESULTS_DIR.parent / path).parent for path in paths]
    found = []
    for folder in dict.fromkeys(folders):
        with contextlib.suppress(Unreadable):
            found.append(read(folder))
    lent = {run.weights_sha256: run for run in found if run.weights_sha256 in wanted}
    images = next((record.labels for record in records if record.complete), None)
    return [run for run in lent.values() if np.array_equal(run.labels, images)]


# ---------------------------------------------------------------- words and tables


def signed(estimate: Estimate) -> str:
    """A difference with its interval."""
    if np.isnan(estimate.value):
        return DASH
    if np.isnan(estimate.low):
        return f"{estimate.value:+.2f}"
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]{mark(estimate)}"


def mark(estimate: Estimate) -> str:
    return ONE_SEED if estimate.over == "images" else ""


def marks_explained(words: str) -> list[str]:
    """Of the marks that a table has."""
    explained = {ONE_SEED: ONE_SEED_EXPLAINED, UNEQUAL: UNEQUAL_EXPLAINED}
    return [text for mark, text in explained.items() if mark in words]


def plus_minus(mean: float, std: float) -> str:
    return f"{mean:.2f}" if np.isnan(std) else f"{mean:.2f} ± {std:.2f}"


def number(value: float, digits: int = 2) -> str:
    return DASH if np.isnan(value) else f"{value:.{digits}f}"


def in_brief(verdict: Verdict) -> str:
    return (
        verdict.word if np.isnan(verdict.p) else f"{verdict.word}, p {claims.p_in_words(verdict.p)}"
    )


def headline(trio: Trio) -> str:
    """One sentence: what distillation gained, and how sure that is."""
    delta = claims.gain(trio)
    count = len(trio.students)
    teacher, baseline, student = (
        np.mean([100 * run.right.mean() for run in runs])
        for runs in ([three[0] for three in trio.threes()], trio.baselines, trio.students)
    )
    taught = trio.students_by_teacher()
    recipes = sorted({three[0].recipe for three in trio.threes()})
    elsewhere = f" of recipe{'s' * (len(recipes) > 1)} {' and '.join(recipes)}"
    origin = elsewhere * (recipes not in ([], [trio.recipe]))
    most = max(taught.values())
    sharing = "one teacher for all" if most == count else f"{most} of them with the same teacher"
    seeds = f"{count} seeds, {sharing}" if most > 1 else f"{count} seeds"
    gained = count > 1 and delta.low > 0
    if count == 1:
        effect = f"cannot be judged by one seed: {delta.value:+.2f}"
        seeds = "over the test images alone: another seed may give another result"
    elif gained:
        effect = f"gains {delta.value:.2f}"
    elif delta.high < 0:
        effect = f"loses {-delta.value:.2f}"
    else:
        effect = f"makes no difference that these seeds could tell: {delta.value:+.2f}"
    share = gap_recovered(trio)
    told = share and gained and not np.isnan(share.low)
    sentence = (
        f"Experiment {trio.experiment}, recipe {trio.recipe}: distillation {effect} "
        f"points of test accuracy (95 % interval {delta.low:+.2f} to {delta.high:+.2f}, {seeds}): "
        f"student {student:.2f} %, baseline {baseline:.2f} %, the student's "
        f"teacher{'s' * (len(taught) > 1)}{origin} {teacher:.2f} %"
    )
    if told:
        sentence += f"; that is {share_in_words(share, trio)}"
    else:
        sentence += whose_teacher_is_here(trio)
        sentence += "" if share else "; the teacher is no better than the baseline"
    if unequal := more_than_the_loss(trio.pairs()):
        sentence += f"; student and baseline differ in more than the loss: {'; '.join(unequal)}"
    return f"{sentence}."


def whose_teacher_is_here(trio: Trio) -> str:
    """Of how many seeds it is what needs the teacher, where that is not of all."""
    known, count = len(trio.threes()), len(trio.students)
    return f" in the {known} of {count} seeds whose teacher is here" if known < count else ""


def share_in_words(share: Estimate, trio: Trio) -> str:
    words = f"{100 * share.value:.0f} % of the gap to the teacher{whose_teacher_is_here(trio)}"
    bounds = f"{100 * share.low:.0f} to {100 * share.high:.0f} %{mark(share)}"
    if len(trio.students_by_teacher()) < len(trio.students):
        bounds += ", given these teachers"
    return f"{words} (interval {bounds})"


def gain_in_words(comparison: Comparison, trio: Trio) -> str:
    """Of a network on what it is paired with; the number of pairs, too, if not of all seeds."""
    pairs, seeds = len(trio.students), len(comparison.groups[trio.recipe, trio.students[0].name])
    return signed(claims.gain(trio)) + f" (n {pairs})" * (pairs < seeds)


def gain_on_baseline(comparison: Comparison, row: Any, brief: bool) -> str:
    """Of a row of the table. brief: without the name of a baseline that is not the notes'."""
    trio = comparison.trio(row.recipe, row.name)
    words = gain_in_words(comparison, trio) if trio else DASH
    words += "" if brief or row.baseline in ("", "baseline") else f" ({row.baseline})"
    return words + UNEQUAL * bool(row.besides)


def results_rows(comparison: Comparison, recipe: str, brief: bool = False) -> list[dict[str, str]]:
    """The table as it is shown, a row a network; what matters most is what a phone shows first."""
    return [
        {
            "network": row.name,
            "seeds": str(row.seeds or DASH),
            "test": plus_minus(row.test_selected, row.test_selected_std),
            "gain on baseline": gain_on_baseline(comparison, row, brief),
            "best test epoch": plus_minus(row.test_best_epoch, row.test_best_epoch_std),
            "notes": number(claims.NOTES.get(row.name, (np.nan,))[0]),
            "last epoch": plus_minus(row.test_last, row.test_last_std),
            "train": number(row.train_accuracy),
            "held-out": number(row.val_selected),
            "parameters": f"{row.parameters / 1000:,.1f} K",
        }
        for row in comparison.rows(recipe)
    ]


ON_KD = "gain on plain distillation"
ON_EQUAL = "gain on a control that differs in the loss alone"
BESIDES = "differs from the baseline, but for the loss, in"


def own_table(
    comparison: Comparison, recipe: str, names: Sequence[str], columns: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Of these networks the `columns` of the table and what they compare with: header and rows."""
    rows = []
    for row in results_rows(comparison, recipe):
        if (name := row["network"]) in names:
            own = name in comparison.own(recipe)
            kd = comparison.against_kd(recipe, name)
            controls = own_controls(comparison, recipe, name) if own else []
            gain = row["gain on baseline"]
            row["gain on baseline"] = gain.removesuffix(UNEQUAL)  # BESIDES says it
            row[ON_KD] = gain_beside(comparison, kd) if kd else DASH
            if kd and (taught := kd.baselines[0].name) != "student-resnet":
                row[ON_KD] += f" on {taught}"
            row[ON_EQUAL] = "; ".join(
                f"{gain_beside(comparison, trio)} on {trio.baselines[0].name}" for trio in controls
            )
            row[BESIDES] = "; ".join(comparison.besides_the_baseline(recipe, name)) or DASH
            rows.append(row)
    some_equal = any(row[ON_EQUAL] for row in rows)
    header = [*columns, ON_KD, *[ON_EQUAL] * some_equal, BESIDES]
    return header, [[row[key] or DASH for key in header] for row in rows]


def own_controls(comparison: Comparison, recipe: str, name: str) -> list[Trio]:
    """The runs of `name` with each control of the same settings that is in no other column."""
    kd = comparison.against_kd(recipe, name)
    tabled = {comparison.baseline_of(recipe, name)} | ({kd.baselines[0].name} if kd else set())
    trios = comparison.against_equal(recipe, name)
    return [trio for trio in trios if trio.baselines[0].name not in tabled]


def gain_beside(comparison: Comparison, trio: Trio) -> str:
    """The gain, and what is unequal in the loss's settings, and the teacher."""
    words = gain_in_words(comparison, trio)
    besides = {*LOSS_SETTINGS, "teacher"}
    unequal = [each for each in unequal_beside(comparison, trio) if each in besides]
    return f"{words} (other {', '.join(unequal)})" if unequal else words


def unequal_beside(comparison: Comparison, trio: Trio) -> list[str]:
    """In what its pairs differ where the loss alone is to be compared."""
    return comparison.unequal_settings(trio) + ["teacher"] * bool(otherwise_taught(trio))


def difference_in_words(comparison: Comparison, trio: Trio) -> str:
    """Of two networks that are no baselines of the notes."""
    count = len(trio.students)
    seeds = f"{count} seeds" if count > 1 else "one seed"
    unequal = unequal_beside(comparison, trio)
    too = ", too" * (trio.students[0].config.get("loss") != trio.baselines[0].config.get("loss"))
    return (
        f"{trio.students[0].name} − {trio.baselines[0].name}: {signed(claims.gain(trio))} points, "
        f"{seeds}" + (f"; they differ in {', '.join(unequal)}{too}" if unequal else "")
    )


def own_in_words(comparison: Comparison, recipe: str) -> list[str]:
    """Networks that the notes do not have, beside what they compare with."""
    lines, on = [], defaultdict(list)
    for name in comparison.own(recipe):
        kd = comparison.against_kd(recipe, name)
        trios = [kd] * bool(kd) + own_controls(comparison, recipe, name)
        lines += [difference_in_words(comparison, trio) for trio in trios]
        if (base := comparison.baseline_of(recipe, name)) != "baseline":
            on[base].append(name)
    return lines + [f"the gain of {', '.join(names)} is on {base}" for base, names in on.items()]


def unequal_in_words(comparison: Comparison, recipe: str, names: Iterable[str]) -> list[str]:
    alike = defaultdict(list)
    for name in names:
        for what in comparison.besides_the_baseline(recipe, name):
            alike[what].append(name)
    return [
        f"{', '.join(of)} {'differ' if of[1:] else 'differs'} from the baseline in {what}"
        for what, of in alike.items()
    ]


WORDS_EXPLAINED = (
    "The notes are the lab report that is reproduced here. Experiment 1 has a plain CNN as the "
    "teacher, experiment 2 a ResNet; baseline and student are one small CNN, trained alone and "
    "with the teacher. Recipe notes is meant to give the notes' figures, recipe best trains the "
    "same networks with a stronger schedule and augmentation."
)
COLUMNS_EXPLAINED = (
    "Accuracies are in percent: mean ± sample deviation over the seeds.",
    "seeds: how many; –: a teacher of these students that is not among the runs here.",
    "test: at the epoch chosen on the held-out images.",
    "gain on baseline: student − baseline (of another network than the small CNN: on its own "
    "baseline, if that is there) in points of test, paired by seed, with its 95 % interval "
    "(Student's t over the seeds; n: of so many seeds, where others have no baseline).",
    "best test epoch: at the epoch chosen on the test images themselves, the notes' way, and so "
    "too high; notes: their published figure, chosen that way.",
    "train: of the augmented images, while they were trained on, so not comparable between "
    "recipes.",
    "held-out: of the images that chose the epoch, and so a little too high; settings are to be "
    "chosen by it, not by test.",
    "The sentences at the top have the teachers that taught the students of that experiment, once "
    "for each student; the table has all.",
    "Intervals are not adjusted for the number of comparisons: of twenty networks that are no "
    "better and no worse one has an interval without 0 by chance.",
    "gain on plain distillation: on the student of loss kd whose settings in training are "
    "nearest, of several on the best on held-out images; student-resnet unless another is named; "
    "(other alpha, teacher): these differ, too.",
    "gain on a control that differs in the loss alone: on another baseline, or another student of "
    "kd and the same teacher, with these settings and on this device; what differs of the loss's "
    "own settings is named.",
    ONE_SEED_EXPLAINED,
    UNEQUAL_EXPLAINED,
)


TERMINAL_EXPLAINED = (
    "n: seeds (–: a teacher from elsewhere); train: of the augmented images; test: at\n"
    "the epoch chosen on held-out images; best test: at the epoch best on the test\n"
    "images, as the notes chose; notes: the lab report's figure; gain: on baseline"
)


def terminal_table(comparison: Comparison, recipe: str) -> str:
    """In 80 columns."""
    short = {
        "network": "network", "seeds": "n", "train": "train", "test": "test",
        "best test epoch": "best test", "notes": "notes", "gain on baseline": "gain [95 %]",
    }  # fmt: skip
    rows = [list(short.values())] + [
        [row[key].replace(" ± ", "±") for key in short]
        for row in results_rows(comparison, recipe, brief=True)
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[0] = min(widths[0], 80 - sum(widths[1:]) - len(widths[1:]))
    for row in rows:
        if len(row[0]) > widths[0]:  # a line of its own
            row[0] += "\n" + " " * widths[0]
    return "\n".join(
        " ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def wrapped(text: str, indent: str = "") -> str:
    """In 80 columns, no name broken, no number parted from its % sign; `indent` for all lines but
    the first."""
    fixed = text.replace(" %", "\N{NO-BREAK SPACE}%")
    lines = textwrap.fill(fixed, 80, subsequent_indent=indent, break_on_hyphens=False)
    return lines.replace("\N{NO-BREAK SPACE}", " ")


def measured(part: claims.Part) -> str:
    """A part's value with its interval; with its sign where the side of 0 is what matters."""
    words = signed(part.estimate)
    return words if part.claimed in (claims.POSITIVE, claims.NEGATIVE) else words.replace("+", "")


def besides(part: claims.Part) -> str:
    """What else was measured, or why there is no value."""
    none = np.isnan(part.estimate.value)
    return part.aside or ("too few epochs, or all alike" if none else DASH)


def claims_table(verdicts: dict[tuple[str, int], dict[str, Verdict]]) -> pd.DataFrame:
    """claims.csv: a row a statistic; a claim of two parts has two rows with one verdict.

    p is the claim's, adjusted; p_statistic the statistic's own.
    """
    rows = [
        (
            claim, recipe, experiment, part.statistic, *part.estimate[:3], verdict.word,
            "" if np.isnan(part.estimate.low) else part.estimate.over, verdict.p, part.estimate.p,
        )
        for (recipe, experiment), each in verdicts.items()
        for claim, verdict in each.items()
        for part in verdict.parts
    ]  # fmt: skip
    columns = [
        "claim", "recipe", "experiment", "statistic", "value", "low", "high", "verdict",
        "over", "p", "p_statistic",
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


# ---------------------------------------------------------------- the page


def blocks(
    comparison: Comparison,
    verdicts: dict[tuple[str, int], dict[str, Verdict]],
    problems: Sequence[str],
) -> Iterator[Block]:
    trios = comparison.experiments()
    for trio in trios:
        yield Text(headline(trio), strong=True)
    yield Text(WORDS_EXPLAINED)
    if problems:
        yield Table("Missing or left out", ["what"], [[problem] for problem in problems])
    yield Heading("Results")
    yield Points(COLUMNS_EXPLAINED)
    for recipe in comparison.recipes:
        rows = results_rows(comparison, recipe)
        yield Table(f"Recipe {recipe}", list(rows[0]), [list(row.values()) for row in rows])
        if own := comparison.own(recipe):
            columns, rows = own_table(
                comparison, recipe, own, ["network", "seeds", "gain on baseline"]
            )
            yield Table(f"Recipe {recipe}, networks that the notes do not have", columns, rows)
        others = [name for name in comparison.of(recipe) if name not in own]  # a table has those
        remarks = unequal_in_words(comparison, recipe, others) + comparison.remarks(recipe)
        yield Points([what_choosing_adds(comparison, recipe), *remarks])
    if words := as_they_chose(trios):
        yield Text(words)
    yield Heading("The notes' claims")
    yield from claims_blocks(verdicts)
    for recipe in comparison.recipes:
        groups = comparison.of(recipe)
        yield Heading(f"Curves, recipe {recipe}")
        if known := comparison.drawn_together(recipe):
            yield Picture.of(
                f"curves-{recipe}",
                plots.curves(recipe, known),
                "Training loss, its hard and soft parts, and accuracies by epoch of the notes' "
                f"networks, recipe {recipe}. {OTHER_LOSSES} A curve may begin below its frame.",
            )
        if own := comparison.drawn_beside(recipe):
            yield Picture.of(
                f"own-curves-{recipe}",
                plots.own_curves(groups, own),
                "Training loss and held-out accuracy by epoch of the networks that the notes do "
                f"not have, each beside those that it compares with, recipe {recipe}. "
                + OTHER_LOSSES,
            )
        yield Picture.of(
            f"seeds-{recipe}",
            plots.seeds(recipe, groups),
            f"Test accuracy of every seed at the epoch chosen on held-out images, {recipe}.",
        )
        yield Picture.of(
            f"cost-{recipe}",
            plots.cost(recipe, groups),
            f"Test accuracy against parameters and multiply-adds, recipe {recipe}; networks of one "
            "size side by side, those that the notes do not have only where their size differs.",
        )
    images = test_images(trios[0].baselines[0].labels) if trios else None
    if trios and images is None:
        yield Text(
            "The gallery of images is left out: the data set that the runs were tested on is not "
            "here. python -m common.data fetches it, or says what is wrong with it."
        )
    for trio in trios:
        yield Heading(f"Where they differ: experiment {trio.experiment}, recipe {trio.recipe}")
        yield from difference_blocks(trio, images)
    yield Heading("Calibration and fidelity")
    yield from calibration_blocks(comparison)
    yield Heading("How the runs were made")
    yield runs_table(comparison)


def test_images(labels: np.ndarray) -> np.ndarray | None:
    """(N, 28, 28) uint8; None where the data set is not here, or has other test images."""
    try:
        data = load(fetch=False)
    except UserError:
        return None
    return data.test_images if np.array_equal(data.test_labels, labels) else None


def what_choosing_adds(comparison: Comparison, recipe: str) -> str:
    words = [
        f"{row.name} {max(0, row.test_best_epoch - row.test_selected):.2f}"
        for row in comparison.rows(recipe)
    ]
    return f"choosing the epoch on the test images adds, in points: {', '.join(words)}"


def as_they_chose(trios: Sequence[Trio]) -> str:
    """The gains at other epochs, the notes' own among them; empty without an experiment 2."""
    published = claims.NOTES["student-resnet"][0] - claims.NOTES["baseline"][0]
    trios = [trio for trio in trios if trio.experiment == 2]
    if not trios:
        return ""

    def with_recipes(gain: Callable[[Trio], Estimate]) -> str:
        return ", ".join(
            f"{signed(gain(trio))} with recipe {trio.recipe}"
            + " (one seed)" * (len(trio.students) == 1)
            for trio in trios
        )

    return (
        "At the best test epoch, the notes' way of choosing, the gain is "
        f"{published:+.2f} points in the notes, {with_recipes(claims.gain_at_best_test_epoch)}; "
        f"at the last epoch, without choosing, {with_recipes(claims.gain_at_last_epoch)}."
    )


def claims_blocks(verdicts: dict[tuple[str, int], dict[str, Verdict]]) -> Iterator[Block]:
    if not verdicts:
        yield Text(
            "No experiment of the notes is whole yet: a baseline, and a student of the ResNet or "
            "the wide CNN with its teacher are needed."
        )
        return
    yield Text(
        "Each claim is one test. All of it was fixed before the results were looked at, but for "
        "three things: which seeds of the teachers C4 and C8 take, that whole epochs cannot be "
        "averaged more finely than one of them is rounded, and that one seed decides no claim "
        "about distillation. The column besides decides nothing. Supported or contradicted: p < "
        "0.05 after Holm's adjustment for the claims of one experiment (intervals are not "
        "adjusted); undecided: too few seeds or epochs to tell. Student and baseline are paired "
        "by seed; with one seed all but C4, and C8 where there are more teachers, is undecided. In "
        "the figures p is the claim's, adjusted: an interval in the shade is not enough. "
        f"{ONE_SEED_EXPLAINED} Such intervals are drawn open."
    )
    shown = {f"{recipe}, experiment {k}": each for (recipe, k), each in verdicts.items()}
    yield Table(
        "Verdicts",
        ["claim", "what the notes say", *shown],
        [
            [claim, text, *(each[claim].word for each in shown.values())]
            for claim, (text, _, _) in claims.CLAIMS.items()
        ],
    )
    for claim, (text, how, _) in claims.CLAIMS.items():
        yield Heading(f"{claim}: {text}", 3)
        yield Text(how)
        yield Picture.of(
            f"claim-{claim}",
            plots.claim(
                {key: (each[claim].parts, in_brief(each[claim])) for key, each in shown.items()}
            ),
            f"{claim}: each statistic with its 95 % interval; shaded where the claim says it lies.",
        )
        rows = [
            {
                "experiment": key,
                "statistic": part.statistic,
                "value [95 % interval]": measured(part),
                "verdict": in_brief(each[claim]),
                "besides": besides(part),
            }
            for key, each in shown.items()
            for part in each[claim].parts
        ]
        yield Table(f"{claim}, measured", list(rows[0]), [list(row.values()) for row in rows])


def difference_blocks(trio: Trio, images: np.ndarray | None) -> Iterator[Block]:
    suffix = f"{trio.recipe}-{trio.experiment}"
    change = [claims.class_error_change(trio, label) for label in range(len(CLASSES))]
    dots = " (dots: the seeds)" * (len(trio.students) > 1)
    yield Picture.of(
        f"class-errors-{suffix}",
        plots.class_errors(trio, change),
        f"Errors class by class for teacher, baseline and student{dots}, and the change "
        "from baseline to student with 95 % intervals. They are not adjusted: of ten, two in five "
        "times one or more miss 0 by chance.",
    )
    yield Picture.of(
        f"confusions-{suffix}",
        plots.confusions(trio),
        "Confusion matrices of teacher, baseline and student, and student minus baseline. Colours "
        "are of the errors: what is right is only written, and from 15 % on all are alike. Blank: "
        "below 0.05.",
    )
    taught = trio.threes()
    with_student = agreement_table(taught)
    next_seed = taught[1:] + taught[:1]
    with_baseline = agreement_table(
        [(t, base, other) for (t, base, _), (_, other, _) in zip(taught, next_seed, strict=True)]
    )
    meaning = {
        (True, False, True): "gained, as the teacher",
        (False, True, False): "lost, as the teacher",
        (True, True, False): "lost, unlike the teacher",
        (False, False, True): "gained, unlike the teacher",
    }
    several = len(taught) > 1
    yield Table(
        "Test images by who is right, all seeds whose teacher is here",
        ["teacher", "baseline", "student", "share", *["by chance"] * several, ""],
        [
            [
                *("right" if right else "wrong" for right in kind),
                f"{100 * share:.2f} %",
                *[f"{100 * by_chance:.2f} %"] * several,
                meaning.get(kind, ""),
            ]
            for (kind, share), (_, by_chance) in zip(with_student, with_baseline, strict=True)
        ],
    )
    if several:
        yield Text(
            "By chance: the same with the next seed's baseline in the student's place. Two "
            "baselines of different seeds err on different images, too: what training with the "
            "teacher changed is the difference of the two shares."
        )
    yield Table(
        "Student against baseline, seed by seed",
        ["seed", "baseline", "student", "McNemar's exact p"],
        [
            [
                str(base.seed),
                f"{100 * base.right.mean():.2f}",
                f"{100 * student.right.mean():.2f}",
                claims.p_in_words(stats.mcnemar(base.right, student.right)),
            ]
            for base, student in trio.pairs()
        ],
    )
    share = gap_recovered(trio)
    if share and np.isnan(share.low):
        yield Text(
            "What share of the gap to the teacher the student recovers cannot be told: there may "
            "be no gap."
        )
    elif share:
        how = "bootstrap over the test images" if share.over == "images" else "Fieller's over seeds"
        yield Text(f"The student recovers {share_in_words(share, trio)}: {how}.")
    if images is not None:
        yield Picture.of(
            f"gallery-{suffix}",
            plots.gallery(trio, images),
            "Images that the student gets right and the baseline wrong, and the other way round, "
            "with the probabilities that the three networks give to the classes: the first such "
            "images of the first seed. Grey: the true class; taken for: by the one that is wrong.",
        )


def calibration_blocks(comparison: Comparison) -> Iterator[Block]:
    for trio in comparison.experiments():
        yield Picture.of(
            f"reliability-{trio.recipe}-{trio.experiment}",
            plots.reliability(trio),
            "Accuracy minus confidence in 15 bins of equally many test images, a line per seed: "
            f"recipe {trio.recipe}, experiment {trio.experiment}.",
        )
    rows = []
    for row, runs in zip(comparison.table.itertuples(), comparison.groups.values(), strict=True):
        temperatures = [stats.fit_temperature(run.val_logits, run.val_labels) for run in runs]
        words = [f"{row.name}, {row.recipe}", f"{np.mean(temperatures):.2f}"]
        for measure, digits in (
            (stats.expected_calibration_error, 2),
            (stats.chance_calibration_error, 2),
            (stats.negative_log_likelihood, 3),
            (stats.brier_score, 3),
        ):
            before = np.mean([measure(run.logits, run.labels) for run in runs])
            after = np.mean(
                [
                    measure(run.logits / temperature, run.labels)
                    for run, temperature in zip(runs, temperatures, strict=True)
                ]
            )
            words.append(f"{before:.{digits}f} → {after:.{digits}f}")
        words += [number(row.agreement_with_teacher), number(row.kl_to_teacher, 3)]
        rows.append(words)
    yield Text(
        "ECE: expected calibration error, in 15 bins of equally many images; by chance: about what "
        "a network whose confidences are all true would have on so few images; NLL: negative "
        "log-likelihood. A student is compared with its teacher, a baseline with that of the "
        "student of its seed."
    )
    yield Table(
        "Before → after temperature scaling fitted on held-out images; means over the seeds",
        [
            "network, recipe", "temperature", "ECE (points)", "by chance", "NLL (nats)",
            "Brier score",
            "agrees with teacher (%)", "KL to teacher (nats)",
        ],
        rows,
    )  # fmt: skip


def from_to(values: Sequence[float]) -> str:
    ends = dict.fromkeys(f"{value:.0f}" for value in (min(values), max(values)))
    return " to ".join(ends)


def runs_table(comparison: Comparison) -> Table:
    words = {
        "epochs": "epochs {}", "batch_size": "batch {}", "lr": "lr {}", "schedule": "{}",
        "drop": "drop to {}", "warmup": "warm-up {}", "momentum": "momentum {}",
        "weight_decay": "weight decay {}", "label_smoothing": "label smoothing {}",
        "padding": "shifts to {}", "cutout": "cutout {}", "loss": "{}",
        "temperature": "temperature {}", "alpha": "alpha {}", "soft_weight": "soft weight {}",
    }  # fmt: skip

    def settings(config: dict) -> str:
        shown = {key: value for key, value in config.items() if value is not None}
        if config["schedule"] != "step":
            shown.pop("drop", None)
        said = [form.format(shown[key]) for key, form in words.items() if key in shown]
        said += ["no flip"] * (not shown.get("flip", True))
        return ", ".join(said + [f"{key} {shown[key]}" for key in own_settings(shown)])

    def seconds(runs: Sequence[Record]) -> str:
        """By device: times on different ones are not to be compared."""
        parts = pd.concat(
            rows[["seconds"]].assign(
                device=f"{config['device_name']}, {config['precision']}", run=str(run.folder)
            )
            for run in runs
            for rows, config in run.stages
        )
        words = []
        for device, part in parts.groupby("device"):
            by_run = part.groupby("run")["seconds"]
            epochs = by_run.size()
            of = f" ({from_to(epochs)} of the epochs)" * (min(epochs) < runs[0].config["epochs"])
            words.append(f"{device}: {from_to(by_run.sum())}{of}")
        return "; ".join(words)

    def versions(runs: Sequence[Record]) -> str:
        used = {str(c["versions"].get("torch", DASH)) for run in runs for _, c in run.stages}
        return ", ".join(sorted(used))

    return Table(
        "One row per recipe and network; what ran beside other runs took longer than it does alone",
        ["network, recipe", "settings", "seeds", "torch", "seconds a run"],
        [
            [
                f"{name}, {recipe}",
                settings(runs[0].config),
                " ".join(str(run.seed) for run in runs),
                versions(runs),
                seconds(runs),
            ]
            for (recipe, name), runs in comparison.groups.items()
        ],
    )


# ---------------------------------------------------------------- files


def write_report(
    folder: Path,
    comparison: Comparison,
    verdicts: dict[tuple[str, int], dict[str, Verdict]],
    problems: Sequence[str],
) -> None:
    figures = folder / "figures"
    former = pictures_of(folder / "report.md")
    figures.mkdir(parents=True, exist_ok=True)
    for name in former:  # of a report on other runs
        for ending in ("png", "svg"):
            (figures / f"{name}.{ending}").unlink(missing_ok=True)
    comparison.table.to_csv(folder / "results.csv", index=False, float_format="%.6g")
    claims_table(verdicts).to_csv(folder / "claims.csv", index=False, float_format="%.6g")
    page = list(blocks(comparison, verdicts, problems))
    for block in page:
        if isinstance(block, Picture):
            (figures / f"{block.name}.png").write_bytes(block.png)
            (figures / f"{block.name}.svg").write_bytes(block.svg)
    pages = {"html": to_html(TITLE, page), "md": to_markdown(TITLE, page, "figures")}
    for ending, text in pages.items():  # which may name a folder whose name is no UTF-8
        path = folder / f"report.{ending}"
        path.write_text(text, encoding="utf-8", errors="backslashreplace")


def pictures_of(report: Path) -> list[str]:
    """Names of the figures of a report that is there already. Raises UserError on another's."""
    if not report.exists():
        return []
    text, ours = report.read_text(encoding="utf-8", errors="replace"), f"# {TITLE}\n"
    if not ours.startswith(text[: len(ours)]):  # one that was cut is ours
        raise UserError(f"cannot write {report}", "what is there is no report", "use another --out")
    names = re.findall(r"^!\[.*\]\(figures/([^/]+)\.png\)$", text, re.MULTILINE)
    return [name for name in map(unquote, names) if "/" not in name]


def results_in_brief(comparison: Comparison) -> str:
    """README's first screen: the networks of the notes, beside those of the recipes."""
    shown = {
        recipe: {row["network"]: row for row in results_rows(comparison, recipe)}
        for recipe in comparison.main_recipes
    }
    columns = [
        (recipe, column)
        for recipe in shown
        for column in ("best test epoch", "test", "gain on baseline")
        if column != "best test epoch" or recipe == "notes"  # whose figures are of that epoch
    ]
    rows = []
    for name in NAMES:
        if row := next((named[name] for named in shown.values() if name in named), None):
            cells = [shown[recipe].get(name, {}).get(column, DASH) for recipe, column in columns]
            rows.append([name, row["parameters"], row["notes"], *cells])
    heads = [f"recipe {recipe}: {column}" for recipe, column in columns]
    words = markdown_table(["network", "parameters", "the notes: best test epoch", *heads], rows)
    trios = comparison.main_experiments()
    told = [f"**{headline(trio)}**" for trio in trios]
    unequal = defaultdict(list)
    for recipe, named in shown.items():
        for what in unequal_in_words(comparison, recipe, [name for name in NAMES if name in named]):
            unequal[what].append(f"recipe {recipe}")
    parts = [
        *told,
        words,
        "![Test accuracy by epoch](results/headline.svg)",
        ONE_SEED_EXPLAINED if ONE_SEED in "".join([*told, words]) else "",
        *(f"{UNEQUAL.strip()} {' and '.join(of)}: {what}" for what, of in unequal.items()),
        as_they_chose(trios),
    ]
    return "\n\n".join(filter(None, parts))


def own_in_brief(comparison: Comparison) -> str:
    """What the first screen leaves out: networks that the notes do not have, former recipes."""
    known = ["network", "seeds", "held-out", "test", "gain on baseline"]
    parts = []
    for recipe in comparison.recipes:
        first_screen = NAMES if recipe in comparison.main_recipes else ()
        names = [name for name in comparison.of(recipe) if name not in first_screen]
        columns, rows = own_table(comparison, recipe, names, known)
        remarks = comparison.remarks(recipe)
        if rows or remarks:
            parts.append(f"Recipe `{recipe}`" + (", accuracies in %:" if rows else ":"))
        if rows:
            parts.append(markdown_table(columns, rows))
        if remarks:
            parts.append("\n".join(f"- {line}" for line in remarks))
    return "\n\n".join(parts + marks_explained(" ".join(parts))) or "None."


def claims_in_brief(verdicts: dict[tuple[str, int], dict[str, Verdict]]) -> str:
    """A line a claim."""
    columns = [f"{recipe}, experiment {experiment}" for recipe, experiment in verdicts]
    rows = [
        [claim, text, *(in_brief(each[claim]) for each in verdicts.values())]
        for claim, (text, _, _) in claims.CLAIMS.items()
    ]
    return markdown_table(["", "what the notes claim", *columns], rows)


def read_marked(path: Path) -> str:
    """A page's text. Raises UserError unless it has marks of ours, in pairs, one after another."""
    choices = [f"{start} and {end}" for start, end in README_MARKS.values()]
    what_to_do = f"put {', or '.join(choices)} into it"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}", str(error), what_to_do) from error
    pairs = [pair for pair in README_MARKS.values() if any(mark in text for mark in pair)]
    ends = sorted(tuple(map(text.find, pair)) for pair in pairs)
    places = [place for both in ends for place in both]
    once = all(text.count(mark) == 1 for pair in pairs for mark in pair)
    if not pairs or not once or places != sorted(places):
        why = "its marks are not in pairs, each once" if pairs else "its marks are missing"
        raise UserError(f"{path} has no place for results", why, what_to_do)
    return text


def write_marked(
    pages: dict[Path, str],
    comparison: Comparison,
    verdicts: dict[tuple[str, int], dict[str, Verdict]],
) -> None:
    """The pages with what stands between their marks replaced, and the picture of the results."""
    trios = comparison.main_experiments()
    shown = {key: verdicts[key] for key in ((trio.recipe, trio.experiment) for trio in trios)}
    content = {
        "results": results_in_brief(comparison),
        "claims": claims_in_brief(shown),
        "controls": own_in_brief(comparison),
    }
    for path, text in pages.items():
        for part, (start, end) in README_MARKS.items():
            if start in text:
                before, after = text.partition(start)[0], text.partition(end)[2]
                text = f"{before}{start}\n{content[part]}\n{end}{after}"
        if README_MARKS["results"][0] in text:
            picture = path.parent / "results" / "headline.svg"
            picture.parent.mkdir(exist_ok=True)
            pictured = {recipe: comparison.of(recipe) for recipe in comparison.main_recipes}
            pictured |= {trio.recipe: trio.groups() for trio in trios}
            picture.write_bytes(to_bytes(plots.headline(pictured), "svg"))
        scratch = path.with_name(f".{path.name}.tmp")  # it holds more than what is written here
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)


if __name__ == "__main__":
    script(main)
