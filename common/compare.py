"""Runs put beside each other: the rows of results.csv, and who is compared with whom."""

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from common import claims, stats
from common.claims import Trio
from common.config import RECIPES, RESULTS_DIR, SIZE, BaselineConfig, StudentConfig, differing
from common.records import (
    CLASS_COUNT,
    LOSS_SETTINGS,
    NAMES,
    NOT_SETTINGS,
    WHERE,
    Record,
    ensemble,
    in_words,
    order,
    own_settings,
)
from common.stats import Estimate

# Settings that are columns of results.csv, as a row's first run has them.
SETTINGS_SHOWN = ("arch", "epochs", "lr", "loss", "temperature", "alpha", "soft_weight")
EXPERIMENTS = {2: "resnet", 1: "cnn"}  # experiment of the notes: its teacher
# What two runs may have otherwise than each other where the loss alone is to be compared.
LOSS_ALONE = (NOT_SETTINGS | LOSS_SETTINGS) - {"device_name", "precision"}


def _loss_alone_differs(control: Record, student: Record) -> bool:
    """Whether the loss alone is between them, and the control has none or kd of its teacher."""
    if student.role != "student" or differing(control.settings, student.settings, LOSS_ALONE):
        return False
    if control.role == "baseline":
        return True
    same_teacher = control.teacher_digests == student.teacher_digests
    return same_teacher and control.config.get("loss") == "kd" != student.config.get("loss")


def _moved(name: str, runs: Sequence[Record]) -> list[str]:
    """Which of a network's runs went on elsewhere, a line for each place and epoch."""
    seeds = defaultdict(list)
    for run in runs:
        for change in run.config.get("resumed_with") or ():
            where = ", ".join(f"{key} {change[key]}" for key in sorted(WHERE & change.keys()))
            if where:  # else but bits differ
                seeds[f"after epoch {change['after_epoch']}: {where}"].append(str(run.seed))
    return [f"{name} seed {', '.join(of)} went on elsewhere {what}" for what, of in seeds.items()]


def _with_seeds(words: str, seeds: Collection[int], of: Sequence) -> str:
    """The words, and of which seeds they are true, if not of all that there are."""
    return words + f" (seed {', '.join(map(str, seeds))})" * (len(seeds) < len(of))


def _not_learned(name: str, runs: Sequence[Record]) -> list[str]:
    """Which of a network's runs do hardly better than guessing: a line each."""
    chance = 100 / CLASS_COUNT
    return [
        f"{name} seed {run.seed} learned next to nothing: test {test:.2f} %, chance {chance:.0f} %"
        for run in runs
        if (test := 100 * run.right.mean()) < 2 * chance
    ]


