"""Images a second of the bench's training loop, and how many times the plain loop's that is.

  python benchmarks/throughput.py            the table; some six minutes on two cores
  python benchmarks/throughput.py --json

Plain and bench take turns within each round; the medians of the rounds are compared, so what else
the machine does meets both. A student has two figures: first, the mean over a whole run of recipe
notes, the teacher's answers that it asks for included; and later, with all answers at hand.
"""

import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import plain
from common.batches import Dataset, Views
from common.config import Parser, StudentConfig, positive_int
from common.data import load
from common.device import Device, choose_device
from common.errors import StopSignals, script
from common.loss import SOFT_LOSSES, distillation_loss, hard_loss
from common.models import build, count_multiply_adds, freeze
from common.remember import RememberedLogits
from common.train import Trainer


def matmul_rate(device: Device) -> float:
    """The best rate, over some sizes, of a matrix product in the precision in use, MAC/s."""
    best = 0.0
    for size in (1024, 2048, 4096):
        a = torch.randn(size, size, device=device.type).to(device.dtype)
        a @ a
        for _ in range(7):
            best = max(best, size**3 / timed(lambda a=a: a @ a, device))
    return best


def timed(work: Callable[[], object], device: Device) -> float:
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: Device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


class Bench:
    """One network, trained by the bench's loop and by the plain one."""

    def __init__(self, name: str, config: StudentConfig, data: Dataset, device: Device,
                 plain_root: Path, teacher: str | None = None):  # fmt: skip
        self.config, self.data, self.device = config, data, device
        self.batches = plain.loader(plain_root, config)
        self.plain_network = build(name)
        self.index, self.view = data.epoch(0, 1)
        self.plain_teacher = self.remembered = None
        if teacher:
            plain_teacher = build(teacher).to(device.type, memory_format=torch.contiguous_format)
            self.plain_teacher = plain_teacher.eval()
            self.remembered = RememberedLogits(freeze(build(teacher)), data, device, "", None)
        self.trainer = Trainer(build(name), self.loss, data, config, device)
        self.multiply_adds = count_multiply_adds(build(name))

    def loss(self, logits, batch):
        if self.remembered is None:
            return hard_loss(logits, batch.labels)
        return distillation_loss(
            logits, self.remembered(batch), batch.labels, temperature=self.config.temperature,
            alpha=self.config.alpha, soft_loss=SOFT_LOSSES[self.config.loss],
        )  # fmt: skip

    def plain_steps(self) -> Iterator[float]:
        while True:  # epoch after epoch
            yield from plain.steps(
                self.plain_network, self.batches, self.config, self.device.type, self.plain_teacher
            )

    def train(self, count: int) -> float:
        """Seconds a step, over `count` steps."""
        images = count * self.config.batch_size
        index, view = self.index[:images], self.view[:images]
        with StopSignals() as stop:
            return (
                timed(lambda: self.trainer.train_epoch(index, view, 1, stop), self.device) / count
            )

    def ask(self, count: int) -> float:
        """Seconds a teacher's answer, over at least `count` answers that are not known yet."""
        self.remembered.table.fill_(torch.nan)
        whole = self.device.evaluation_batch
        count = min(-(-count // whole) * whole, len(self.index))  # it fills up the last batch
        index, view = self.index[:count], self.view[:count]
        with StopSignals() as stop:
            return timed(lambda: self.remembered.prepare(index, view, stop), self.device) / count

    def measure(self, rounds: int, count: int) -> dict[str, float]:
        """Medians of images a second."""
        batch, rates = self.config.batch_size, defaultdict(list)
        plain_training = self.plain_steps()
        plain.seconds_per_step(plain_training, 5)  # the workers start
        if self.remembered:
            self.ask(count * batch)
        self.train(count)
        for _ in range(rounds):
            # Batches that the workers prepared during the bench's turn are not timed, and the
            # workers are given the time to prepare the next ones before the bench's turn.
            plain.seconds_per_step(plain_training, plain.BUFFERED)
            rates["plain"].append(batch / plain.seconds_per_step(plain_training, count))
            time.sleep(1)
            if self.remembered:
                rates["answers"].append(1 / self.ask(count * batch))
            rates["bench"].append(batch / self.train(count))
        return {key: statistics.median(values) for key, values in rates.items()}


def rows(rounds: int, count: int) -> tuple[Device, float, list[dict]]:
    config = StudentConfig.parse("", ["--recipe", "notes"])
    device = choose_device(config)
    data = Dataset(load(), Views.of(config), device.type)
    count = min(count, len(data) // config.batch_size)  # the bench's turn is within an epoch
    peak = matmul_rate(device)
    table = []
    with tempfile.TemporaryDirectory() as scratch:
        root = plain.unpack(Path(scratch))
        for what, network, teacher in (
            ("teacher, resnet", "resnet", None),
            ("teacher, cnn", "cnn", None),
            ("baseline", "small-cnn", None),
            ("student of resnet", "small-cnn", "resnet"),
            ("student of cnn", "small-cnn", "cnn"),
        ):
            bench = Bench(network, config, data, device, root, teacher)
            found = bench.measure(rounds, count)
            share = 3 * bench.multiply_adds * found["bench"] / peak
            row = {"what": what, "plain": found["plain"]}
            if teacher is None:
                table.append(row | {"bench": found["bench"], "share_of_matmul": share})
                continue
            asked = len(data) * data.views.met(config.epochs) / config.epochs  # an epoch
            epoch = len(data) / found["bench"]
            first = len(data) / (epoch + asked / found["answers"])
            table.append(row | {"what": f"{what}: first", "bench": first})
            table.append(row | {"what": f"{what}: later", "bench": found["bench"]})
    return device, peak, table


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--rounds", type=positive_int, default=5, help="(default: 5)")
    parser.add_argument("--steps", type=positive_int, default=40, help="a round (default: 40)")
    parser.add_argument("--json", action="store_true", help="for machines")
    args = parser.parse_args(argv)
    device, peak, table = rows(args.rounds, args.steps)
    if args.json:
        facts = device.facts() | {"torch": str(torch.__version__), "matmul_mac_per_second": peak}
        print(json.dumps(facts | {"rows": table}, indent=2))
        return
    print(
        f"{device.type} ({device.name}), {device.precision}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, matrix product {peak / 1e9:.0f} GMAC/s"
    )
    print(f"{'images a second':26}{'plain':>9}{'bench':>9}{'ratio':>8}{'of matmul':>11}")
    for row in table:
        share = f"{100 * row['share_of_matmul']:.0f} %" if "share_of_matmul" in row else ""
        print(
            f"{row['what']:26}{row['plain']:9,.0f}{row['bench']:9,.0f}"
            f"{row['bench'] / row['plain']:7.2f}×{share:>11}"
        )


if __name__ == "__main__":
    script(main)
