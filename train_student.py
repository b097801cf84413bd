"""Train the small CNN with a teacher: hard labels and softened teacher outputs.

  python train_student.py                    the ResNet teacher of the recipe
  python train_student.py --teacher runs/notes/teacher-cnn/seed-0
  python train_student.py --teacher A B      an ensemble: their logits averaged
  python train_student.py --loss dkd --temperature 2 --alpha 0.3
  python train_student.py --arch deeper-cnn  another small network

  loss = (1 - alpha) * hard + alpha * soft_weight * soft
  soft = temperature^2 * KL(teacher || student), softened (--loss kd)

Mind the direction: alpha weights the soft loss. Without --teacher it takes the
ResNet of the same recipe and seed under runs/, else the published one, seed 0.

Leaves config.json, log.csv, best.pt, last.pt, previous.pt, predictions.npz and
summary.json in runs/RECIPE/student-TEACHER/seed-SEED, TEACHER being resnet, cnn
or ensemble (student-TEACHER-LOSS for another loss than kd, then -ARCH for
another network than small-cnn); with recipe notes also the teacher's answers,
40 MB, beside its best.pt.

Expect 93.1 % of the test images, with --recipe best 94.7 %, in about 40 minutes
on one CPU core with bfloat16, half a minute on an NVIDIA H200.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from common.batches import Batch, Dataset, Views
from common.config import StudentConfig
from common.data import load
from common.device import choose_device
from common.errors import script
from common.loss import SOFT_LOSSES, Loss, distillation_loss, try_out
from common.models import build, freeze
from common.remember import Ensemble, RememberedLogits
from common.run import describe, find_teachers, in_project, open_run, read_teacher
from common.train import fit


def main(argv: Sequence[str] | None = None) -> None:
    config = StudentConfig.parse(__doc__, argv)
    device = choose_device(config)
    data = Dataset(load(config.data_dir), Views.of(config), device.type)

    teachers = [read_teacher(path) for path in find_teachers(config)]
    # Eval mode, no gradients, batch norm folded: from here on a teacher is a fixed function,
    # and its logits for a view of an image need be computed only once. One teacher is an ensemble
    # of one.
    teacher_logits = Ensemble(
        RememberedLogits(freeze(t.network), data, device, t.digest, t.path.parent) for t in teachers
    )

    torch.manual_seed(config.seed)  # the next lines as in train_baseline.py: the same weights
    student = build(config.arch)

    distil = partial(
        distillation_loss,
        temperature=config.temperature,
        alpha=config.alpha,
        soft_loss=SOFT_LOSSES[config.loss],
        soft_weight=config.soft_weight,
        label_smoothing=config.label_smoothing,
    )
    # A loss of your own that does not work fails here, not after minutes of teachers' answers.
    try_out(distil, config.batch_size, device.type)

    def loss(student_logits: Tensor, batch: Batch) -> Loss:
        # The teacher's logits are of the very views that the student sees.
        return distil(student_logits, teacher_logits(batch), batch.labels)

    name = config.name(teachers[0].arch if len(teachers) == 1 else "ensemble")
    facts = describe(student, config, name, data.digest) | device.facts()
    facts["teacher"] = [in_project(teacher.path) for teacher in teachers]
    facts["teacher_sha256"] = "+".join(teacher.digest for teacher in teachers)
    with open_run(config.folder(name), config, facts) as run:
        if not run.complete:
            teacher_logits.announce(teacher.path for teacher in teachers)
        try:
            # Before each epoch the teacher is asked for the views of it that it has not met yet.
            fit(student, loss, data, config, run, device, before_epoch=teacher_logits.prepare)
        finally:
            teacher_logits.keep()


if __name__ == "__main__":
    script(main)
