"""A server that runs training scripts with faults put into them from outside.

python faults.py DATA: imports torch once, then forks a process for each request on stdin, so that
a run costs no start of an interpreter. A request is a line of JSON: either
{"arguments": [SCRIPT, ...], "faults": [[NAME, ARGUMENT, ...], ...], "output": PATH}, answered with
the id of the process, whose streams go to PATH.out and PATH.err; or {"wait": ID}, answered with
its exit code, negative for a signal, as in subprocess. A fault is one of the functions below.
"""

import errno
import itertools
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, Self

import child  # puts the project on the path
import torch
from torch import nn

import common.batches
import common.data
import common.loss
import common.models
import common.records  # which a run imports that finds itself finished
import common.remember
import common.run
import common.train

LIMIT = 100  # seconds after which a run that hangs is ended


def at_call(
    owner: Any,
    name: str,
    number: int,
    action: Callable[[], None],
    after: bool = False,
    when: Callable[..., bool] = lambda *_: True,
) -> None:
    """Have `action` done at the number-th call (from 1) of owner.name for which `when` holds."""
    original = getattr(owner, name)
    calls = itertools.count(1)

    def wrapper(*arguments: Any, **options: Any) -> Any:
        hit = when(*arguments) and next(calls) == number
        if hit and not after:
            action()
        result = original(*arguments, **options)
        if hit and after:
            action()
        return result

    setattr(owner, name, wrapper)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_step(number: int) -> None:
    at_call(common.train.Trainer, "step", number, die)


def kill_in_evaluation(number: int) -> None:
    at_call(common.train.Trainer, "evaluate", number, die)


def kill_in_load() -> None:
    """In loading the data."""
    at_call(common.data, "load", 1, die)


def kill_at_rename(
    name: str, number: int, after: bool, signal_number: int = signal.SIGKILL
) -> None:
    def when(source: Path, target: Path) -> bool:
        return Path(target).name == name

    at_call(os, "replace", number, lambda: os.kill(os.getpid(), signal_number), after, when)


class Wrapped:
    """A file, for a fault to have something of it otherwise."""

    def __init__(self, file: Any):
        self.file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


