"""Every hyperparameter, declared once: the dataclasses below are the command line and config.json.

A field's default depends on the recipe and on the network where RECIPES says so, and stands in
the field otherwise.
"""

import argparse
import contextlib
import dataclasses
import difflib
import functools
import inspect
import json
import math
import os
import re
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn, Self

from common.errors import ROOT, UserError, warn

RUNS_DIR, RESULTS_DIR = ROOT / "runs", ROOT / "results"
# Columns of log.csv; accuracies are in percent, train_soft_loss is empty without a teacher.
LOG_COLUMNS = (
    "epoch", "lr", "train_loss", "train_hard_loss", "train_soft_loss", "train_accuracy",
    "val_loss", "val_accuracy", "test_loss", "test_accuracy", "images_per_second", "seconds",
)  # fmt: skip
# What in config.json may differ when a run is resumed: in silence, where files are and what is
# only noted down; with a warning, what may change the bits.
FREE = {
    "data_dir", "out", "resume", "overwrite", "teacher", "git_commit", "resumed_with",
    "after_epoch",
}  # fmt: skip
WARNED = {"device", "device_name", "threads", "versions", "processes", "deterministic"}
SIZE = {"parameters", "multiply_adds"}  # they follow from the architecture
# Recipe and network give folders, files and labels their names.
NAME = re.compile(r"[^\W_][\w .,+=()-]*")
TRAIN_IMAGES = 55_000  # 60,000 less the held-out ones

# What both recipes have for both networks.
SHARED: dict[str, Any] = dict(
    epochs=50, batch_size=125, momentum=0.9, weight_decay=5e-4, label_smoothing=0.0, flip=True
)
# The notes' experiment: a high learning rate, to the end for the small CNN and with one drop for
# the teacher; no regularisation but weight decay and augmentation.
NOTES = SHARED | dict(warmup=0.0, padding=1, cutout=0)
# Meant as the strongest training of the same networks within 50 epochs.
BEST = SHARED | dict(lr=0.1, schedule="cosine", warmup=0.1, padding=2, cutout=8)
KD: dict[str, Any] = dict(alpha=0.5, soft_weight=1.0, loss="kd")
# Baseline and student both take those of "small-cnn", whatever their --arch: they differ in the
# loss and in nothing else.
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "notes": {
        "teacher": NOTES | dict(lr=0.1, schedule="step", drop=0.35),
        "small-cnn": NOTES | KD | dict(lr=0.08, schedule="constant", temperature=4.0),
    },
    "best": {"teacher": BEST, "small-cnn": BEST | KD | dict(temperature=2.0)},
}


def is_finished(folder: Path) -> bool:
    """Whether the run in `folder` is complete: its summary is written last. It may be damaged."""
    return (folder / "summary.json").exists()


def differing(a: Mapping[str, Any], b: Mapping[str, Any], ignored: Container[str]) -> list[str]:
    """Names of the settings that differ.

    A missing one, of an older version, counts as off; where the architectures differ their sizes
    do not count.
    """
    keys = a.keys() | b.keys()
    unequal = {key for key in keys if key not in ignored and (a.get(key) or 0) != (b.get(key) or 0)}
    return sorted(unequal - SIZE if "arch" in unequal else unequal)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises OSError, or ValueError if it holds no such thing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    return content


def named_teachers(config: Mapping[str, Any]) -> list[str]:
    """The teachers' files that a student's config.json names; none if it names them badly."""
    named = config.get("teacher")
    if isinstance(named, str):  # of an older version
        return [named]
    return [*map(str, named)] if isinstance(named, list) else []


