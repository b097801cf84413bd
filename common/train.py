"""The one training loop. CUDA graphs and several processes live here; roles do not.

`Trainer.step` is the usual five lines (forward, loss, zero_grad, backward, step; bare in
benchmarks/plain.py), a check for values that are not finite, several processes (of one, `own` is
the whole batch and `share` 1) and sums for the log.
"""

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from common.batches import Batch, Dataset
from common.config import Config
from common.device import Device, progress, together
from common.errors import Interrupted, StopSignals, UserError, warn
from common.loss import NOT_FINITE, Loss
from common.run import Follower, Run

# What to do where a loss, a gradient or a weight is not finite.
DIVERGED = "try a lower --lr, a student's --soft-weight lower, a --warmup, or --precision float32"
# f(logits (N, 10) float32, batch) -> its loss. A GPU records it once, with the values that Python's
# variables have then: what changes from step to step is to be a persistent buffer of the network,
# changed in place, which the warm-up before the recording and a resume give back as it was.
Objective = Callable[[Tensor, Batch], Loss]
# f(index, view, stop): told the order and the views of each epoch before it begins.
BeforeEpoch = Callable[[Tensor, Tensor, StopSignals], None]


def learning_rates(config: Config, steps_per_epoch: int, epoch: int) -> Tensor:
    """Learning rates of the steps of an epoch (from 1): (steps_per_epoch,) float64."""
    total = steps_per_epoch * config.epochs
    step = torch.arange(steps_per_epoch, dtype=torch.float64) + (epoch - 1) * steps_per_epoch
    done = step / total
    factor = torch.ones_like(done)
    if config.schedule == "cosine":
        after_warmup = (done - config.warmup) / (1 - config.warmup)
        factor = 0.5 + 0.5 * torch.cos(math.pi * after_warmup)
    elif config.schedule == "step":
        factor[done >= 0.6] = config.drop
    if config.warmup:
        rising = (step + 1) / (total * config.warmup)
        factor = torch.where(done < config.warmup, rising.clamp(max=1), factor)
    return config.lr * factor


def seed_draws(seed: int, epoch: int, rank: int) -> None:
    """Fix what a network or a loss draws in an epoch, as dropout does: a resumed run draws it
    again, and each process for itself."""
    torch.manual_seed(int(np.random.SeedSequence((seed, epoch, rank)).generate_state(1)[0]))