class HalfWritten(Wrapped):
    """It takes half of what is written to it, and then the process dies."""

    def write(self, content: Any) -> NoReturn:
        self.file.write(memoryview(content)[: len(content) // 2])
        self.file.flush()
        die()


def at_write(name: str, number: int, change: Callable[[Any], Any]) -> None:
    """Pass the file through `change` that is opened when `name` is written the number-th time."""
    calls = itertools.count(1)

    def faulty_open(path: Path, mode: str) -> Any:
        file = open(path, mode)  # noqa: SIM115
        hit = f".{name}." in path.name and mode == "wb" and next(calls) == number
        return change(file) if hit else file

    common.run.open = faulty_open


def kill_in_write(name: str, number: int) -> None:
    at_write(name, number, HalfWritten)


def kill_at_file_operation(number: int) -> None:
    """Die before the number-th time that a file is opened for writing, renamed or removed.

    Not before a sync: that changes nothing that a killed process leaves.
    """
    calls = itertools.count(1)

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any) -> Any:
            if next(calls) == number:
                die()
            return function(*arguments)

        return wrapper

    for name in ("replace", "unlink"):
        setattr(os, name, counted(getattr(os, name)))
    common.run.open = counted(open)


def fill_disk(name: str, number: int, folder: str, left: int) -> None:
    """Fill the disk of `folder`, but for `left` bytes, as `name` is written the number-th time."""

    def fill(file: Any) -> Any:
        with open(Path(folder) / "filler", "wb", buffering=0) as filler:
            try:
                while filler.write(bytes(1 << 16)):
                    pass
            except OSError:
                filler.truncate(max(filler.tell() - left, 0))
        return file

    at_write(name, number, fill)


def limit_file_size(name: str, number: int, limit: int) -> None:
    """Allow files no more than `limit` bytes while `name` is written the number-th time."""

    class Limited(Wrapped):
        def __exit__(self, *_: object) -> None:
            try:
                self.file.close()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def change(file: Any) -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        return Limited(file)

    at_write(name, number, change)


def signal_in_batch(number: int, signal_number: int) -> None:
    """Send a signal in the number-th batch, of training or evaluation; die in the one after."""
    common.train.Device.evaluation_batch = 16  # else there are few batches in an evaluation
    at_call(common.train.Device, "autocast", number, lambda: os.kill(os.getpid(), signal_number))
    at_call(common.train.Device, "autocast", number + 1, die)


def hang(where: str, number: int) -> None:
    """Never come back from the number-th training step, or from loading the data."""

    def wait() -> None:
        arrived = signals()
        print("hanging", flush=True)
        for _ in arrived:
            print("a signal was seen", flush=True)

    owner = {"step": common.train.Trainer, "load": common.data}[where]
    at_call(owner, where, number, wait)


def await_signal_in_step(number: int) -> None:
    """Make the number-th step last until a signal has arrived."""

    def wait() -> None:
        arrived = signals()
        print("waiting", flush=True)
        next(arrived)

    at_call(common.train.Trainer, "step", number, wait)


def signals() -> Iterator[int]:
    """Each signal from now on, once its handler has run."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    return (os.read(reader, 1)[0] for _ in itertools.count())


def change_folder(folder: str) -> None:
    os.chdir(folder)


def use_threads(number: int) -> None:
    torch.set_num_threads(number)


def deny_writes(folder: str) -> None:
    """What a folder without write permission does, for root, to whom nothing is denied."""

    def denying(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(path: Any, *rest: Any, **options: Any) -> Any:
            if Path(path).parent == Path(folder):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return function(path, *rest, **options)

        return wrapper

    os.open, os.mkdir = denying(os.open), denying(os.mkdir)


def spoil_loss(number: int, how: str) -> None:
    """Make the number-th batch's loss NaN, or infinite, or only its value or its gradient NaN."""
    original = common.loss.hard_loss
    calls = itertools.count(1)

    def hard_loss(logits: torch.Tensor, *rest: Any) -> common.loss.Loss:
        loss = original(logits, *rest)
        if next(calls) != number:
            return loss
        if how == "gradient":  # the root of 0 is 0, its derivative infinite, times 0 is NaN
            return loss._replace(total=loss.total + (0 * logits.sum()).sqrt())
        if how == "value":  # and a gradient that is 0 throughout
            return loss._replace(total=torch.relu(loss.total - 1e9) + float("nan"))
        return loss._replace(total=loss.total * float(how))

    common.loss.hard_loss = hard_loss


def break_loss(number: int) -> None:
    """Have the number-th batch's loss fail, as one with a mistake in it does."""
    original = common.loss.hard_loss
    calls = itertools.count(1)

    def hard_loss(logits: torch.Tensor, *rest: Any) -> common.loss.Loss:
        return original(logits[:, :7] + logits if next(calls) == number else logits, *rest)

    common.loss.hard_loss = hard_loss


def add_dropout() -> None:
    """Give the small CNN a layer that draws from torch's global generator in every step."""
    plain = common.models.NETWORKS["small-cnn"]
    common.models.NETWORKS["small-cnn"] = lambda: nn.Sequential(*plain(), nn.Dropout(0.2))


def forget_seeds() -> None:
    """Have what is drawn in an epoch depend on what was drawn before."""
    common.train.seed_draws = lambda *_: None


def shrink_networks() -> None:
    """A small CNN so small that a run takes no longer than its files do."""
    common.models.NETWORKS["small-cnn"] = lambda: common.models.plain_cnn(((4,), (4,)), 8)


def join(rank: int, processes: int, port: int) -> None:
    """Be one of several processes, told so as torchrun tells it."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip


def note_batches(path: str) -> None:
    """Write to `path` a line for each step: which images its loss has, and which views of them."""
    original = common.train.Trainer.__init__

    def init(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        objective = self.objective

        def noted(logits: torch.Tensor, batch: common.batches.Batch) -> Any:
            with open(path, "a") as file:
                pairs = zip(batch.index.tolist(), batch.view.tolist(), strict=True)
                print(*(f"{image}:{number}" for image, number in pairs), file=file)
            return objective(logits, batch)

        self.objective = noted

    common.train.Trainer.__init__ = init


class WatchingNorm(nn.Module):
    """Gathers a batch norm's statistics and changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1, affine=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.norm(images)
        return images


def norm_only_watches() -> None:
    """A small CNN whose gradient of a batch is the mean of those of the batch's parts."""
    common.models.NETWORKS["small-cnn"] = lambda: nn.Sequential(
        common.models.Normalize(), WatchingNorm(), nn.Flatten(), nn.Linear(28 * 28, 10)
    )


def fetch_from(source: str, data_dir: str, killed_after: int) -> None:
    """No data set on this machine; a fetch copies it from `source`, and may die on the way."""

    def fetch(scratch: Path) -> Path:
        (scratch / "raw").mkdir()
        for number, name in enumerate(common.data.DIGESTS, start=1):
            shutil.copy(Path(source) / f"{name}.gz", scratch / "raw")
            time.sleep(0.05)
            if number == killed_after:
                die()
        print("fetched", flush=True)
        return scratch / "raw"

    def offline(scratch: Path) -> Path:
        raise RuntimeError("no route to host")

    common.data.DATA_DIR = Path(data_dir)
    common.data.SYSTEM_DIR = Path(data_dir) / "none"
    common.data._from_torchvision = offline
    common.data._from_debian = fetch


def run(data: str, arguments: list[str], faults: list[list], output: str) -> None:
    """Run a script in this process, as the interpreter would, and end the process."""
    status = 1
    try:
        for number, suffix in ((1, ".out"), (2, ".err")):
            target = os.open(output + suffix, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(target, number)
        signal.alarm(LIMIT)
        for name, *values in faults:
            globals()[name](*values)
        child.run([data, *arguments])
        status = 0
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def serve(data: str) -> None:
    torch.set_num_threads(1)  # and so no thread pool, which a fork would lose
    # Imports much of torch; here once instead of in every run.
    common.models.count_multiply_adds(common.models.build("small-cnn"))
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                run(data, **request)
        print(answer, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
