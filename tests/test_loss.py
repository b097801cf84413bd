import math
import re
from functools import partial

import pytest
import torch
from torch.nn import functional

from common.errors import UserError
from common.loss import (
    SOFT_LOSSES,
    dist,
    distillation_loss,
    dkd,
    hard_loss,
    kd,
    logit_standard,
    try_out,
)

STUDENT = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]], dtype=torch.float64)
TEACHER = torch.tensor([[3.0, -1.0, 0.0], [0.0, 2.0, 1.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 2])


def softmax(row, temperature=1.0):
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def pearson(a, b):
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    covariance = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    size = math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))
    return covariance / size


def test_kd_by_hand():
    rows = zip(TEACHER.tolist(), STUDENT.tolist(), strict=True)
    expected = 9 * sum(kl(softmax(t, 3), softmax(s, 3)) for t, s in rows) / 2
    assert kd(STUDENT, TEACHER, LABELS, 3.0).item() == pytest.approx(expected, rel=1e-12)


def test_dkd_by_hand():
    expected = 0.0
    for s, t, label in zip(STUDENT.tolist(), TEACHER.tolist(), LABELS.tolist(), strict=True):
        p, q = softmax(t, 4), softmax(s, 4)
        pair = kl([p[label], 1 - p[label]], [q[label], 1 - q[label]])
        others = [k for k in range(3) if k != label]
        rest = kl([p[k] / (1 - p[label]) for k in others], [q[k] / (1 - q[label]) for k in others])
        expected += 16 * (pair + 8 * rest) / 2
    assert dkd(STUDENT, TEACHER, LABELS, 4.0).item() == pytest.approx(expected, rel=1e-12)


def test_dkd_with_equal_weights_of_the_parts_is_kd():
    # Zhao et al., equation 6: KL = TCKD + (1 - p_target) NCKD.
    p_target = functional.softmax(TEACHER / 2, 1).gather(1, LABELS[:, None]).squeeze(1)
    parts = [
        dkd(
            STUDENT[i : i + 1],
            TEACHER[i : i + 1],
            LABELS[i : i + 1],
            2.0,
            1.0,
            (1 - p_target[i]).item(),
        )
        for i in range(2)
    ]
    expected = kd(STUDENT, TEACHER, LABELS, 2.0)
    assert torch.stack(parts).mean().item() == pytest.approx(expected.item(), rel=1e-12)


def test_dist_by_hand():
    p = [softmax(t, 4) for t in TEACHER.tolist()]
    q = [softmax(s, 4) for s in STUDENT.tolist()]
    rows = sum(1 - pearson(a, b) for a, b in zip(p, q, strict=True)) / 2
    columns = sum(1 - pearson([a[k] for a in p], [b[k] for b in q]) for k in range(3)) / 3
    assert dist(STUDENT, TEACHER, LABELS, 4.0).item() == pytest.approx(16 * (rows + columns))


def test_logit_standard_by_hand():
    def standardised(row):
        mean = sum(row) / len(row)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in row) / len(row))
        return [(x - mean) / deviation for x in row]

    rows = zip(TEACHER.tolist(), STUDENT.tolist(), strict=True)
    expected = (
        4 * sum(kl(softmax(standardised(t), 2), softmax(standardised(s), 2)) for t, s in rows) / 2
    )
    assert logit_standard(STUDENT, TEACHER, LABELS, 2.0).item() == pytest.approx(expected, rel=1e-6)
    shifted = logit_standard(STUDENT, 5 * TEACHER + 7, LABELS, 2.0)
    assert shifted.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_gradient_of_kd_is_that_of_scaled_autograd_kl(temperature):
    student = STUDENT.clone().requires_grad_()
    kd(student, TEACHER, LABELS, temperature).backward()
    other = STUDENT.clone().requires_grad_()
    p = functional.softmax(TEACHER / temperature, 1)
    q = functional.softmax(other / temperature, 1)
    (temperature**2 * (p * (p.log() - q.log())).sum() / len(other)).backward()
    torch.testing.assert_close(student.grad, other.grad)
    closed_form = temperature * (q - p).detach() / len(other)  # Hinton et al., equation 2
    torch.testing.assert_close(student.grad, closed_form)


