"""The runs that a comparison lacks, and the commands that make them."""

import itertools
import os
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path

from common.compare import EXPERIMENTS, Comparison
from common.config import (
    RECIPES,
    RUNS_DIR,
    BaselineConfig,
    Config,
    StudentConfig,
    TeacherConfig,
    differing,
    is_finished,
    named_teachers,
)
from common.records import FOUND_BY, LOSS_SETTINGS, NOT_SETTINGS, Record, network_folder

SMALL = BaselineConfig.arch  # the notes' small network


def missing(comparison: Comparison, root: Path) -> list[str]:
    """What the experiments lack of the runs below `root`, a line each."""
    everyone = itertools.chain(*comparison.groups.values())
    teach = {teacher.folder for run in everyone for teacher in comparison.members(run)}
    problems = []
    for recipe in comparison.recipes:
        groups = comparison.of(recipe)
        runs = list(itertools.chain(*groups.values()))
        if all(run.folder in teach for run in runs):
            continue  # they are here for another recipe's students
        problems += _absent(comparison, recipe, root)
        problems += _unpaired(comparison, recipe)
        problems += [
            f"{copy.folder} is a copy of {run.folder}: no evidence of its own"
            for run, copy in itertools.combinations(runs, 2)
            if run.weights_sha256 == copy.weights_sha256 and run.log.equals(copy.log)
        ]
        problems += [
            f"{run.folder} has a teacher that is not among these runs{_gone(comparison, run)}: "
            "what needs its answers is left out"
            for run in runs
            if run.role == "student" and not comparison.teacher_of(run)
        ]
    return problems


def _gone(comparison: Comparison, student: Record) -> str:
    """The files of the teachers that are not among the runs, as far as the student names them."""
    digests = (student.config.get("teacher_sha256") or "").split("+")
    files = zip(named_teachers(student.config), digests, strict=False)  # it need not name them
    gone = [file for file, digest in files if digest not in comparison.teachers]
    return f" ({' '.join(gone)})" if gone else ""


def _wanted(comparison: Comparison, recipe: str) -> dict[str, tuple[Config, str]]:
    """What a recipe's runs are to be compared with, here or not, by name, each with its
    architecture, a student with its teacher's."""
    groups = comparison.of(recipe)
    plain = comparison.own_plain(recipe)
    other_small = any(comparison.arch(recipe, own) != SMALL for own in plain)
    teachers = [
        arch
        for arch in EXPERIMENTS.values()
        if f"student-{arch}" in groups or (f"teacher-{arch}" in groups and not other_small)
    ]
    students = [name for name in groups if comparison.role(recipe, name) == "student"]
    if not plain and not teachers:
        known = (comparison.teacher_of(run) for name in students for run in groups[name])
        teachers = [next((t.config["arch"] for t in known if t), TeacherConfig.arch)]
    archs = [comparison.arch(recipe, name) for name in students]
    alone = [name for name in groups if comparison.role(recipe, name) == "baseline"]
    to_be_taught = archs or [comparison.arch(recipe, name) for name in alone] or [SMALL]
    kd = StudentConfig(loss="kd", arch=SMALL if SMALL in to_be_taught else to_be_taught[0])
    archs = [arch for arch in archs if arch == SMALL or not comparison.alone(recipe, arch)]
    if comparison.alone(recipe) or all(comparison.role(recipe, n) == "teacher" for n in groups):
        archs.append(SMALL)
    untaught = [TeacherConfig(arch=arch) for arch in teachers]
    untaught += [BaselineConfig(arch=arch) for arch in archs]
    wanted = {config.name(): (config, config.arch) for config in untaught}
    return wanted | {kd.name(arch): (kd, arch) for arch in teachers}


def _absent(comparison: Comparison, recipe: str, root: Path) -> Iterator[str]:
    """Of the networks that are wanted those that are not here."""
    groups = comparison.of(recipe)
    for name, (config, arch) in _wanted(comparison, recipe).items():
        if name in groups or (recipe, name) in comparison.unfinished:
            continue
        taught = groups.get(f"student-{arch}", [])
        if isinstance(config, TeacherConfig) and all(map(comparison.teacher_of, taught)):
            continue  # by teachers of whatever recipe; a student to come, by the default
        teachers = {}
        if isinstance(config, StudentConfig):
            teachers = _teachers(comparison, recipe, arch)
        like = _to_be_like(comparison, recipe, config, teachers)
        place = _place(name, like)
        if _is_there(place):
            outside = not place.is_relative_to(os.path.abspath(root))
            if outside and is_finished(place) and like.folder not in comparison.lent:
                yield (
                    f"{name} of recipe {recipe} is not below {root}, but {place} holds one: name "
                    "a folder above both with --runs"
                )
            continue
        ways = []
        if name == "baseline" and (others := comparison.alone(recipe)):
            ways.append(f"rename the folder {others[0]} to {name} if it is that")
        teacher = teachers.get(like.seed, next(iter(teachers.values()), None))
        ways.append(_command(config, place, like, teacher))
        yield _line(f"{name} of recipe {recipe} is missing", *ways)