class Comparison:
    """The complete runs among `records`, by recipe and network.

    A network is compared with the baselines of its own recipe and seeds, one of another
    architecture than the notes' with those of the same, if there are such. A student's teacher is
    the one whose best.pt has the digest that the student's config.json recorded, or the ensemble
    of those.
    """

    def __init__(self, records: list[Record], lent: Sequence[Record] = ()):
        """lent: teachers of these runs' students from elsewhere. They are no seeds of a row that
        has runs of its own."""
        self.lent = {teacher.folder for teacher in lent}
        groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
        for record in records:
            if record.complete:
                groups[record.recipe, record.name].append(record)
        here = set(groups)
        for teacher in lent:
            if (teacher.recipe, teacher.name) not in here:
                groups[teacher.recipe, teacher.name].append(teacher)
        self.unfinished = {(r.recipe, r.name) for r in records if not r.complete}
        present = {recipe for recipe, _ in groups}
        # Not those of old, unless there are no others.
        self.main_recipes = [each for each in RECIPES if each in present] or sorted(present)
        self.recipes = self.main_recipes + sorted(present.difference(self.main_recipes))
        self.groups = {
            key: groups[key]
            for key in sorted(groups, key=lambda k: (self.recipes.index(k[0]), order(k[1])))
        }
        self.teachers = {
            run.weights_sha256: run
            for run in (*records, *lent)
            if run.complete and run.role == "teacher"
        }

    def of(self, recipe: str) -> dict[str, list[Record]]:
        """The recipe's runs by network, in the order of the table."""
        return {name: runs for (r, name), runs in self.groups.items() if r == recipe}

    def trio(
        self, recipe: str, name: str, experiment: int = 0, against: str | None = None
    ) -> Trio | None:
        """The runs of `name` with the baselines of their seeds and with their teachers, if any,
        and with those teachers' other seeds.

        against: the network that takes the baseline's place. None for teachers, for that network
        itself, and where no seed has both.
        """
        against = against or self.baseline_of(recipe, name)
        baselines = {run.seed: run for run in self.groups.get((recipe, against), [])}
        runs = [run for run in self.groups.get((recipe, name), []) if run.seed in baselines]
        if name == against or not runs or runs[0].role == "teacher":
            return None
        teachers = {t.weights_sha256: t for run in runs if (t := self.teacher_of(run))}
        for teacher in list(teachers.values()):
            row = self.groups.get((teacher.recipe, teacher.name), [])
            seeds = {run.weights_sha256: run for run in row}
            if teacher.weights_sha256 in seeds:  # else it is lent, beside a row of other runs
                teachers |= seeds
        pairs = [baselines[run.seed] for run in runs]
        return Trio(recipe, experiment, list(teachers.values()), pairs, runs)

    def baseline_of(self, recipe: str, name: str) -> str:
        """The network that is its baseline: of another architecture than the notes' the baseline of
        the same, of a student if possible one that differs in the loss alone."""
        runs = self.groups.get((recipe, name), [])
        if not runs or runs[0].role == "teacher" or runs[0].config["arch"] == BaselineConfig.arch:
            return "baseline"
        arch = runs[0].config["arch"]
        if runs[0].role == "baseline":
            usual = BaselineConfig(arch=arch).name()
            return usual if name != usual and (recipe, usual) in self.groups else "baseline"
        equal = {trio.baselines[0].name for trio in self.against_equal(recipe, name)}
        return max(self.alone(recipe, arch), key=equal.__contains__, default="baseline")

    def experiments(self) -> list[Trio]:
        """The notes' experiments that are whole: teacher, baseline and student."""
        trios = [
            self.trio(recipe, f"student-{arch}", experiment)
            for recipe in self.recipes
            for experiment, arch in EXPERIMENTS.items()
        ]
        return [trio for trio in trios if trio and trio.threes()]

    def main_experiments(self) -> list[Trio]:
        """Of each main recipe one, experiment 2 where it is whole: what a first screen shows."""
        first: dict[str, Trio] = {}
        for trio in self.experiments():
            if trio.recipe in self.main_recipes:
                first.setdefault(trio.recipe, trio)
        return list(first.values())

    def own(self, recipe: str) -> list[str]:
        """Networks that the notes do not have: methods of one's own, and controls."""
        return [
            name
            for name, runs in self.of(recipe).items()
            if name not in NAMES and runs[0].role != "teacher"
        ]

    def against_kd(self, recipe: str, name: str) -> Trio | None:
        """The runs of `name` with the students of plain distillation of their seeds.

        Experiment 2's, of the ResNet, else experiment 1's; or a student's own, such as tuned ones.
        Of their own architecture, and of those the ones with most seeds, then with the fewest
        other settings of the training, then of their own teachers and device; of equally near
        ones those that are best on held-out images. None for the notes' networks.
        """
        if name in NAMES:
            return None
        arch = self.arch(recipe, name)

        def against(students: Iterable[str]) -> list[Trio]:
            trios = (
                self.trio(recipe, name, against=student)
                for student in students
                if self.baseline_of(recipe, student) != name  # whose own gain says it
            )
            return [trio for trio in trios if trio and trio.baselines[0].config["arch"] == arch]

        def nearness(trio: Trio) -> tuple[int, ...]:
            unequal = set(self.unequal_settings(trio))
            digests = [(a.teacher_digests, b.teacher_digests) for a, b in trio.pairs()]
            same_teachers = sum(a == b for a, b in digests)
            as_many = sum(len(a) == len(b) for a, b in digests)
            training, places = len(unequal - WHERE - SIZE - LOSS_SETTINGS), len(unequal & WHERE)
            return len(trio.students), -training, same_teachers, as_many, -places

        def strength(trio: Trio) -> float:
            return np.mean([run.best_row["val_accuracy"] for run in trio.baselines])

        kd = StudentConfig(arch=arch, loss="kd")
        usual = [kd.name(teacher) for teacher in EXPERIMENTS.values()]
        nearest = sorted(against(usual), key=nearness, reverse=True)[:1]  # of equal ones the first
        if self.role(recipe, name) == "student" and not self.plain(recipe, name):
            nearest += against(own for own in self.own_plain(recipe) if own not in usual)
        return max(nearest, key=lambda trio: (*nearness(trio), strength(trio)), default=None)

    def role(self, recipe: str, name: str) -> str:
        return self.groups[recipe, name][0].role

    def arch(self, recipe: str, name: str) -> str:
        return self.groups[recipe, name][0].config["arch"]

    def plain(self, recipe: str, name: str) -> bool:
        """Whether these runs are students of plain distillation: of `kd` and nothing besides."""
        config = self.groups[recipe, name][0].config
        return config.get("loss") == "kd" and not own_settings(config)  # only students have a loss

    def own_plain(self, recipe: str) -> list[str]:
        """Students of plain distillation that the notes do not have, such as tuned ones."""
        return [own for own in self.own(recipe) if self.plain(recipe, own)]

    def alone(self, recipe: str, arch: str = BaselineConfig.arch) -> list[str]:
        """Networks of an architecture that are trained alone, but for the notes' baseline."""
        alone = (own for own in self.own(recipe) if self.role(recipe, own) == "baseline")
        return [own for own in alone if self.arch(recipe, own) == arch]

    def drawn_together(self, recipe: str) -> dict[str, list[Record]]:
        """The notes' networks, without lent teachers trained for more epochs than any run here, or
        beside none."""
        groups = {name: runs for name, runs in self.of(recipe).items() if name in NAMES}
        here = (run for runs in groups.values() for run in runs if run.folder not in self.lent)
        longest = max((len(run.log) for run in here), default=0)
        return {name: runs for name, runs in groups.items() if len(runs[0].log) <= longest}

    def drawn_beside(self, recipe: str) -> dict[str, list[str]]:
        """Networks that the notes do not have, each with those it is drawn beside.

        The teachers for a teacher, else the baseline, and for a student plain distillation too.
        """
        groups = self.of(recipe)
        beside = {}
        for name, runs in groups.items():
            if name not in NAMES:
                role = runs[0].role
                base = self.baseline_of(recipe, name)
                wanted = {"teacher-resnet", "teacher-cnn"} if role == "teacher" else {base}
                if role == "student" and (kd := self.against_kd(recipe, name)):
                    wanted.add(kd.baselines[0].name)
                beside[name] = [other for other in groups if other in wanted]
        return beside

    def against_equal(self, recipe: str, name: str) -> list[Trio]:
        """The runs of a student with each control that differs from them in the loss alone.

        A control is a baseline, or for another loss than kd a student of kd and the same teacher.
        """
        trios = (self.trio(recipe, name, against=control) for control in self.of(recipe))
        return [
            trio
            for trio in trios
            if trio and all(_loss_alone_differs(*pair) for pair in trio.pairs())
        ]

    def unequal_settings(self, trio: Trio) -> list[str]:
        """Which settings of the pairs differ, where the loss alone is to be compared."""
        ignored = LOSS_ALONE - {"temperature", "alpha", "soft_weight"}
        if any(run.role == "baseline" for run in (trio.baselines[0], trio.students[0])):
            ignored = LOSS_ALONE
        pairs = (differing(a.settings, b.settings, ignored) for a, b in trio.pairs())
        return sorted(set().union(*pairs))

    def besides_the_baseline(self, recipe: str, name: str) -> list[str]:
        """In what they differ from the baselines of their seeds, but for the loss, in words."""
        runs = self.groups[recipe, name]
        if name == "baseline" or runs[0].role == "teacher":
            return []
        trio = self.trio(recipe, name)
        bases = self.groups.get((recipe, self.baseline_of(recipe, name)), [])[:1]
        # Where no seed has both, the first of each.
        pairs = trio.pairs() if trio else [(base, runs[0]) for base in bases]
        return more_than_the_loss(pairs)

    def remarks(self, recipe: str) -> list[str]:
        """Why a comparison may be unfair or say nothing, in words; and ensembles."""
        remarks = self._other_than(recipe)
        taught = defaultdict(list)  # by teachers from elsewhere
        for name, runs in self.of(recipe).items():
            remarks += _moved(name, runs) + _not_learned(name, runs)
            if name == "baseline" or runs[0].role == "teacher":
                continue
            strangers = [
                (run.seed, self._stranger(t, run))
                for run in runs
                for t in self.members(run)
                if t.recipe != recipe or t.folder in self.lent
            ]
            if strangers:
                seeds, teachers = map(dict.fromkeys, zip(*strangers, strict=True))
                taught[", ".join(teachers)].append(_with_seeds(name, seeds, runs))
            trio = self.against_kd(recipe, name)
            if trio and (seeds := otherwise_taught(trio)):
                who, plain = _with_seeds(name, seeds, runs), trio.baselines[0].name
                remarks.append(f"{who} had another teacher than {plain} of its seed")
            remarks += self._taught(name, runs)
        remarks += [
            f"{', '.join(names)} {'were' if names[1:] else 'was'} taught by {teachers}"
            for teachers, names in taught.items()
        ]
        return list(dict.fromkeys(remarks))  # one ensemble may have taught several networks

    def _stranger(self, teacher: Record, student: Record) -> str:
        """A teacher from elsewhere; by its folder where a row of the table may have its name."""
        words = f"{teacher.recipe}/{teacher.name}/seed-{teacher.seed}"
        if teacher.folder.is_relative_to(RESULTS_DIR):
            words = f"the published {words}"
        elif teacher.folder in self.lent:
            words = str(teacher.folder)
        epochs = teacher.config["epochs"]
        trained = f" ({epochs} epoch{'s' * (epochs > 1)})"
        return words + trained * (epochs != student.config["epochs"])

    def _taught(self, name: str, runs: Sequence[Record]) -> list[str]:
        """How accurate the ensembles are that taught a network, and whether its seeds share a
        teacher, where the sentence on an experiment of the notes does not say so."""
        taught_by = {run.teacher_digests: self.members(run) for run in runs}
        ensembles = [members for members in taught_by.values() if len(members) > 1]
        right = sorted(100 * ensemble(members).right.mean() for members in ensembles)
        remarks = []
        if len(ensembles) == 1:
            *names, last = (f"{m.recipe}/{m.name}/seed-{m.seed}" for m in ensembles[0])
            names = f"{', '.join(names)} and {last}"
            remarks.append(f"the ensemble of {names} has a test accuracy of {right[0]:.2f} %")
        elif ensembles:
            remarks.append(
                f"the {len(ensembles)} ensembles that taught {name} have test accuracies of "
                f"{right[0]:.2f} to {right[-1]:.2f} %"
            )
        teachers = [digest for run in runs for digest in set(run.teacher_digests)]
        if name in NAMES or len(set(teachers)) == len(teachers):
            return remarks
        if len(taught_by) == 1:
            one = "ensemble" if len(set(teachers)) > 1 else "teacher"
            shared = f"one {one} taught all seeds of {name}, whose interval leaves out the chance "
            return [*remarks, f"{shared}in the training of that {one}"]
        return [*remarks, f"seeds of {name} share teachers, so its interval is too narrow"]

    def _other_than(self, recipe: str) -> list[str]:
        """Which of the notes' networks were not trained as the recipe says, in words; and of the
        others those that deviate in the same way, as all do in a short look, or have no baseline.
        """
        named: dict[str, list[str]] = defaultdict(list)
        for name, runs in self.of(recipe).items():  # the notes' first
            role, _, arch = name.partition("-")
            if name not in NAMES:
                role = runs[0].role
            kind, arch = ("teacher", arch) if role == "teacher" else ("small-cnn", "small-cnn")
            settings = RECIPES.get(recipe, {}).get(kind, {})
            if settings and name in NAMES:
                settings = settings | {"arch": arch}
            ignored = () if name in NAMES and role == "student" else LOSS_SETTINGS
            trained = {key: runs[0].config.get(key) for key in settings}
            what = in_words(settings, trained, ignored)
            # What else others have, stands in their table, beside what they compare with.
            if name in NAMES or what in named or not self.trio(recipe, name):
                named[what].append(name)
        named.pop("", None)
        return [
            f"not the settings of recipe {recipe}: {', '.join(names)} ({what})"
            for what, names in named.items()
        ]

    def teacher_of(self, run: Record) -> Record | None:
        """A student's teacher; for a baseline, the teacher of the first student of its seed."""
        if run.role == "baseline":
            students = [
                student
                for arch in EXPERIMENTS.values()
                for student in self.groups.get((run.recipe, f"student-{arch}"), [])
                if student.seed == run.seed and student.role == "student"
            ]
            return next((t for s in students if (t := self.teacher_of(s))), None)
        members = self.members(run)
        return ensemble(members) if members else None

    def members(self, run: Record) -> list[Record]:
        """A student's teacher, or those of its ensemble in the order of their folders; none if one
        is not among the runs."""
        known = [self.teachers[d] for d in run.teacher_digests if d in self.teachers]
        known.sort(key=lambda teacher: teacher.folder)
        return known if len(known) == len(run.teacher_digests) else []

    @cached_property
    def table(self) -> pd.DataFrame:
        """results.csv: a row a recipe and network."""
        return pd.DataFrame([self._row(*key) for key in self.groups])

    def rows(self, recipe: str) -> Iterator[Any]:
        """The table's rows of a recipe."""
        return self.table[self.table["recipe"] == recipe].itertuples()

    def _row(self, recipe: str, name: str) -> dict[str, Any]:
        """Accuracies in percent, differences in points, NLL and KL in nats, seconds a run; of a
        lent teacher no seeds."""
        runs = self.groups[recipe, name]
        selected = pd.Series([100 * run.right.mean() for run in runs])
        last = pd.Series([run.log["test_accuracy"].iloc[-1] for run in runs])
        best = pd.Series([run.log["test_accuracy"].max() for run in runs])
        trio, kd = self.trio(recipe, name), self.against_kd(recipe, name)
        delta, delta_kd = (claims.gain(each) if each else Estimate(math.nan) for each in (trio, kd))
        recovered = gap_recovered(trio) if trio else None
        pairs = trio.pairs() if trio else []
        p = math.nan
        if len(pairs) == 1:  # several seeds see the same images: not to be pooled
            p = stats.mcnemar(*(run.right for run in pairs[0]))
        told = [(run, t) for run in runs if (t := self.teacher_of(run))]

        def fidelity(measure: Any) -> float:
            return np.mean([measure(r.logits, t.logits) for r, t in told]) if told else math.nan

        def calibration(measure: Any) -> float:
            return np.mean([measure(run.logits, run.labels) for run in runs])

        return {
            "recipe": recipe,
            "name": name,
            "parameters": runs[0].config["parameters"],
            "seeds": sum(run.folder not in self.lent for run in runs),
            "train_accuracy": np.mean([run.best_row["train_accuracy"] for run in runs]),
            "test_selected": selected.mean(),
            "test_selected_std": selected.std(),  # nan for a single seed
            "test_last": last.mean(),
            "test_last_std": last.std(),
            "test_best_epoch": best.mean(),
            "test_best_epoch_std": best.std(),
            "delta": delta.value,
            "delta_low": delta.low,
            "delta_high": delta.high,
            "gap_recovered": recovered.value if recovered else math.nan,
            "mcnemar_p": p,
            "agreement_with_teacher": fidelity(stats.agreement),
            "kl_to_teacher": fidelity(stats.kl_to_teacher),
            "ece": calibration(stats.expected_calibration_error),
            "nll": calibration(stats.negative_log_likelihood),
            "seconds": np.mean([run.log["seconds"].sum() for run in runs]),
            "val_selected": np.mean([run.best_row["val_accuracy"] for run in runs]),
            "pairs": len(pairs),
            "baseline": trio.baselines[0].name if trio else "",
            "besides": "; ".join(self.besides_the_baseline(recipe, name)) if trio else "",
            "kd": kd.baselines[0].name if kd else "",
            "delta_kd": delta_kd.value,
            "delta_kd_low": delta_kd.low,
            "delta_kd_high": delta_kd.high,
            "pairs_kd": len(kd.students) if kd else 0,
            "delta_p": delta.p,
            "delta_kd_p": delta_kd.p,
            **{key: runs[0].config.get(key) for key in SETTINGS_SHOWN},
        }