def changes(before: Mapping[str, Any], now: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Old and new values of these settings, in words; of a teacher beside its digest its path."""
    also = ["teacher"] if "teacher_sha256" in keys else []
    return ", ".join(f"{key}: {before.get(key)} -> {now.get(key)}" for key in [*keys, *also])


def _number(kind: type, rule: str, holds: Callable[[Any], bool]) -> Callable[[str], Any]:
    """A parser of finite numbers for which `holds`; `rule` says in words what that is."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
            if math.isfinite(value) and holds(value):
                return value
        except (ValueError, OverflowError):
            pass
        raise argparse.ArgumentTypeError(f"{text!r} is not {rule}")

    return parse


# Epochs beyond would share their order with those of the next seed; see Dataset.epoch.
positive_int = _number(int, "a whole number from 1 to 1,000,000", lambda v: 1 <= v <= 1_000_000)
# Every generator takes these; the seeds of a run's epochs are made from it.
natural = _number(int, "a whole number from 0 to 2147483647", lambda v: 0 <= v < 2**31)
positive = _number(float, "a finite number above 0", lambda v: v > 0)
temperature = _number(float, "a number from 0.01 to 1000", lambda v: 0.01 <= v <= 1000)
non_negative = _number(float, "a finite number from 0 up", lambda v: v >= 0)
unit = _number(float, "a number from 0 to 1", lambda v: 0 <= v <= 1)
below_one = _number(float, "a number from 0 to below 1", lambda v: 0 <= v < 1)
batch_size = _number(
    int,
    f"a whole number to {TRAIN_IMAGES:,} that leaves two images or more for an epoch's last step, "
    "as batch norm needs",
    lambda v: 1 <= v <= TRAIN_IMAGES and (TRAIN_IMAGES - 1) % v > 0,
)
margin = _number(int, "a whole number from 0 to 14", lambda v: 0 <= v <= 14)


def path(text: str) -> str:
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not a path")
    return text


def run_folder(text: str) -> str:
    """A path at which there is a folder, or can be one."""
    whole = Path(path(text))
    if why := no_folder(whole):
        raise argparse.ArgumentTypeError(why)
    return text


def no_folder(place: Path) -> str:
    """Why no folder can be at a path, in words; empty if one can, or is."""
    there = next(filter(os.path.lexists, (place, *place.parents)))
    if os.path.isdir(there):
        return ""
    why = f"{str(there)!r} is not a folder"
    if not os.path.exists(there):
        why += f", but a broken link to {os.readlink(there)}"
    return why


def one_of(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(
                f"{text!r} is none of {', '.join(names)}{_nearest(text, names)}"
            )
        return text

    parse.metavar = "{" + ",".join(names) + "}"
    return parse


def soft_loss(text: str) -> str:
    """The name of a soft loss, the user's own included."""
    from torch import nn  # here: analyze.py reads this module and needs no torch

    from common.loss import SOFT_LOSSES

    arguments = ("student_logits", "teacher_logits", "labels", "temperature")
    _entry(text, SOFT_LOSSES, "SOFT_LOSSES of common/loss.py", arguments)
    own = SOFT_LOSSES[text]
    if isinstance(own, nn.Module) and any(part.requires_grad for part in own.parameters()):
        raise argparse.ArgumentTypeError(
            f"{text!r} has parameters, and the student's alone are trained: register them with it, "
            "as the hint of EXTENDING.md does"
        )
    return text


def architecture(text: str) -> str:
    """The name of a network, the user's own included."""
    from torch import nn  # here, as above

    from common.models import NETWORKS

    _entry(text, NETWORKS, "NETWORKS of common/models.py", ())
    if isinstance(NETWORKS[text], nn.Module):
        what = f"{text!r} in NETWORKS is a network"
        raise argparse.ArgumentTypeError(f"{what}: enter a function that makes one anew")
    return text


def _entry(text: str, known: Mapping[str, Any], where: str, arguments: Sequence[str]) -> None:
    """Raise unless `known` has a function of `arguments` under `text`, which may name a folder."""
    try:
        one_of(*known)(text)
        with contextlib.suppress(ValueError):  # of one whose signature is not known
            inspect.signature(known[text]).bind(*arguments)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; enter your own in {where}") from error
    except TypeError as error:
        wanted = f"a function of ({', '.join(arguments)})"
        raise argparse.ArgumentTypeError(f"{text!r} in {where} is not {wanted}: {error}") from error
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name for a run: rename it in the code")


def _unless(usual: str, value: str) -> str:
    """What a value adds to a run's name: nothing where it is the usual one."""
    return "" if value == usual else f"-{value}"


def _nearest(text: str, names: Sequence[str]) -> str:
    bare, word = {name.lstrip("-"): name for name in names}, text.lstrip("-")
    begun = [name for name in bare if word and name.startswith(word)]
    near = begun or difflib.get_close_matches(word, bare, n=1, cutoff=0.6)
    return f" (did you mean {bare[near[0]]}?)" if near else ""


def setting(
    parse: Callable[[str], Any] | None, text: str, default: Any = None, **options: Any
) -> Any:
    """A field with its command line: the parser of its value (None for a switch) and its help.

    options: what else argparse's add_argument takes.
    """
    return field(default=default, metadata={"parse": parse, "help": text, "options": options})


@dataclass(frozen=True, kw_only=True)
class Config:
    """What every training script takes."""

    network = "small-cnn"  # which of a recipe's networks the defaults are taken from

    recipe: str = setting(
        one_of(*RECIPES),
        "set of defaults: notes, as in the lab report; best, trained harder",
        "notes",
    )
    arch: str = setting(
        architecture,
        "small-cnn; deeper-cnn, as small; or another in NETWORKS of common/models.py",
        "small-cnn",
    )
    epochs: int = setting(positive_int, "passes over the training images")
    batch_size: int = setting(batch_size, "images per step")
    lr: float = setting(positive, "peak learning rate")
    schedule: str = setting(
        one_of("constant", "step", "cosine"),
        "learning rate by step: constant; step (one drop, after 60 %% of the steps); cosine to 0",
    )
    drop: float = setting(positive, "factor on the rate at the drop (schedule step alone)", 0.4)
    warmup: float = setting(below_one, "share of all steps over which the rate rises from 0")
    momentum: float = setting(below_one, "Nesterov momentum of SGD")
    weight_decay: float = setting(non_negative, "L2 penalty on all parameters")
    label_smoothing: float = setting(below_one, "label smoothing of the hard loss")
    padding: int = setting(margin, "random crop: shift by up to so many pixels; 0 turns it off")
    flip: bool = setting(None, "random horizontal flip", action=argparse.BooleanOptionalAction)
    cutout: int = setting(
        margin, "side in pixels of a grey square at a random place; 0 turns it off"
    )
    seed: int = setting(natural, "sets initial weights, batch order and augmentation", 0)
    data_dir: str | None = setting(
        path, "folder that holds Fashion-MNIST (default: found or fetched)"
    )
    out: str | None = setting(run_folder, "run folder (default: runs/RECIPE/NAME/seed-SEED)")
    device: str = setting(one_of("auto", "cuda", "mps", "cpu"), "where to train", "auto")
    precision: str = setting(
        one_of("auto", "float32", "bfloat16"),
        "of convolutions and matrix products (float32 on NVIDIA GPUs from Ampere on: TF32); auto: "
        "bfloat16 where the hardware has it",
        "auto",
    )
    compile: bool = setting(None, "torch.compile the network: takes a C++ compiler", False)
    deterministic: bool = setting(None, "the same bits every time on a GPU too, slower", False)
    resume: bool = setting(None, "go on from the last checkpoint, if there is one", False)
    overwrite: bool = setting(None, "remove the run that is in the folder, then begin anew", False)

    def folder(self, name: str, runs: Path = RUNS_DIR) -> Path:
        """Where the run of the network called `name` goes: --out, else its place below `runs`."""
        if self.out is not None:
            return Path(self.out)
        return runs / self.recipe / name / f"seed-{self.seed}"

    @classmethod
    def parse(cls, description: str, argv: Sequence[str] | None = None) -> Self:
        """The configuration that a command line asks for. Raises UserError for a bad one."""
        parser = Parser(description, argument_default=argparse.SUPPRESS)
        common = {each.name for each in fields(Config)}
        for each in sorted(fields(cls), key=lambda each: each.name in common):  # its own first
            flag = "--" + each.name.replace("_", "-")
            parse = each.metadata["parse"]
            text = each.metadata["help"] + cls._default_in_words(each)
            options = {"action": "store_true"}
            if parse:
                options = {"type": parse, "metavar": getattr(parse, "metavar", each.name.upper())}
            parser.add_argument(flag, help=text, **options | each.metadata["options"])
        given = vars(parser.parse_args(argv))
        given.pop("debug", None)
        if given.get("resume") and given.get("overwrite"):
            parser.error("--resume and --overwrite exclude each other")
        recipe = given.get("recipe", cls.recipe)
        config = cls(**cls._recipe_values(recipe) | given)
        # analyze.py pairs runs by seed: a folder that names another would be paired wrongly.
        folder = Path(config.out or "").name
        if re.fullmatch(r"seed-\d+", folder) and folder != f"seed-{config.seed}":
            parser.error(f"--out ends in {folder}, and --seed is {config.seed}")
        if "drop" in given and config.schedule != "step":
            warn(f"--drop does nothing with --schedule {config.schedule}")
        return config

    @classmethod
    def _recipe_values(cls, recipe: str) -> dict[str, Any]:
        known = {each.name for each in fields(cls)}
        return {k: v for k, v in RECIPES[recipe][cls.network].items() if k in known}

    @classmethod
    def _default_in_words(cls, each: dataclasses.Field) -> str:
        values = {
            recipe: cls._recipe_values(recipe).get(each.name, each.default) for recipe in RECIPES
        }
        value, *others = set(values.values())
        if others:
            return " (" + ", ".join(f"{recipe}: {v}" for recipe, v in values.items()) + ")"
        return "" if value is None or value is False else f" (default: {value})"  # 0 is shown


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(Config):
    role = network = "teacher"
    arch: str = setting(
        architecture,
        "resnet: experiment 2; cnn: experiment 1; or another in NETWORKS of common/models.py",
        "resnet",
    )

    def name(self) -> str:
        return f"teacher-{self.arch}"


@dataclass(frozen=True, kw_only=True)
class BaselineConfig(Config):
    """Nothing beyond what every network takes."""

    role = "baseline"

    def name(self) -> str:
        """baseline, or baseline-ARCH for another network than small-cnn."""
        return "baseline" + _unless(Config.arch, self.arch)


@dataclass(frozen=True, kw_only=True)
class StudentConfig(Config):
    role = "student"
    teacher: list[str] | None = setting(
        path,
        "best.pt of the teacher, or its run folder (default: the ResNet of the same recipe "
        "and seed under runs/, else the published one); several are an ensemble",
        nargs="+",
        action="extend",
    )
    temperature: float = setting(temperature, "softens both networks' outputs in the soft loss")
    alpha: float = setting(unit, "weight of the soft loss; the hard loss has 1 - alpha")
    soft_weight: float = setting(non_negative, "a further factor on the soft loss")
    loss: str = setting(
        soft_loss, "kd, dkd, dist, logit-standard, or another in SOFT_LOSSES of common/loss.py"
    )

    def name(self, teacher: str) -> str:
        """student-TEACHER, then -LOSS for another than kd, -ARCH for another than small-cnn."""
        return f"student-{teacher}" + _unless("kd", self.loss) + _unless(Config.arch, self.arch)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose help fits 80 columns and whose errors are UserErrors."""

    def __init__(self, description: str | None, arguments: str = "", **options: Any):
        """arguments: those that are no options, as the usage line shows them."""
        super().__init__(
            description=description,
            formatter_class=functools.partial(
                argparse.RawDescriptionHelpFormatter, max_help_position=26, width=80
            ),
            allow_abbrev=False,
            usage=f"%(prog)s [options] {arguments}".rstrip(),
            **options,
        )
        self.command = options.get("prog", f"python {sys.argv[0]}")
        # Seen by errors.script, which looks for the word itself.
        text = "show the traceback of a failure"
        self.add_argument("--debug", action="store_true", help=text)

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments:"):
            word = (message.removeprefix("unrecognized arguments:").split() or ["''"])[0]
            options = [o for action in self._actions for o in action.option_strings]
            message = f"unknown argument {word}{_nearest(word.split('=')[0], options)}"
        raise UserError("bad command line", message, f"see `{self.command} --help`")