def _is_there(place: Path) -> bool:
    """Whether a folder holds a run; an unfinished or damaged one is named as such elsewhere."""
    return any(os.path.lexists(place / name) for name in FOUND_BY)


def _teachers(comparison: Comparison, recipe: str, arch: str) -> dict[int, Record]:
    """By seed those of an architecture: the recipe's, else who taught its students."""
    groups = comparison.of(recipe)
    teachers = {run.seed: run for run in groups.get(f"teacher-{arch}", [])}
    for run in itertools.chain(*groups.values()):
        members = comparison.members(run)
        if [member.config["arch"] for member in members] == [arch]:
            teachers.setdefault(run.seed, members[0])
    return teachers


def _unpaired(comparison: Comparison, recipe: str) -> Iterator[str]:
    """Of the students that have a baseline those whose seed it has not; and of those of another
    loss the same with plain distillation from their teacher."""
    groups = comparison.of(recipe)
    unpaired: dict[tuple[str, int], list[Record]] = defaultdict(list)
    for name, runs in groups.items():
        if comparison.role(recipe, name) != "student":
            continue
        kd = StudentConfig(loss="kd", arch=comparison.arch(recipe, name))
        for run in runs:
            others = [comparison.baseline_of(recipe, name)]
            if len(members := comparison.members(run)) == 1 and not comparison.plain(recipe, name):
                others.append(kd.name(members[0].config["arch"]))
            for other in others:
                there = [each for each in groups.get(other, []) if each.config["arch"] == kd.arch]
                if there and run.seed not in [each.seed for each in there]:
                    unpaired[other, run.seed].append(run)
    for (other, seed), runs in unpaired.items():
        like, place = replace(groups[other][0], seed=seed), _place(other, runs[0])
        if _is_there(place):
            continue
        config, teacher = BaselineConfig(arch=like.config["arch"]), None
        if like.role == "student":
            config = StudentConfig(loss="kd", arch=like.config["arch"])
            teacher = next(iter(comparison.members(runs[0])), None)
        folders = ", ".join(str(run.folder) for run in runs)
        yield _line(
            f"{other} has no run of seed {seed} to compare {folders} with",
            _command(config, place, like, teacher),
        )


def _line(problem: str, *ways: str) -> str:
    return "; ".join(filter(None, [problem, ", else ".join(filter(None, ways))]))


def _to_be_like(
    comparison: Comparison, recipe: str, config: Config, teachers: Mapping[int, Record]
) -> Record:
    """The run that an absent network has to match in seed and length to be compared with it; of a
    seed that has a teacher, if there is one."""
    small = SMALL if isinstance(config, TeacherConfig) else config.arch
    everyone = list(itertools.chain(*comparison.of(recipe).values()))
    own = [run for run in everyone if run.folder not in comparison.lent]
    # The notes' come first, the baseline before its students.
    compared = [run for run in own if run.role != "teacher" and run.config["arch"] == small]
    with_teacher = [run for run in compared if run.seed in teachers]
    return (with_teacher or compared or own or everyone)[0]


def _place(name: str, like: Record) -> Path:
    """Where a network's run of the seed of `like` lies beside that."""
    return network_folder(like.folder, like.seed).parent / name / f"seed-{like.seed}"


def _command(config: Config, place: Path, like: Record, teacher: Record | None) -> str:
    """What trains a network of this kind and architecture in the folder `place`, of the seed and
    length of `like`; and, if that is of the same kind, with its settings. Empty where nothing can:
    of a recipe from elsewhere."""
    if like.recipe not in RECIPES:
        return ""
    if isinstance(config, StudentConfig):
        name = config.name(teacher.config["arch"] if teacher else TeacherConfig.arch)
    else:
        name = config.name()
    elsewhere = place.parent.resolve() != RUNS_DIR / like.recipe / name
    command = ["python", f"train_{config.role}.py", "--recipe", like.recipe]
    if like.seed:
        command += ["--seed", like.seed]
    if config.role == "teacher" or config.arch != SMALL:
        command += ["--arch", config.arch]
    if teacher:
        command += ["--teacher", teacher.folder]
    usual = asdict(type(config).parse("", ["--recipe", like.recipe]))
    shared = {"epochs"}
    if (config.role == "teacher") == (like.role == "teacher"):
        every_network_has = {each.name for each in fields(Config)}  # no hint of a student's
        shared |= every_network_has - NOT_SETTINGS - {"recipe", "arch"}
    if config.role == "student" and like.config.get("loss") == "kd":
        shared |= LOSS_SETTINGS - {"role", "loss"}
    if like.config.get("schedule") != "step":  # else it says nothing
        shared -= {"drop"}
    for key in differing(like.config, usual, ()):
        if key in shared:
            value, flag = like.config.get(key), key.replace("_", "-")
            if isinstance(usual.get(key), bool):
                command += [f"--{flag}" if value else f"--no-{flag}"]
            else:
                command += [f"--{flag}", value or 0]
    if elsewhere:
        command += ["--out", place]
    return f"{shlex.join(map(str, command))} makes it"
