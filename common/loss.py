"""Distillation losses: pure functions of (logits, labels).

Every soft loss is f(student_logits, teacher_logits, labels, temperature) -> scalar: the mean over
the batch, zero where the student's logits equal the teacher's, computed in the dtype of its inputs;
those here are scaled by temperature², and so is their rounding, 1e-7 in float32. Logits are (N, C)
floating point, labels (N,) int64, temperature > 0; not every loss uses the labels.
"""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from common.errors import UserError, warn

NOT_FINITE = "look for a logarithm, a root or a division in it"
SoftLoss = Callable[[Tensor, Tensor, Tensor, float], Tensor]


class Loss(NamedTuple):
    """A training loss and its parts, scalars; `soft` is None where there is no teacher."""

    total: Tensor
    hard: Tensor
    soft: Tensor | None = None


def _kl(student_log_p: Tensor, teacher_log_p: Tensor) -> Tensor:
    """KL(teacher ‖ student), summed over classes, mean over the batch (not over elements).

    torch's kl_div(input, target) is KL(target ‖ input): the student comes first.
    """
    return functional.kl_div(student_log_p, teacher_log_p, reduction="batchmean", log_target=True)


def kd(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """Hinton, Vinyals, Dean 2015, Distilling the Knowledge in a Neural Network.

    temperature² · KL(teacher ‖ student) of the softened distributions. The factor keeps the
    gradient's size comparable to the hard loss's as the temperature grows.
    """
    return temperature**2 * _kl(
        functional.log_softmax(student_logits / temperature, dim=1),
        functional.log_softmax(teacher_logits / temperature, dim=1),
    )


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    target_weight: float = 1.0,
    other_weight: float = 8.0,
) -> Tensor:
    """Zhao et al. 2022, Decoupled Knowledge Distillation.

    target_weight · KL of the pair (target, rest) + other_weight · KL over the non-target classes.
    """
    classes = torch.arange(student_logits.shape[1] - 1, device=labels.device)
    # (N, C - 1): every class but the label, so of label 2 the classes 0, 1, 3, 4, ...
    others = classes + (classes >= labels[:, None])

    def decouple(logits: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits / temperature
        other_logits = logits.gather(1, others)
        pair = torch.cat(
            [logits.gather(1, labels[:, None]), other_logits.logsumexp(1, keepdim=True)], 1
        )
        return functional.log_softmax(pair, 1), functional.log_softmax(other_logits, 1)

    student_pair, student_others = decouple(student_logits)
    teacher_pair, teacher_others = decouple(teacher_logits)
    target_part = _kl(student_pair, teacher_pair)
    other_part = _kl(student_others, teacher_others)
    return temperature**2 * (target_weight * target_part + other_weight * other_part)


def dist(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """Huang et al. 2022, Knowledge Distillation from a Stronger Teacher (β = γ = 1).

    1 − Pearson correlation of the softened outputs, once over the classes of each image (mean over
    images) and once over the images of each class (mean over classes). Outputs that are all equal
    correlate with nothing: an image or class of such counts as 1. Near such the gradient has no
    bounds: no network for this loss that begins with a last layer of zeros.
    """
    student_p = functional.softmax(student_logits / temperature, dim=1)
    teacher_p = functional.softmax(teacher_logits / temperature, dim=1)

    def distance(dim: int) -> Tensor:
        centred = [p - p.mean(dim, keepdim=True) for p in (student_p, teacher_p)]
        return 1 - functional.cosine_similarity(*centred, dim=dim, eps=1e-12).mean()

    return temperature**2 * (distance(1) + distance(0))


def logit_standard(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """Sun et al. 2024, Logit Standardization in Knowledge Distillation.

    `kd` of logits brought to zero mean and unit deviation per image (the paper's population
    deviation), so that the student need not match the teacher's scale. Near logits that are all
    equal the gradient has no bounds: no network that begins with a last layer of zeros.
    """

    def standardise(logits: Tensor) -> Tensor:
        centred = logits - logits.mean(1, keepdim=True)
        return centred / (logits.std(1, keepdim=True, correction=0) + 1e-7)

    return kd(standardise(student_logits), standardise(teacher_logits), labels, temperature)


SOFT_LOSSES: dict[str, SoftLoss] = {
    "kd": kd,
    "dkd": dkd,
    "dist": dist,
    "logit-standard": logit_standard,
}


def hard_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Loss:
    """Cross-entropy with the labels: the whole loss of a network that has no teacher."""
    loss = functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    return Loss(total=loss, hard=loss)


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    alpha: float,
    soft_loss: SoftLoss = kd,
    soft_weight: float = 1.0,
    label_smoothing: float = 0.0,
) -> Loss:
    """(1 - alpha) · hard + alpha · soft_weight · soft. alpha weights the *soft* loss.

    `hard` is the cross-entropy with the labels, at temperature 1; `soft` one of SOFT_LOSSES.
    The parts are returned as they are, before weighting.
    """
    hard = functional.cross_entropy(student_logits, labels, label_smoothing=label_smoothing)
    soft = soft_loss(student_logits, teacher_logits.detach(), labels, temperature)
    if not isinstance(soft, Tensor) or soft.ndim > 0:
        kind = f"a {type(soft).__name__}"
        if isinstance(soft, Tensor):
            kind = f"a tensor of shape {tuple(soft.shape)}"
        raise UserError(
            f"the soft loss returned {kind}",
            "it is to be a tensor of one number, the mean over the batch",
            "return that, ended with .mean() and without .item()",
        )
    return Loss((1 - alpha) * hard + alpha * soft_weight * soft, hard, soft)


def try_out(loss: Callable[[Tensor, Tensor, Tensor], Loss], size: int, device: str) -> None:
    """Soft loss and gradient of a batch of made-up logits: one that does not work fails here."""
    generator = torch.Generator().manual_seed(0)
    weights, teacher_logits = torch.randn(2, size, 10, generator=generator).to(device)
    weights.requires_grad_()
    student_logits = weights.clone()  # as a network's: made by an operation
    labels = torch.arange(size, device=device) % 10
    teacher_logits += 10 * functional.one_hot(labels, 10)
    given = student_logits, labels
    before = [(part._version, part.clone()) for part in given]  # how often it was changed in place
    soft = loss(student_logits, teacher_logits, labels).soft
    if any(
        part._version != version or not torch.equal(part, was)  # .data changes without a version
        for part, (version, was) in zip(given, before, strict=True)
    ):
        raise UserError(
            "the soft loss changes the student's logits or the labels in place",
            "what is measured by them afterwards would be wrong",
            "let it change a copy: .clone()",
        )
    gradient = None
    if soft.requires_grad:
        (gradient,) = torch.autograd.grad(soft, weights, allow_unused=True)
    if gradient is None:  # a masked loss may have none for some batches
        warn(
            "the soft loss of made-up logits has no gradient, so the student may not learn from it "
            "(argmax, detach(), item() or no_grad()?)"
        )
        gradient = torch.zeros(())
    if not soft.isfinite() or not gradient.isfinite().all():
        raise UserError(
            "the soft loss of made-up logits, or its gradient, is not finite",
            f"the one is {soft:.4g}, the other's greatest value {gradient.abs().max():.4g}",
            NOT_FINITE,
        )
    if soft < 0:  # allowed: it may be right but for a constant
        warn(
            f"the soft loss of made-up logits is {soft:.4g}, below 0 (kl_div takes logarithms of "
            "the student's probabilities)"
        )
    with torch.no_grad(), contextlib.suppress(Exception):  # it need not take other logits
        same = loss(teacher_logits.clone(), teacher_logits, labels).soft
        if same > soft:
            warn(
                f"the soft loss of a student that answers as its teacher is {same:.4g}, of one "
                f"that guesses {soft:.4g}: a wrong sign?"
            )
    half = [part[: size // 2] for part in (student_logits, teacher_logits, labels)]
    with torch.no_grad(), contextlib.suppress(Exception):  # nor other sizes
        once, twice = (loss(*(torch.cat([part] * n) for part in half)).soft for n in (1, 2))
        if once and twice / once > 1.99:
            warn("the soft loss of the same images twice is twice as much: a sum for a mean?")
