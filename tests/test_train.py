import copy
import importlib
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

import common.data
import common.device
import common.run
import common.train
from common import batches, models, remember
from common.batches import Dataset, Views
from common.data import load
from common.device import choose_device
from common.errors import StopSignals, UserError
from common.loss import distillation_loss, hard_loss
from common.models import Normalize, build, freeze, plain_cnn
from common.remember import Ensemble, RememberedLogits
from common.run import describe, open_run
from common.run import load as load_file
from common.train import Trainer, duration, fit, learning_rates, measure, seed_draws
from conftest import equal, quick_config


def hard(logits, batch):
    return hard_loss(logits, batch.labels)


def trainer(dataset, device, objective=hard, name="small-cnn", seed=0, **changes):
    torch.manual_seed(seed)
    return Trainer(build(name), objective, dataset, quick_config(**changes), device)


def train(trainer, count, epoch=1, seed=0):
    index, view = trainer.data.epoch(seed, epoch)
    return trainer.train_epoch(index[:count], view[:count], epoch, StopSignals())


def run_fit(network, objective, dataset, folder, device, config, **options):
    facts = describe(network, config, "baseline", dataset.digest)
    with open_run(folder, config, facts | device.facts()) as run:
        fit(network, objective, dataset, config, run, device, **options)
    return load_file(folder / "last.pt")


# ---------------------------------------------------------------- one step


def test_one_pinned_step(dataset, device):
    """Update these values only with a change that is meant to change the arithmetic of a step."""
    one = trainer(dataset, device, seed=1, lr=0.1)
    before = [p.detach().clone() for p in one.network.parameters()]
    sums, _ = train(one, 32)
    change = torch.cat(
        [(p - b).flatten() for p, b in zip(one.network.parameters(), before, strict=True)]
    )
    found = [sums[0] / 32, change.norm().item(), change.abs().max().item()]
    assert found == pytest.approx(PINNED, rel=2e-3), (  # threads alone make 5e-4
        f"one training step gives {found}, not {PINNED}: if the arithmetic was meant to change "
        "(network, loss, optimizer, augmentation), put the new values into PINNED and say why"
    )


PINNED = [2.5225, 2.0792, 0.12112]  # mean loss; norm and largest entry of the weights' change


