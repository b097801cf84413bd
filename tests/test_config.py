import dataclasses
import functools
import json
import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import train_baseline
import train_student
import train_teacher
from common.config import (
    RECIPES,
    TRAIN_IMAGES,
    BaselineConfig,
    StudentConfig,
    TeacherConfig,
)
from common.errors import UserError
from common.loss import SOFT_LOSSES, dkd, kd
from common.models import NETWORKS

CONFIGS = {
    train_teacher: TeacherConfig,
    train_baseline: BaselineConfig,
    train_student: StudentConfig,
}
LOSS = {"teacher", "temperature", "alpha", "soft_weight", "loss"}  # what only a student has


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kind", CONFIGS.values())
def test_defaults_are_the_recipes(kind, recipe):
    config = dataclasses.asdict(kind.parse("", ["--recipe", recipe]))
    network = "teacher" if kind is TeacherConfig else "small-cnn"
    for name, value in RECIPES[recipe][network].items():
        assert config.get(name, value) == value
    missing = {name for name, value in config.items() if value is None}
    assert missing <= {"data_dir", "out", "teacher"}


def test_the_default_recipe_is_the_published_one():
    for kind in CONFIGS.values():
        assert kind.parse("", []) == kind.parse("", ["--recipe", "notes"])


@pytest.mark.parametrize("script", CONFIGS)
def test_help_fits_80_columns_and_names_each_flag_with_its_defaults(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        script.main()
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    assert " ".join(script.__doc__.split()) in words
    options = words.split(" options: ")[1]
    for field in dataclasses.fields(CONFIGS[script]):
        flag = f" --{field.name.replace('_', '-')}"
        shown = re.split(" --(?!no-)", options.split(flag)[1])[0]
        configs = {recipe: CONFIGS[script].parse("", ["--recipe", recipe]) for recipe in RECIPES}
        values = {recipe: getattr(config, field.name) for recipe, config in configs.items()}
        default = values["notes"]
        if field.name != "recipe" and len(set(values.values())) > 1:
            assert "(" + ", ".join(f"{k}: {v}" for k, v in values.items()) + ")" in shown
        elif default is not None and default is not False:  # 0 is shown
            assert f"(default: {default})" in shown


# ---------------------------------------------------------------- round trip


def words_of(config) -> list[str]:
    """The command line that asks for `config`."""
    words = []
    for field in dataclasses.fields(config):
        value, flag = getattr(config, field.name), "--" + field.name.replace("_", "-")
        if field.name == "flip":
            words.append("--flip" if value else "--no-flip")
        elif isinstance(value, bool):
            words += [flag] if value else []
        elif value is not None:
            values = value if isinstance(value, list) else [value]
            words += [f"{flag}={each}" for each in values]
    return words


finite = st.floats(min_value=0, allow_infinity=False)
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
below_one = st.floats(min_value=0, max_value=1, exclude_max=True)
names = st.text(min_size=1).filter(lambda text: "\0" not in text)
paths = st.none() | names
common_values = {
    "arch": st.sampled_from(list(NETWORKS)),
    "recipe": st.sampled_from(list(RECIPES)),
    "epochs": st.integers(1, 1_000_000),
    "batch_size": st.integers(1, TRAIN_IMAGES).filter(lambda size: (TRAIN_IMAGES - 1) % size),
    "lr": positive,
    "schedule": st.sampled_from(["constant", "step", "cosine"]),
    "drop": positive,
    "warmup": below_one,
    "momentum": below_one,
    "weight_decay": finite,
    "label_smoothing": below_one,
    "padding": st.integers(0, 14),
    "cutout": st.integers(0, 14),
    "flip": st.booleans(),
    "seed": st.integers(0, 2**31 - 1),
    "data_dir": paths,
    "out": st.none() | st.sampled_from(["run", "some where/run", "-run", "läuft", "."]),
    "device": st.sampled_from(["auto", "cuda", "mps", "cpu"]),
    "precision": st.sampled_from(["auto", "float32", "bfloat16"]),
    "compile": st.booleans(),
    "deterministic": st.booleans(),
    "resume": st.booleans(),
    "overwrite": st.just(False),
}
own_values = {
    TeacherConfig: {},
    BaselineConfig: {},
    StudentConfig: {
        "teacher": st.none() | st.lists(names, min_size=1),
        "temperature": st.floats(0.01, 1000),
        "alpha": st.floats(0, 1),
        "soft_weight": finite,
        "loss": st.sampled_from(["kd", "dkd", "dist", "logit-standard"]),
    },
}
configs = st.one_of(
    *(st.builds(kind, **(common_values | own_values[kind])) for kind in CONFIGS.values())
)


@given(config=configs)
@settings(max_examples=60)
def test_every_valid_configuration_survives_the_command_line_and_json(config):
    kind = type(config)
    assert kind.parse("", words_of(config)) == config
    assert kind(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


@given(config=st.builds(BaselineConfig, **common_values))
@settings(max_examples=30)
def test_baseline_and_student_differ_in_the_loss_alone(config):
    baseline = dataclasses.asdict(config)
    student = dataclasses.asdict(StudentConfig.parse("", words_of(config)))
    more = student.keys() - baseline.keys()
    # What a method of one's own has besides is off unless it is asked for.
    assert more >= LOSS and not any(student[key] for key in more - LOSS)
    assert {key: student[key] for key in baseline} == baseline


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipes_train_baseline_and_student_alike(recipe):
    baseline = dataclasses.asdict(BaselineConfig.parse("", ["--recipe", recipe]))
    student = dataclasses.asdict(StudentConfig.parse("", ["--recipe", recipe]))
    assert {key: student[key] for key in baseline} == baseline


# ---------------------------------------------------------------- bad command lines


def refused(kind, *words) -> str:
    with pytest.raises(UserError) as failure:
        kind.parse("", words)
    assert failure.value.exit_code == 2
    message = str(failure.value)
    assert message.startswith("bad command line; ") and message.isprintable()
    assert message.endswith(" --help`")
    return message


BAD = {
    "--epochs": ["0", "-1", "1.5", "nan", "1e3", "1000001", "9" * 400, "", "ten"],
    "--batch-size": ["0", "-5", "60001", "55001", "12.5", "inf"],
    "--lr": ["0", "-0.1", "nan", "inf", "-inf", "1e999", "fast", ""],
    "--drop": ["0", "-0.1", "nan"],
    "--warmup": ["-0.1", "1", "nan"],
    "--momentum": ["-0.1", "1", "1.5", "nan"],
    "--weight-decay": ["-1e-4", "nan", "inf"],
    "--label-smoothing": ["-0.1", "1", "nan"],
    "--padding": ["-1", "15", "1.5"],
    "--cutout": ["-1", "15", "1.5"],
    "--seed": ["-1", "1.5", "2147483648", "nan", "zero"],
    "--temperature": ["0", "0.009", "1e4", "1e200", "-4", "nan", "inf", "hot"],
    "--alpha": ["-0.01", "1.01", "nan", "inf"],
    "--soft-weight": ["-1", "nan", "inf"],
    "--recipe": ["note", "", "NOTES"],
    "--schedule": ["linear"],
    "--loss": ["kl", "KD"],
    "--device": ["gpu", "cuda:0"],
    "--precision": ["float16", "bf16"],
    "--teacher": [""],
    "--data-dir": ["", "a\0b"],
    "--out": [""],
}


@pytest.mark.parametrize("flag", BAD)
def test_bad_values_are_refused_with_the_flag_and_the_value(flag):
    for value in BAD[flag]:
        message = refused(StudentConfig, f"{flag}={value}")
        assert f"argument {flag}: " in message and repr(value) in message
        assert f"argument {flag}: " in refused(StudentConfig, flag, value)


def test_the_nearest_right_name_is_offered():
    assert "did you mean notes?" in refused(StudentConfig, "--recipe", "nots")
    assert "did you mean bfloat16?" in refused(StudentConfig, "--precision", "bfloat")
    assert "did you mean logit-standard?" in refused(StudentConfig, "--loss", "logit-std")
    assert "did you mean resnet?" in refused(TeacherConfig, "--arch", "resnet18")
    assert "did you mean --epochs?" in refused(BaselineConfig, "--epoch", "3")
    assert "did you mean --soft-weight?" in refused(StudentConfig, "--soft-wieght=2")
    assert "did you mean --temperature?" in refused(StudentConfig, "--temp", "3")
    for word in ("--qqq", "--learning-rate", "--alpha"):
        assert "did you mean" not in refused(BaselineConfig, word)


def test_a_loss_of_ones_own_can_be_asked_for(monkeypatch):
    words = f"'a new one' is none of {', '.join(SOFT_LOSSES)}; enter your own in SOFT_LOSSES of"
    assert words in refused(StudentConfig, "--loss", "a new one")
    of_its_own = functools.partial(dkd, other_weight=2.0)
    for mine in (kd, of_its_own, max, nn.KLDivLoss()):  # of max no signature is known
        monkeypatch.setitem(SOFT_LOSSES, "a new one", mine)
        assert StudentConfig.parse("", ["--loss", "a new one"]).loss == "a new one"
    monkeypatch.setitem(SOFT_LOSSES, "a new one", nn.Linear(10, 10))
    words = "'a new one' has parameters, and the student's alone are trained: register them with it"
    assert words in refused(StudentConfig, "--loss", "a new one")
    monkeypatch.setitem(SOFT_LOSSES, "a new one", nn.Linear(10, 3).requires_grad_(False))
    assert StudentConfig.parse("", ["--loss", "a new one"]).loss == "a new one"


def test_a_network_of_ones_own_can_be_asked_for(monkeypatch):
    words = f"'a new one' is none of {', '.join(NETWORKS)}; enter your own in NETWORKS of common/"
    for kind in CONFIGS.values():
        assert words in refused(kind, "--arch", "a new one")
    monkeypatch.setitem(NETWORKS, "a new one", nn.Identity)
    for kind in CONFIGS.values():
        assert kind.parse("", ["--arch", "a new one"]).arch == "a new one"
    monkeypatch.setitem(NETWORKS, "made", lambda width: nn.Identity())
    words = "'made' in NETWORKS of common/models.py is not a function of (): missing"
    assert words in refused(TeacherConfig, "--arch", "made")
    monkeypatch.setitem(NETWORKS, "made", nn.Identity())
    words = "'made' in NETWORKS is a network: enter a function that makes one anew"
    assert words in refused(TeacherConfig, "--arch", "made")


def test_a_run_is_named_by_what_the_notes_do_not_have():
    assert [TeacherConfig().name(), BaselineConfig().name()] == ["teacher-resnet", "baseline"]
    assert BaselineConfig(arch="deeper-cnn").name() == "baseline-deeper-cnn"
    for loss, arch, name in (
        ("kd", "small-cnn", "student-resnet"),
        ("dist", "small-cnn", "student-resnet-dist"),
        ("kd", "deeper-cnn", "student-resnet-deeper-cnn"),
        ("dist", "deeper-cnn", "student-resnet-dist-deeper-cnn"),
    ):
        assert StudentConfig(loss=loss, arch=arch).name("resnet") == name


def test_a_name_that_no_row_of_the_report_can_have_is_refused(monkeypatch):
    for name in ("a/b", "kd*", "_mine"):
        monkeypatch.setitem(SOFT_LOSSES, name, kd)
        monkeypatch.setitem(NETWORKS, name, nn.Identity)
        assert "is no name for a run" in refused(StudentConfig, "--loss", name)
        assert "is no name for a run" in refused(TeacherConfig, "--arch", name)


def test_flags_of_other_scripts_and_contradictions_are_refused():
    assert "--alpha" in refused(BaselineConfig, "--alpha", "0.5")
    assert "--teacher" in refused(TeacherConfig, "--teacher", "a.pt")
    assert "exclude each other" in refused(BaselineConfig, "--resume", "--overwrite")
    assert "expected one argument" in refused(BaselineConfig, "--lr")
    refused(BaselineConfig, "--resume=yes")
    refused(BaselineConfig, "seed-0")
    refused(BaselineConfig, "")


def test_a_run_folder_can_be_no_file_nor_below_one(tmp_path):
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out in (file, file / "run", file / "a" / "b", tmp_path / "link"):
        why = refused(BaselineConfig, "--out", str(out))
        assert "is not a folder" in why
        assert (f"a broken link to {tmp_path / 'nowhere'}" in why) == out.is_symlink()
    for out in (tmp_path, tmp_path / "new" / "run"):
        assert BaselineConfig.parse("", ["--out", str(out)]).folder("x") == out
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link"}


texts = st.text().filter(lambda text: not text.startswith("-h"))  # which asks for help


@given(st.lists(texts | st.sampled_from([*BAD, "--", "-", "--no-flip", "1", "kd"])))
@settings(max_examples=100)
def test_any_command_line_is_understood_or_refused_in_one_line(words):
    try:
        StudentConfig.parse("", words)
    except UserError as error:
        assert error.exit_code == 2 and len(str(error).splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--drop", "0.3"], "warning: --drop does nothing with --schedule constant\n"),
        (["--drop", "0.3", "--schedule", "step"], ""),
        ([], ""),
    ],
)
def test_a_drop_without_its_schedule_is_told(words, told, capsys):
    BaselineConfig.parse("", words)
    assert capsys.readouterr().err == told