class Trainer:
    """A network, its loss and its optimizer, and how one step and one evaluation are done."""

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        data: Dataset,
        config: Config,
        device: Device,
    ):
        self.network = network.to(device.type)
        self.objective = objective
        self.data = data
        self.config = config
        self.device = device
        self.forward = torch.compile(self.network) if config.compile else self.network
        if device.processes > 1:
            # Batch norms normalise by their own process's part of a batch, and gather statistics
            # of it: DDP would replace those by the first process's before every step.
            self.forward = DistributedDataParallel(self.forward)
            self.forward.broadcast_buffers = False  # its argument has another name since torch 2.15
        self.rate = torch.zeros((), device=device.type)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=self.rate,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            weight_decay=config.weight_decay,
            fused=True,
        )
        if config.momentum:  # at hand for _capture, which undoes steps
            for weights in self.network.parameters():
                self.optimizer.state[weights]["momentum_buffer"] = torch.zeros_like(weights)
        # Read by the fused kernel: where found_inf is 1 it leaves the weights alone. It stays at
        # 1 from the first non-finite step on, so a GPU need be asked only once an epoch.
        self.optimizer.found_inf = torch.zeros((), device=device.type)
        # Sums over the epoch's images: total, hard and soft loss, right answers, and 1 of an image
        # whose step was finite.
        self.sums = torch.zeros(5, device=device.type)
        self.taught = False  # whether the loss has a soft part
        self._nan = torch.full((), torch.nan, device=device.type)  # where there is no soft loss
        self._one = torch.ones((), device=device.type)
        self._graphs: dict[int, Callable[[Batch], None]] = {}

    def state(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, checkpoint: dict[str, Any]) -> None:
        try:
            self.network.load_state_dict(checkpoint["network"])
        except RuntimeError as error:
            raise UserError(
                "cannot go on with this run",
                str(error),
                "its network has changed since: undo that, or use --overwrite in place of --resume",
            ) from error
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate  # not the copy that load_state_dict made: step() reads this one

    def step(self, batch: Batch) -> None:
        """One step on a batch, at the learning rate in `self.rate`."""
        size = len(batch.labels)
        own, share = self._own(size)
        batch = Batch(*(part[own] for part in batch))
        with self.device.autocast():
            logits = self.forward(batch.images)
        logits = logits.float()
        loss = self.objective(logits, batch)
        self.optimizer.zero_grad()
        # The processes' gradients are averaged; the loss is a mean over the whole batch's images.
        (loss.total * (share * self.device.processes)).backward()
        self._find_inf(loss.total)
        self.optimizer.step()
        self.taught = loss.soft is not None
        with torch.no_grad():
            soft = loss.soft if self.taught else self._nan
            right = (logits.argmax(1) == batch.labels).sum(dtype=torch.float32)
            good = 1 - self.optimizer.found_inf
            parts = [loss.total, loss.hard, soft, right / len(batch.labels), good]
            self.sums += torch.stack(parts) * (share * size)

    def _find_inf(self, total: Tensor) -> None:
        """Set found_inf to 1 if the loss or a gradient is not finite, in any of the processes."""
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        torch._amp_foreach_non_finite_check_and_unscale_(  # private: GradScaler's one kernel
            [total.detach(), *gradients], self.optimizer.found_inf, self._one
        )
        if self.device.processes > 1:  # a loss is its own process's: the others cannot see it
            distributed.all_reduce(self.optimizer.found_inf, distributed.ReduceOp.MAX)

    def _own(self, size: int) -> tuple[slice, float]:
        """Which images of a batch are this process's, and how much of the batch they stand for."""
        count = self.device.processes
        if size < 2 * count:  # too few for batch norm: every process takes them all
            return slice(None), 1 / count
        own = slice(self.device.rank, None, count)
        return own, len(range(size)[own]) / size

    def own_part(self, index: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
        """What this process will see of the views (M,) of images (M,) of an epoch."""
        size = self.config.batch_size
        return tuple(
            torch.cat([batch[self._own(len(batch))[0]] for batch in part.split(size)])
            for part in (index, view)
        )

    def _average_statistics(self) -> None:
        """Make the processes' batch-norm statistics one, as each of them evaluates."""
        for values in self.network.buffers():
            if values.is_floating_point():
                distributed.all_reduce(values)
                values /= self.device.processes

    def train_epoch(
        self,
        index: Tensor,
        view: Tensor,
        epoch: int,
        stop: StopSignals,
        bar: tqdm | None = None,
    ) -> tuple[list[float], float]:
        """Train on the views (M,) of images (M,) in order; return sums and last learning rate."""
        seed_draws(self.config.seed, epoch, self.device.rank)
        self.network.train()
        self.sums.zero_()
        rates = learning_rates(self.config, math.ceil(len(index) / self.config.batch_size), epoch)
        on_device = rates.float().to(self.device.type)
        synchronous = self.device.type == "cpu"  # reading a value costs nothing there
        whole = self.data.batch(index, view)  # of all steps at once: a GPU launches less for it
        for step, start in enumerate(range(0, len(index), self.config.batch_size)):
            stop.check()
            self.rate.copy_(on_device[step])
            chunk = slice(start, start + self.config.batch_size)
            self._replay_or_run(Batch(*(part[chunk] for part in whole)))
            if synchronous and self.optimizer.found_inf:
                break
            if bar is not None:
                bar.update()
        if self.device.processes > 1:
            distributed.all_reduce(self.sums)
            self._average_statistics()
        sums = self.sums.tolist()
        if self.optimizer.found_inf:
            step = round(sums[4]) // self.config.batch_size
            what, why, what_to_do = "loss or a gradient", "training diverged", DIVERGED
            if self.taught and math.isfinite(sums[1]) and not math.isfinite(sums[2]):
                what, why = "soft loss", "the hard loss is"
                what_to_do = NOT_FINITE
            raise UserError(
                f"the {what} is not finite in epoch {epoch}, step {step + 1} of {len(rates)}, "
                f"at learning rate {rates[step]:.3g}",
                f"{why}; that step was not taken and no checkpoint was written",
                what_to_do,
                exit_code=1,
            )
        return sums[:4], float(rates[-1])

    def _replay_or_run(self, batch: Batch) -> None:
        if self.device.type != "cuda" or self.config.compile or self.device.processes > 1:
            self.step(batch)
            return
        size = len(batch.labels)
        if size not in self._graphs:
            self._graphs[size] = self._capture(batch)
        self._graphs[size](batch)

    def _capture(self, batch: Batch) -> Callable[[Batch], None]:
        """Record a step as a CUDA graph, so that the host launches it as one; undo the warm-up."""
        batch = Batch(*(part.clone() for part in batch))
        held = [*self.network.state_dict().values(), self.sums, self.optimizer.found_inf]
        held += (state["momentum_buffer"] for state in self.optimizer.state.values())
        before = [tensor.clone() for tensor in held]

        def restore() -> None:
            for tensor, value in zip(held, before, strict=True):
                tensor.copy_(value)

        with torch.random.fork_rng(devices=[torch.cuda.current_device()]):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):  # in which libraries choose their algorithms
                    self.step(batch)
            torch.cuda.current_stream().wait_stream(stream)
            restore()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.step(batch)
        except RuntimeError as error:  # a loss of the user's own may ask the device for a value
            reason = str(error.__context__ or error).splitlines()[0]  # the end fails, too
            warn(f"no CUDA graph of the step ({reason}); going on without, slower")
            restore()
            return self.step

        def replay(following: Batch) -> None:
            for part, values in zip(batch, following, strict=True):
                part.copy_(values)
            graph.replay()

        return replay

    def evaluate(self, images: Tensor, stop: StopSignals | None = None) -> Tensor:
        """Logits (N, 10) float32 of images (N, 1, 28, 28) uint8, in eval mode."""
        self.network.eval()
        logits = []
        with torch.no_grad():
            for chunk in images.split(self.device.evaluation_batch):
                if stop:
                    stop.check()
                with self.device.autocast():
                    logits.append(self.network(chunk).float())
        self.network.train()
        return torch.cat(logits)