def otherwise_taught(trio: Trio) -> list[int]:
    """The seeds whose two students had different teachers."""
    pairs = ((a.teacher_digests, b.teacher_digests, b.seed) for a, b in trio.pairs())
    return [seed for a, b, seed in pairs if a and b and a != b]


def more_than_the_loss(pairs: Sequence[tuple[Record, Record]]) -> list[str]:
    """In what they differ besides, in words; of which seeds if not of all."""
    seeds = defaultdict(list)
    for a, b in pairs:
        seeds[in_words(a.settings, b.settings, LOSS_ALONE)].append(b.seed)
    seeds.pop("", None)
    return [_with_seeds(what, of, pairs) for what, of in seeds.items()]


def gap_recovered(trio: Trio) -> Estimate | None:
    """Of the seeds whose teacher is among the runs; None where it is not better than the baseline.

    With its interval over the seeds, or of one seed over the test images.
    """
    threes = trio.threes()
    right = [[run.right.mean() for run in three] for three in threes]
    teacher, baseline, student = np.reshape(right, (-1, 3)).T
    if not threes or teacher.mean() <= baseline.mean():
        return None
    if len(threes) == 1:
        return stats.gap_over_images(*(run.right for run in threes[0]))
    return stats.ratio_over_seeds(student - baseline, teacher - baseline)


def agreement_table(
    threes: Sequence[tuple[Record, Record, Record]],
) -> list[tuple[tuple[bool, bool, bool], float]]:
    """((teacher right, baseline right, student right), share of the images), over all `threes`."""
    kinds = list(itertools.product((True, False), repeat=3))
    found = np.concatenate([np.transpose([run.right for run in three]) for three in threes])
    return [(kind, (found == kind).all(axis=1).mean()) for kind in kinds]