@pytest.mark.parametrize("name", SOFT_LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_soft_losses(name, dtype):
    generator = torch.Generator().manual_seed(1)
    teacher = 5 * torch.randn(32, 10, generator=generator, dtype=dtype)
    student = torch.randn(32, 10, generator=generator, dtype=dtype).requires_grad_()
    labels = torch.randint(10, (32,), generator=generator)
    for temperature in (1.0, 4.0):
        value = SOFT_LOSSES[name](student, teacher, labels, temperature)
        assert value.shape == (), "it is to be one number, the mean over the batch"
        assert value.isfinite() and value.dtype == dtype
        assert value > 0, "it is to be above 0 where the logits differ"
        assert value.requires_grad, "it has no gradient: argmax, detach(), item() or no_grad()"
        value.backward()
        assert student.grad.isfinite().all() and student.grad.abs().max() > 0
        same = SOFT_LOSSES[name](teacher, teacher, labels, temperature)
        bound = 1e-4 if dtype == torch.float32 else 1e-10
        assert abs(same.item()) < bound, "it is to be 0 where both have the same logits"


@pytest.mark.parametrize("name", SOFT_LOSSES)
def test_soft_losses_are_means_over_the_batch(name):
    generator = torch.Generator().manual_seed(2)
    student, teacher = torch.randn(2, 8, 10, generator=generator, dtype=torch.float64)
    labels = torch.randint(10, (8,), generator=generator)
    f = SOFT_LOSSES[name]
    once = f(student, teacher, labels, 4.0)
    twice = f(student.repeat(2, 1), teacher.repeat(2, 1), labels.repeat(2), 4.0)
    assert twice.item() == pytest.approx(once.item()), "it is to be a mean, not a sum"


@pytest.mark.parametrize(
    ("name", "count", "classes"),
    [(name, 2, 10) for name in SOFT_LOSSES]
    # One's own loss need not know of another data set.
    + [(name, 1, 3) for name in ("kd", "dkd", "dist", "logit-standard")],
)
def test_extreme_logits_stay_finite(name, count, classes):
    student, teacher = torch.zeros(2, count, classes)
    student[:, :2], teacher[:, :2] = torch.tensor([80.0, -80.0]), torch.tensor([-80.0, 80.0])
    student.requires_grad_()
    labels = torch.ones(count, dtype=torch.int64)
    value = SOFT_LOSSES[name](student, teacher, labels, 1.0)
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all()


@pytest.mark.parametrize("name", SOFT_LOSSES)
def test_logits_that_are_all_alike_have_a_finite_gradient(name):
    """As of a student whose last layer begins with zeros; of `dist` it is useless, though."""
    student = torch.zeros(2, 10, requires_grad=True)
    SOFT_LOSSES[name](student, torch.eye(2, 10), LABELS, 4.0).backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (torch.zeros(4), "a tensor of shape (4,)"),
        (0.5, "a float"),
        (None, "a NoneType"),
        ((torch.zeros(()), torch.zeros(())), "a tuple"),
    ],
)
def test_a_soft_loss_that_is_no_number_is_told_what_to_do(made, words):
    words = re.escape(f"the soft loss returned {words}; it is to be a tensor of one number")
    with pytest.raises(UserError, match=f"{words}.*; return that, ended with .mean"):
        distillation_loss(
            STUDENT, TEACHER, LABELS, temperature=1.0, alpha=0.5, soft_loss=lambda *_: made
        )


def with_soft(soft_loss):
    return partial(distillation_loss, temperature=4.0, alpha=0.5, soft_loss=soft_loss)