def _finite(network: nn.Module) -> bool:
    return all(bool(values.isfinite().all()) for values in network.state_dict().values())


def measure(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy, and accuracy in percent."""
    right = (logits.argmax(1) == labels).sum().item()
    return functional.cross_entropy(logits, labels).item(), 100 * right / len(labels)


def fit(
    network: nn.Module,
    objective: Objective,
    data: Dataset,
    config: Config,
    run: Run | Follower,
    device: Device,
    before_epoch: BeforeEpoch | None = None,
) -> None:
    """Train `network` to minimise `objective`, and leave log, checkpoints and predictions in `run`.

    Goes on from the run's checkpoint if it has one. Raises Interrupted on SIGINT or SIGTERM, and
    UserError on a non-finite loss or gradient; the run folder can then be resumed.
    """
    _announce(run, device)
    if run.complete:
        print("already complete: nothing to do")
        return
    trainer = Trainer(network, objective, data, config, device)
    rows: list[dict[str, Any]] = []
    best: dict[str, Any] = {"epoch": 0, "val_accuracy": -1.0}
    last: dict[str, Any] = {}
    if run.checkpoint:
        rows, best, last = (run.checkpoint[key] for key in ("rows", "best", "last"))
        trainer.load_state(run.checkpoint)
        run.save_log(rows)
        run.save_best(best["weights"], best["epoch"], best["val_accuracy"])
        print(f"resumed after epoch {len(rows)}")
    run.save_config()
    begun = len(rows) + 1
    with StopSignals() as stop:
        try:
            for epoch in range(begun, config.epochs + 1):
                row, last = _run_epoch(trainer, epoch, stop, before_epoch)
                rows.append(row)
                if improved := row["val_accuracy"] > best["val_accuracy"]:
                    weights = {k: v.to("cpu", copy=True) for k, v in network.state_dict().items()}
                    accuracy = row["val_accuracy"]
                    best = {"epoch": epoch, "val_accuracy": accuracy, "weights": weights, **last}
                progressed = {"epoch": epoch, "rows": rows, "best": best, "last": last}
                run.save_checkpoint(trainer.state() | progressed | {"config": run.settings})
                run.save_log(rows)
                if improved:
                    run.save_best(best["weights"], epoch, best["val_accuracy"])
                _print_epoch(row, config.epochs)
                if begun == epoch < config.epochs:
                    to_go = duration((config.epochs - epoch) * row["seconds"])
                    print(f"at this pace {to_go} to go", flush=True)
            stop.check()
        except Interrupted:
            if run.resume_command:
                kept = f"after epoch {len(rows)}" if rows else "before the end of epoch 1"
                print(f"\nstopped {kept}; go on with\n  {run.resume_command}", file=sys.stderr)
            raise
        summary = summarise(rows, best)
        run.finish(  # a signal that arrives now leaves a finished run
            {
                "labels": data.test_labels.cpu().numpy(),
                "logits_best": best["test_logits"].numpy(),
                "logits_last": last["test_logits"].numpy(),
                "val_labels": data.val_labels.cpu().numpy(),
                "val_logits_best": best["val_logits"].numpy(),
            },
            summary,
        )
        _print_summary(summary)


def _run_epoch(
    trainer: Trainer, epoch: int, stop: StopSignals, before_epoch: BeforeEpoch | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Train one epoch and evaluate: its row of the log; held-out and test logits, on the CPU."""
    data, config, device = trainer.data, trainer.config, trainer.device
    steps = math.ceil(len(data) / config.batch_size)
    started = time.perf_counter()
    index, view = data.epoch(config.seed, epoch)
    if before_epoch:
        before_epoch(*trainer.own_part(index, view), stop)
    name = f"epoch {epoch}/{config.epochs}"
    with together(stop.check), progress(device, name, steps, "step") as bar:
        sums, rate = trainer.train_epoch(index, view, epoch, stop, bar)
    trained = time.perf_counter()
    logits = {
        "val_logits": trainer.evaluate(data.val_images, stop).cpu(),
        "test_logits": trainer.evaluate(data.test_images, stop).cpu(),
    }
    val_loss, val_accuracy = measure(logits["val_logits"], data.val_labels.cpu())
    test_loss, test_accuracy = measure(logits["test_logits"], data.test_labels.cpu())
    if not math.isfinite(val_loss + test_loss) or not _finite(trainer.network):
        raise UserError(
            f"the weights or their outputs are not finite after epoch {epoch}, "
            f"step {steps}, at learning rate {rate:.3g}",
            "training diverged; no checkpoint was written",
            DIVERGED,
            exit_code=1,
        )
    total, hard, soft, right = (value / len(data) for value in sums)
    row = {
        "epoch": epoch,
        "lr": rate,
        "train_loss": total,
        "train_hard_loss": hard,
        "train_soft_loss": None if math.isnan(soft) else soft,
        "train_accuracy": 100 * right,
        "val_loss": val_loss,
        "val_accuracy": val_accuracy,
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
        "images_per_second": len(data) / (trained - started),
        "seconds": time.perf_counter() - started,
    }
    return row, logits


def summarise(rows: list[dict[str, Any]], best: dict[str, Any]) -> dict[str, Any]:
    """What summary.json holds; epochs count from 1, accuracies are in percent."""
    test = [row["test_accuracy"] for row in rows]
    chosen = rows[best["epoch"] - 1]
    return {
        "epochs": len(rows),
        "best_epoch": best["epoch"],
        "train_accuracy": chosen["train_accuracy"],
        "val_accuracy": chosen["val_accuracy"],
        "test_accuracy_selected": chosen["test_accuracy"],
        "test_accuracy_last": test[-1],
        "test_accuracy_best_epoch": max(test),
        "test_best_epoch": test.index(max(test)) + 1,
        "seconds": sum(row["seconds"] for row in rows),
    }


def _announce(run: Run | Follower, device: Device) -> None:
    print(
        f"{run.settings['name']}: {run.settings['arch']}, "
        f"{run.settings['parameters']:,} parameters, "
        f"{run.settings['multiply_adds']:,} multiply-adds"
    )
    note = f"\nno GPU: {device.note}" if device.note else ""
    shared = f", {device.processes} processes" if device.processes > 1 else ""
    print(f"{device.type} ({device.name}), {device.precision}{shared}{note}")
    print(f"run folder {run.folder}", flush=True)


def _print_epoch(row: dict[str, Any], epochs: int) -> None:
    loss = f"loss {row['train_loss']:.3f}"
    if row["train_soft_loss"] is not None:  # both parts have room in 80 columns, their sum has not
        loss = f"hard {row['train_hard_loss']:.3f} soft {row['train_soft_loss']:.3f}"
    print(
        f"{row['epoch']:3d}/{epochs} {loss}, train {row['train_accuracy']:.2f} "
        f"held-out {row['val_accuracy']:.2f} test {row['test_accuracy']:.2f} %, "
        f"{row['seconds']:.1f} s",
        flush=True,
    )


def duration(seconds: float) -> str:
    """A duration, in the unit that a reader would choose."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _print_summary(summary: dict[str, Any]) -> None:
    print(
        f"test accuracy: {summary['test_accuracy_selected']:.2f} % at epoch "
        f"{summary['best_epoch']}, chosen on held-out images\n"
        f"               {summary['test_accuracy_last']:.2f} % at the last epoch\n"
        f"               {summary['test_accuracy_best_epoch']:.2f} % at epoch "
        f"{summary['test_best_epoch']}, chosen on the test images themselves"
    )