def test_a_step_is_nesterov_momentum_on_the_mean_loss(dataset, device):
    one = trainer(dataset, device, lr=0.1, momentum=0.9, weight_decay=0.01)
    reference = copy.deepcopy(one.network)
    optimizer = torch.optim.SGD(
        reference.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01
    )
    index, view = dataset.epoch(0, 1)
    train(one, 96)
    for start in (0, 32, 64):
        chunk = slice(start, start + 32)
        batch = dataset.batch(index[chunk], view[chunk])
        optimizer.zero_grad()
        functional.cross_entropy(reference(batch.images), batch.labels).backward()
        optimizer.step()
    for a, b in zip(one.network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device_type", ["cpu"] + ["cuda"] * torch.cuda.is_available())
@pytest.mark.parametrize("asks", [False, True])
def test_an_epoch_is_its_steps_one_after_the_other(tiny_data, device_type, asks):
    """On a GPU a recorded step, or a plain one where the loss asks for a value: with a last batch
    of another size, momentum, statistics and a count that the loss keeps.
    """
    dataset = Dataset(load(tiny_data), Views(1, True), device_type)
    device = choose_device(quick_config(device=device_type))

    def counting(one):
        one.network.register_buffer("calls", torch.zeros((), device=device_type))

        def objective(logits, batch):
            one.network.calls.add_(1)
            loss = hard(logits, batch)
            assert not asks or math.isfinite(loss.total.item())
            return loss

        one.objective = objective
        return one

    settings = {"lr": 0.1, "schedule": "constant"}
    whole, stepped = (counting(trainer(dataset, device, **settings)) for _ in range(2))
    train(whole, 80)
    index, view = dataset.epoch(0, 1)
    stepped.network.train()
    stepped.rate.fill_(0.1)
    for start in (0, 32, 64):
        chunk = slice(start, min(start + 32, 80))
        stepped.step(dataset.batch(index[chunk], view[chunk]))
    assert whole.network.calls == stepped.network.calls == 3
    states = [dict(each.network.state_dict()) for each in (whole, stepped)]
    torch.testing.assert_close(*states, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(whole.sums, stepped.sums, rtol=1e-3, atol=1e-3, equal_nan=True)


# ---------------------------------------------------------------- what is logged


def test_losses_are_means_over_images_whatever_the_last_batch(dataset, device):
    """80 images in batches of 32: the short last batch counts as 16 images, not as 32."""
    one = trainer(dataset, device, lr=1e-12, weight_decay=0.0)
    losses, right = [], 0
    index, view = dataset.epoch(0, 1)
    for chunk in ((0, 32), (32, 64), (64, 80)):
        batch = dataset.batch(index[slice(*chunk)], view[slice(*chunk)])
        logits = copy.deepcopy(one.network).train()(batch.images)
        losses += functional.cross_entropy(logits, batch.labels, reduction="none").tolist()
        right += (logits.argmax(1) == batch.labels).sum().item()
    sums, _ = train(one, 80)
    assert sums[0] == pytest.approx(sum(losses), rel=1e-4) and sums[3] == right
    assert sums[1] == sums[0] and math.isnan(sums[2])  # the hard loss is all, there is no soft one


def test_evaluation_is_over_all_images_in_eval_mode(dataset, device):
    one = trainer(dataset, device)
    train(one, 96)
    before = copy.deepcopy(one.network.state_dict())
    logits = one.evaluate(dataset.test_images)
    assert equal(dict(before), dict(one.network.state_dict()))  # statistics did not move
    assert one.network.training  # and training goes on in train mode
    reference = copy.deepcopy(one.network).eval()
    torch.testing.assert_close(logits, reference(dataset.test_images))
    loss, accuracy = measure(logits, dataset.test_labels)
    assert loss == pytest.approx(functional.cross_entropy(logits, dataset.test_labels).item())
    assert accuracy == 100 * (logits.argmax(1) == dataset.test_labels).double().mean().item()


def test_statistics_move_in_every_epoch_of_training(dataset, device):
    """A network left in eval mode after the first evaluation would train on frozen statistics."""
    one = trainer(dataset, device)
    means = []
    for epoch in (1, 2):
        train(one, 96, epoch)
        one.evaluate(dataset.test_images)
        means.append(one.network[1][1].running_mean.clone())
    assert not torch.equal(*means)


# ---------------------------------------------------------------- schedules


def test_schedules():
    def rates(**changes):
        config = quick_config(lr=2.0, epochs=10, **changes)
        return torch.cat([learning_rates(config, 10, epoch) for epoch in range(1, 11)])

    assert (rates(schedule="constant") == 2).all()
    step = rates(schedule="step")
    assert (step[:60] == 2).all() and (step[60:] == 0.8).all()  # to the last bit, as it is logged
    step = rates(schedule="step", drop=0.25)
    assert (step[:60] == 2).all() and (step[60:] == 0.5).all()
    cosine = rates(schedule="cosine", warmup=0.1)
    assert cosine[0] == pytest.approx(0.2) and cosine[9] == pytest.approx(2)
    assert (cosine[:10].diff() > 0).all() and (cosine[10:].diff() < 0).all()
    assert cosine[55] == pytest.approx(1) and 0 < cosine[-1] < 0.01
    assert rates(schedule="constant", warmup=0.105).max() == 2  # no whole number of steps


def test_draws_depend_on_seed_epoch_and_process_alone():
    def drawn(seed, epoch, rank):
        seed_draws(seed, epoch, rank)
        return tuple(torch.rand(4).tolist())

    of = [(0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1)]
    first = [drawn(*each) for each in of]
    assert len(set(first)) == 4 and [drawn(*each) for each in of] == first


def test_each_process_has_dropout_of_its_own(dataset, device):
    def trained(rank):
        one = trainer(dataset, replace(device, rank=rank))
        one._own = lambda _: (slice(None), 1.0)  # all images, whichever process it is
        one.network.append(nn.Dropout(0.5))
        train(one, 32)
        return one.network.state_dict()

    first, again, other = trained(0), trained(0), trained(1)
    assert equal(first, again) and not equal(first, other)


def test_without_momentum_a_step_is_plain_gradient_descent(dataset, device):
    one = trainer(dataset, device, lr=0.1, momentum=0.0, weight_decay=0.0)
    before = copy.deepcopy(one.network)
    batch = dataset.batch(*(part[:32] for part in dataset.epoch(0, 1)))
    hard(before(batch.images), batch).total.backward()
    train(one, 32)
    for a, b in zip(one.network.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(a, b - 0.1 * b.grad, rtol=1e-4, atol=1e-6)


def test_weights_that_the_loss_reaches_late_are_trained_from_then_on(dataset, device):
    """As those of a part of a loss that is switched on after some epochs."""
    network = build("small-cnn")
    network.register_parameter("late", nn.Parameter(torch.ones(2)))

    def objective(logits, batch):
        loss = hard(logits, batch)
        late = network.late.sum() if len(batch.labels) < 32 else 0
        return loss._replace(total=loss.total + late)

    config = quick_config(lr=0.1, momentum=0.9, weight_decay=0.0)
    one = Trainer(network, objective, dataset, config, device)
    train(one, 64)
    assert network.late.tolist() == [1, 1]
    train(one, 16)
    assert network.late.tolist() == pytest.approx([1 - 0.1 * 1.9] * 2)


def test_a_batch_too_small_to_share_is_everybodys(dataset, device):
    """Batch norm needs two images of each process."""
    one = trainer(dataset, device)
    one.device = replace(device, processes=2, rank=1)
    assert one._own(3) == (slice(None), 0.5)
    assert one._own(5) == (slice(1, None, 2), 2 / 5)


# ---------------------------------------------------------------- learning


def test_sixteen_images_are_overfitted(dataset, device):
    one = trainer(dataset, device, batch_size=16, lr=0.05, schedule="constant", epochs=60)
    for _ in range(60):
        sums, _ = train(one, 16)
    assert sums[3] == 16 and sums[0] / 16 < 0.05


def test_the_tiny_data_set_is_learned(dataset, device, tmp_path):
    torch.manual_seed(0)
    config = quick_config(epochs=10, lr=0.05, schedule="cosine")
    checkpoint = run_fit(build("small-cnn"), hard, dataset, tmp_path / "run", device, config)
    assert [row["epoch"] for row in checkpoint["rows"]] == list(range(1, 11))
    assert checkpoint["rows"][-1]["test_accuracy"] > 90


def test_the_epoch_is_chosen_on_held_out_images_the_first_of_equal_ones(
    dataset, device, tmp_path, monkeypatch
):
    accuracies = {20: iter([50.0, 70, 70, 60]), 60: iter([90.0, 10, 20, 95])}  # held-out, test
    monkeypatch.setattr("common.train.measure", lambda _, y: (0.1, next(accuracies[len(y)])))
    config = quick_config(epochs=4)
    checkpoint = run_fit(build("small-cnn"), hard, dataset, tmp_path, device, config)
    assert checkpoint["best"]["epoch"] == load_file(tmp_path / "best.pt")["epoch"] == 2
    summary = json.loads((tmp_path / "summary.json").read_text())
    chosen = {"best_epoch": 2, "val_accuracy": 70, "test_accuracy_selected": 10}
    at_test = {"test_accuracy_last": 95, "test_accuracy_best_epoch": 95, "test_best_epoch": 4}
    assert summary.items() >= (chosen | at_test).items()


def test_a_run_whose_network_was_changed_since_is_not_gone_on_with(dataset, device, tmp_path):
    run_fit(build("small-cnn"), hard, dataset, tmp_path, device, quick_config())
    (tmp_path / "summary.json").unlink()
    before = (tmp_path / "last.pt").read_bytes()
    network = build("small-cnn")
    network.register_buffer("steps", torch.zeros(()))
    with pytest.raises(UserError, match='"steps".*its network has changed since.*--overwrite'):
        run_fit(network, hard, dataset, tmp_path, device, quick_config(resume=True))
    assert (tmp_path / "last.pt").read_bytes() == before


# ---------------------------------------------------------------- distillation


def student_objective(teacher_logits, alpha, temperature=4.0):
    def loss(logits, batch):
        return distillation_loss(
            logits, teacher_logits(batch), batch.labels, temperature=temperature, alpha=alpha
        )

    return loss


@pytest.fixture
def teacher(dataset, device):
    torch.manual_seed(7)
    network = build("resnet")
    network(dataset.batch(*(part[:64] for part in dataset.epoch(9, 9))).images)
    return freeze(network)


class ReadsTheBar(nn.Module):
    """Right of every image of the tiny data set."""

    def forward(self, images):
        return images[:, 0, 5:25:2, 0].float()


def test_a_teacher_that_knows_nothing_is_told_from_one_that_knows_all(
    dataset, device, teacher, capsys
):
    networks = {"knows": ReadsTheBar(), "guesses": teacher}
    members = [RememberedLogits(each, dataset, device, "1f", None) for each in networks.values()]
    Ensemble(members).announce(networks)
    printed = capsys.readouterr()
    with torch.no_grad():
        right = (teacher(dataset.val_images).argmax(1) == dataset.val_labels).double().mean()
    assert printed.out == (
        "teacher: knows, held-out accuracy 100.00 %\n"
        f"teacher: guesses, held-out accuracy {100 * right:.2f} %\n"
    )
    assert printed.err.startswith("warning: guesses is right about few images, so a student")
    assert printed.err.count("\n") == 1 and right < 0.2


def test_alpha_0_trains_exactly_like_the_baseline(dataset, device, teacher):
    baseline = trainer(dataset, device)
    remembered = RememberedLogits(teacher, dataset, device, "digest", None)
    index, view = dataset.epoch(0, 1)
    remembered.prepare(index, view, StopSignals())
    student = trainer(dataset, device, student_objective(remembered, alpha=0.0))
    for each in (baseline, student):
        train(each, len(dataset))
    assert equal(dict(baseline.network.state_dict()), dict(student.network.state_dict()))
    other = trainer(dataset, device, student_objective(remembered, alpha=0.5))
    train(other, len(dataset))
    assert not equal(dict(baseline.network.state_dict()), dict(other.network.state_dict()))


class Asking:
    """A teacher that is asked at every step."""

    def __init__(self, network):
        self.network = network

    def __call__(self, batch):
        with torch.no_grad():
            return self.network(batch.images)

    def prepare(self, index, view, stop):
        pass


def test_training_with_the_table_is_training_with_the_teacher(dataset, device, teacher, tmp_path):
    def trained(remembered):
        torch.manual_seed(0)
        return run_fit(
            build("small-cnn"), student_objective(remembered, alpha=0.9), dataset,
            tmp_path / f"run-{len(list(tmp_path.iterdir()))}", device, quick_config(),
            before_epoch=remembered.prepare,
        )["network"]  # fmt: skip

    table = RememberedLogits(teacher, dataset, device, "digest", tmp_path)
    with_table = trained(table)
    assert 0 < table.asked <= 2 * len(dataset)
    weights = trained(Asking(teacher))
    for key in weights:
        torch.testing.assert_close(with_table[key], weights[key], rtol=1e-4, atol=1e-5)
    table.keep()
    again = RememberedLogits(teacher, dataset, device, "digest", tmp_path)
    assert equal(trained(again), with_table) and again.asked == 0  # bit for bit, from disk
    other = RememberedLogits(teacher, dataset, device, "another teacher", tmp_path)
    assert other.table.isnan().all()


def test_a_process_has_every_second_image_of_each_batch(dataset, device):
    one = trainer(dataset, device)
    one.device = replace(device, processes=2, rank=1)
    index, view = dataset.epoch(0, 1)
    for all_of, own in zip((index, view), one.own_part(index, view), strict=True):
        seconds = [batch[1::2] for batch in all_of.split(one.config.batch_size)]
        assert own.equal(torch.cat(seconds)) and len(own) == 120


def test_the_teacher_is_asked_for_its_processs_part_and_its_time_counts(
    dataset, device, tmp_path, monkeypatch
):
    asked, clock = [], SimpleNamespace(now=0.0)

    def before_epoch(index, view, stop):
        asked.append((len(index), len(view)))
        clock.now += 1000

    monkeypatch.setattr(common.train, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(Trainer, "own_part", lambda self, index, view: (index[:7], view[:7]))
    student, config = build("small-cnn"), quick_config(epochs=1)
    done = run_fit(student, hard, dataset, tmp_path, device, config, before_epoch=before_epoch)
    (row,) = done["rows"]
    assert (row["seconds"], row["images_per_second"]) == (1000, len(dataset) / 1000)
    assert asked == [(7, 7)]


def asked_and_kept(network, dataset, device, folder) -> int:
    """How many answers an epoch has to be asked for, with the table that is in the folder."""
    table = RememberedLogits(network, dataset, device, "digest", folder)
    table.prepare(*dataset.epoch(0, 1), StopSignals())
    table.keep()
    return table.asked


@pytest.mark.parametrize("module", [batches, common.data, common.device, models, remember])
def test_the_table_of_code_that_was_changed_since_is_replaced(
    dataset, device, teacher, tmp_path, monkeypatch, module
):
    def kept():
        return asked_and_kept(teacher, dataset, device, tmp_path)

    assert kept() == len(dataset) and kept() == 0
    (table,) = tmp_path.glob("logits-*.pt")
    killed = [tmp_path / f".{table.name}.{which}.tmp" for which in ("old", "new")]
    for path in killed:
        path.touch()
    os.utime(killed[0], (0, 0))
    changed = tmp_path / "changed.py"
    changed.write_bytes(Path(module.__file__).read_bytes() + b"\n")
    monkeypatch.setattr(module, "__file__", str(changed))
    assert kept() == len(dataset) and kept() == 0
    assert list(tmp_path.glob("logits-*.pt")) == [table]
    assert list(tmp_path.glob(".*.tmp")) == killed[1:]  # another student may be writing it


def test_the_table_of_a_network_whose_own_module_was_changed_is_not_read(
    dataset, device, tmp_path, monkeypatch
):
    source = tmp_path / "my_network.py"
    source.write_text(
        "from torch import nn\n\n\nclass Mine(nn.Flatten):\n    def forward(self, images):\n"
        "        return super().forward(images)[:, 390:400] / 255\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    network = importlib.import_module("my_network").Mine()

    def kept():
        return asked_and_kept(network, dataset, device, tmp_path)

    assert kept() == len(dataset) and kept() == 0
    source.write_text(source.read_text().replace("255", "128"))
    assert kept() == len(dataset) and kept() == 0

    class Derived(type(network)):
        """Of another module, which says nothing of how it answers."""

    network = Derived()
    assert kept() == len(dataset) and kept() == 0
    source.write_text(source.read_text().replace("128", "64"))
    assert kept() == len(dataset)


def test_the_table_of_a_network_made_otherwise_of_the_same_weights_is_not_read(
    dataset, device, tmp_path
):
    def kept(activation):
        pixels = nn.Sequential(Normalize(), nn.Flatten(), activation, nn.AvgPool1d(78))
        return asked_and_kept(pixels, dataset, device, tmp_path)

    assert kept(nn.ReLU()) == len(dataset) and kept(nn.ReLU()) == 0
    assert kept(nn.GELU()) == len(dataset)


def test_two_students_of_one_teacher_keep_what_either_has_asked(dataset, device, teacher, tmp_path):
    def table():
        return RememberedLogits(teacher, dataset, device, "digest", tmp_path)

    one, other = table(), table()
    for remembered, epochs in ((one, (1, 2)), (other, (3,))):
        for epoch in epochs:
            remembered.prepare(*dataset.epoch(0, epoch), StopSignals())
        remembered.keep()
    both = table()
    for epoch in (1, 2, 3):
        assert not len(both.unknown(*dataset.epoch(0, epoch)))
    assert other.unknown(*dataset.epoch(0, 1)).numel()  # in use its own goes on as it was


@pytest.mark.parametrize(
    "other",
    [
        lambda patch, data, device: ("another teacher", data, device),
        lambda patch, data, device: ("digest", data, replace(device, name="another")),
        lambda patch, data, device: ("digest", data, replace(device, precision="bfloat16")),
        lambda patch, data, device: patch.setattr(data, "digest", "another"),
        lambda patch, *_: patch.setattr(torch, "get_num_threads", lambda: 7),
        lambda patch, *_: patch.setattr(torch, "__version__", "9.9"),
        lambda patch, *_: patch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: 1),
    ],
    ids=["teacher", "device", "precision", "data", "threads", "torch", "deterministic"],
)
def test_a_table_made_otherwise_is_not_read(dataset, device, teacher, tmp_path, monkeypatch, other):
    made = ("digest", dataset, device)

    def table(digest, data, device):
        return RememberedLogits(copy.deepcopy(teacher), data, device, digest, tmp_path)

    first = table(*made)
    first.prepare(*dataset.epoch(0, 1), StopSignals())
    first.keep()
    assert not table(*made).table.isnan().all()
    assert table(*(other(monkeypatch, dataset, device) or made)).table.isnan().all()


def test_the_first_asking_is_announced_where_no_bar_shows_it(dataset, device, teacher, capsys):
    members = [RememberedLogits(teacher, dataset, device, "digest", None) for _ in range(2)]
    first, second = (dataset.epoch(0, epoch) for epoch in (1, 2))
    members[1].prepare(*(part[:100] for part in first), StopSignals())
    members[1].asked = 0  # as of answers that were on disk
    ensemble = Ensemble(members)
    for index, view in (first, second):
        ensemble.prepare(index, view, StopSignals())
    count = 2 * len(dataset) - 100
    assert capsys.readouterr().out == f"asking for about {count:,} answers of the teacher first\n"


def test_a_teacher_can_be_asked_for_more_than_its_table_has(dataset, teacher):
    config = quick_config(precision="bfloat16")
    remembered = RememberedLogits(teacher, dataset, choose_device(config), "digest", None)
    images = dataset.batch(*(part[:20] for part in dataset.epoch(0, 1))).images
    asked = remembered.ask(images)
    assert asked.dtype == torch.float32 and asked.shape == (20, 10)


def test_a_teacher_of_ones_own_may_normalise_its_input(dataset):
    """In float32, in which its images come, whatever the precision is."""
    network = nn.Sequential(Normalize(), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(784, 10))
    device = choose_device(quick_config(precision="bfloat16"))
    remembered = RememberedLogits(freeze(network), dataset, device, "digest", None)
    index, view = dataset.epoch(0, 1)
    remembered.prepare(index, view, StopSignals())
    batch = dataset.batch(index[:20], view[:20])
    torch.testing.assert_close(remembered(batch), remembered.ask(batch.images))
    assert network[3].weight.dtype == torch.bfloat16  # not converted at every call


def test_a_teacher_is_asked_in_batches_of_one_size_whatever_is_missing(dataset, device, teacher):
    """Else the last bits would depend on what was known before."""
    remembered = RememberedLogits(teacher, dataset, device, "digest", None)
    sizes, ask = [], remembered.ask

    def noted(images):
        sizes.append(len(images))
        return ask(images)

    remembered.ask = noted
    index, view = dataset.epoch(0, 1)
    for count in (100, len(dataset)):
        remembered.prepare(index[:count], view[:count], StopSignals())
    assert sizes == [device.evaluation_batch] * 2 and remembered.asked == len(dataset)


@pytest.mark.parametrize(
    "error",
    [UserError("cannot write", "no space", "make room"), RuntimeError("CUDA error: an assert")],
)
def test_a_table_that_cannot_be_kept_hides_no_other_failure(
    dataset, device, teacher, tmp_path, monkeypatch, error
):
    remembered = RememberedLogits(teacher, dataset, device, "digest", tmp_path)
    remembered.prepare(*dataset.epoch(0, 1), StopSignals())

    def refused(*_):
        raise error

    monkeypatch.setattr("common.remember.save", refused)
    remembered.keep()
    assert not list(tmp_path.iterdir())


def test_a_damaged_table_is_computed_again(dataset, device, teacher, tmp_path):
    index, view = dataset.epoch(0, 1)
    first = RememberedLogits(teacher, dataset, device, "digest", tmp_path)
    first.prepare(index, view, StopSignals())
    first.keep()
    content = bytearray(first.path.read_bytes())
    content[len(content) // 2] ^= 1
    first.path.write_bytes(content)
    assert RememberedLogits(teacher, dataset, device, "digest", tmp_path).table.isnan().all()


def test_a_kill_costs_a_tenth_of_the_teachers_logits_at_most(dataset, device, teacher, tmp_path):
    logits = RememberedLogits(teacher, dataset, device, "digest", tmp_path)
    lost = []
    for epoch in range(1, 9):
        logits.prepare(*dataset.epoch(0, epoch), StopSignals())
        kept = RememberedLogits(teacher, dataset, device, "digest", tmp_path).table
        lost.append((kept.isnan() & ~logits.table.isnan()).float().mean().item())
    assert 0 < max(lost) <= 0.1  # not written at every epoch


def test_the_teacher_answers_to_the_views_that_the_student_sees(dataset, device, teacher):
    remembered = RememberedLogits(teacher, dataset, device, "digest", None)
    index, view = dataset.epoch(0, 1)
    remembered.prepare(index, view, StopSignals())
    seen = []

    def loss(logits, batch):
        seen.append((batch, remembered(batch)))
        return hard(logits, batch)

    train(trainer(dataset, device, loss), len(dataset))
    assert len(seen) > 1
    for batch, answers in seen:
        expected = functional.softmax(teacher(batch.images), 1)
        torch.testing.assert_close(functional.softmax(answers, 1), expected, rtol=1e-4, atol=1e-5)


def test_an_ensemble_answers_with_the_mean_of_its_members_logits(dataset, device, teacher):
    other = freeze(build("small-cnn"))
    one, two = (RememberedLogits(net, dataset, device, "", None) for net in (teacher, other))
    index, view = dataset.epoch(0, 1)
    Ensemble([one, two]).prepare(index, view, StopSignals())
    batch = dataset.batch(index[:50], view[:50])
    assert torch.equal(Ensemble([two])(batch), two(batch))
    assert not torch.allclose(one(batch), two(batch), atol=1e-3)
    torch.testing.assert_close(Ensemble([one, two])(batch), (one(batch) + two(batch)) / 2)


def test_a_teacher_with_many_views_is_asked_anew_in_every_epoch(
    tiny_data, device, teacher, tmp_path
):
    data = Dataset(load(tiny_data), Views(padding=3, flip=True), "cpu")
    logits = RememberedLogits(teacher, data, device, "digest", tmp_path)
    for epoch in (1, 2):
        index, view = data.epoch(0, epoch)
        logits.prepare(index, view, StopSignals())
        assert logits.asked == epoch * len(data)
        batch = data.batch(index[-50:], view[-50:])
        torch.testing.assert_close(logits(batch), teacher(batch.images), rtol=1e-4, atol=1e-4)
    logits.keep()
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- faults and devices


def test_the_room_looked_for_before_training_is_what_a_run_takes(
    dataset, device, tmp_path, monkeypatch
):
    """At most: two checkpoints beside the third that is being written, and all else."""
    write, probed = common.run._write_synced, []

    def noted(path, content):
        if "probe" in path.name:
            probed.append(len(content))
        write(path, content)

    monkeypatch.setattr(common.run, "_write_synced", noted)
    for resume in ({}, {"resume": True}):  # the second time two of the three are there
        run_fit(build("small-cnn"), hard, dataset, tmp_path, device, quick_config(**resume))
        sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
        (tmp_path / "summary.json").unlink()
    new = sizes["last.pt"] + sizes["best.pt"] + sizes["predictions.npz"]
    most = new + sizes["last.pt"] + sizes["previous.pt"]
    assert most < probed[0] < 3 * most  # it allows for the logits of all images
    assert new < probed[1] < probed[0] / 2


def test_a_nan_stops_before_the_step(dataset, device):
    calls = []

    def loss(logits, batch):
        calls.append(1)
        value = hard(logits, batch)
        return value._replace(total=value.total * math.nan) if len(calls) == 3 else value

    one = trainer(dataset, device, loss, lr=0.01)
    twin = trainer(dataset, device, lr=0.01)
    with pytest.raises(UserError, match=r"epoch 1, step 3 of 8, at learning rate 0\.01.*--lr"):
        train(one, len(dataset))
    train(twin, 64)
    for a, b in zip(one.network.parameters(), twin.network.parameters(), strict=True):
        assert torch.equal(a, b)  # as after two steps


def test_a_soft_loss_that_is_not_finite_is_told_from_a_training_that_diverges(dataset, device):
    def loss(logits, batch):
        value = hard(logits, batch)
        soft = (logits - logits).log().mean()
        return value._replace(total=value.total + soft, soft=soft)

    words = (
        r"the soft loss is not finite in epoch 1, step 1 of 8, .*; the hard loss is; .* logarithm"
    )
    with pytest.raises(UserError, match=words):
        train(trainer(dataset, device, loss), len(dataset))
    with pytest.raises(
        UserError, match=r"or a gradient is not finite .*; training diverged; .*--lr"
    ):
        train(trainer(dataset, device, lr=1e30), len(dataset))


def test_weights_that_are_not_finite_reach_no_checkpoint(dataset, device, tmp_path):
    """Though the outputs are, and the loss of every step."""
    network = build("small-cnn")
    network[1][1].running_var[0] = math.inf  # training passes it on, evaluation divides by it
    with pytest.raises(UserError, match="the weights or their outputs are not finite after epoch"):
        run_fit(network, hard, dataset, tmp_path, device, quick_config())
    assert network.eval()(dataset.test_images).isfinite().all()
    assert not list(tmp_path.glob("*.pt"))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_precision_asked_for_is_that_of_every_forward_pass(dataset, precision):
    """In training, in evaluation and of the teacher: what comes out has as many bits."""
    config = quick_config(precision=precision)
    device = choose_device(config)
    found = []

    def loss(logits, batch):
        found.append(logits.detach())
        return hard(logits, batch)

    one = Trainer(build("small-cnn"), loss, dataset, config, device)
    train(one, 32)
    found.append(one.evaluate(dataset.test_images))
    teacher = RememberedLogits(freeze(build("small-cnn")), dataset, device, "", None)
    found.append(teacher.ask(dataset.test_images))
    for logits in found:
        assert logits.dtype == torch.float32
        assert torch.equal(logits, logits.bfloat16().float()) == (precision == "bfloat16")


def test_compile_trains_what_torch_compile_returns(dataset, device, monkeypatch):
    """Evaluation has the network itself: it would be compiled once more for that."""
    calls = []

    def compiled(network):
        def forward(images):
            calls.append(len(images))
            return network(images)

        return forward

    monkeypatch.setattr(torch, "compile", compiled)
    one, twin = trainer(dataset, device, compile=True), trainer(dataset, device)
    for each in (one, twin):
        train(each, 80)
        each.evaluate(dataset.test_images)
    assert calls == [32, 32, 16]
    assert equal(dict(one.network.state_dict()), dict(twin.network.state_dict()))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_tiny_data_set_is_learned_in_either_precision(dataset, tmp_path, precision):
    """By a network small enough for a processor that has to emulate bfloat16."""
    config = quick_config(epochs=10, lr=0.1, schedule="cosine", precision=precision)
    torch.manual_seed(0)
    network = plain_cnn(((8,), (16,), (32,)), 32)
    checkpoint = run_fit(network, hard, dataset, tmp_path, choose_device(config), config)
    assert all(p.dtype == torch.float32 for p in network.parameters())
    assert checkpoint["rows"][-1]["test_accuracy"] > 90


def test_times_in_words():
    assert duration(20.4) == "20 s" and duration(600) == "10 min"
    assert duration(2 * 3600 + 240) == "2 h 4 min"