def test_a_soft_loss_that_may_be_a_mistake_is_told_of(capsys):
    for name, soft_loss in SOFT_LOSSES.items():
        try_out(with_soft(soft_loss), 12, "cpu")
        assert capsys.readouterr().err == "", name
    try_out(with_soft(lambda ours, theirs, *_: (ours - theirs).square().detach().mean()), 12, "cpu")
    assert "the soft loss of made-up logits has no gradient" in capsys.readouterr().err
    own = torch.ones(1, requires_grad=True)  # of a parameter that the loss has, and of no logits
    try_out(with_soft(lambda *_: own.mean()), 12, "cpu")
    assert "the soft loss of made-up logits has no gradient" in capsys.readouterr().err

    def wrong(ours, theirs, *_):  # the student's probabilities in place of their logarithms
        return functional.kl_div(ours.softmax(1), theirs.softmax(1), reduction="batchmean")

    try_out(with_soft(wrong), 12, "cpu")
    assert re.search(r"logits is -0\.\d+, below 0 \(kl_div takes log", capsys.readouterr().err)
    try_out(with_soft(lambda ours, theirs, *_: (ours - theirs).square().sum()), 12, "cpu")
    assert "of the same images twice is twice as much: a sum for a mean?" in capsys.readouterr().err

    def alike(ours, theirs, *_):  # 1 less that is meant
        return functional.cosine_similarity(ours, theirs).mean()

    try_out(with_soft(alike), 12, "cpu")
    words = r"answers as its teacher is 1, of one that guesses -?0\.\d+: a wrong sign\?"
    assert re.search(words, capsys.readouterr().err)
    apart = torch.eye(12) == 0

    def where_wrong(ours, theirs, labels, _):  # the made-up teacher is always right
        return ((ours - theirs).square().mean(1) * (theirs.argmax(1) != labels)).mean()

    def between_images(ours, theirs, *_):  # of one size of batch, that of all steps
        return ((ours @ ours.T) * apart - (theirs @ theirs.T) * apart).square().mean()

    for mine in (where_wrong, between_images):
        try_out(with_soft(mine), 12, "cpu")
        assert capsys.readouterr().err == ""

    def between_two(ours, theirs, labels, _):  # 0 for a single image
        return functional.cross_entropy(ours @ theirs.T, torch.arange(len(labels)))

    try_out(with_soft(between_two), 2, "cpu")
    assert capsys.readouterr().err == ""


def test_a_soft_loss_that_changes_the_logits_is_refused():
    """Without a word the accuracy in the log would be of what it leaves."""

    def masked(ours, theirs, labels, temperature):
        return kd(ours.scatter_(1, labels[:, None], -1e9), theirs, labels, temperature)

    def clamped(ours, theirs, *others):  # made-up logits are within
        return kd(ours.clamp_(-99, 99), theirs, *others)

    def ignored(ours, theirs, labels, temperature):
        labels[::2] = -100
        return kd(ours, theirs, labels, temperature)

    def unseen(ours, theirs, *others):
        ours.data.clamp_(-0.1, 0.1)
        return kd(ours, theirs, *others)

    for mine in (masked, clamped, ignored, unseen):
        with pytest.raises(UserError, match="the student's logits or the labels in place; .*clone"):
            try_out(with_soft(mine), 12, "cpu")


@pytest.mark.parametrize(
    ("soft_loss", "words"),
    [
        (lambda ours, *_: (ours.detach() - ours.square()).log().mean(), "the one is nan, the"),
        (lambda ours, *_: (ours - ours).abs().sqrt().mean(), "the one is 0, .* value nan;"),
        (lambda ours, *_: (ours.detach() - 1e9).log().mean(), "the one is nan, .* value 0;"),
    ],
)
def test_a_soft_loss_that_is_not_finite_is_refused_before_any_training(soft_loss, words, capsys):
    with pytest.raises(UserError, match=f"is not finite; {words}.* look for a logarithm") as caught:
        try_out(with_soft(soft_loss), 12, "cpu")
    assert caught.value.exit_code == 2


def test_distillation_loss_weights_its_parts():
    loss = distillation_loss(STUDENT, TEACHER, LABELS, temperature=4.0, alpha=0.3, soft_weight=2.0)
    hard = functional.cross_entropy(STUDENT, LABELS)
    soft = kd(STUDENT, TEACHER, LABELS, 4.0)
    torch.testing.assert_close(loss.hard, hard)
    torch.testing.assert_close(loss.soft, soft)
    torch.testing.assert_close(loss.total, 0.7 * hard + 0.3 * 2.0 * soft)
    alone = distillation_loss(STUDENT, TEACHER, LABELS, temperature=4.0, alpha=0.0).total
    assert alone == hard_loss(STUDENT, LABELS).total


def test_the_hard_loss_takes_logits_not_probabilities():
    expected = (
        -sum(
            math.log(softmax(row)[label])
            for row, label in zip(STUDENT.tolist(), LABELS.tolist(), strict=True)
        )
        / 2
    )
    assert hard_loss(STUDENT, LABELS).total.item() == pytest.approx(expected)


def test_no_gradient_reaches_the_teacher():
    teacher = TEACHER.clone().requires_grad_()
    student = STUDENT.clone().requires_grad_()
    distillation_loss(student, teacher, LABELS, temperature=2.0, alpha=0.5).total.backward()
    assert teacher.grad is None and student.grad is not None
