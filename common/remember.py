"""What a frozen network says to every view of every image, computed once and remembered.

With shifts and mirrors alone, a run of 50 epochs sees the views of an image several times, and the
next run with the same teacher sees them again; the teacher's answer does not change.
"""

import contextlib
import hashlib
import sys
import time
from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path

import torch
from torch import Tensor, nn

from common.batches import Batch, Dataset
from common.device import Device, progress
from common.errors import StopSignals, UserError, warn
from common.run import load, save

WRITING = 600  # seconds: an older temporary file is a killed writer's
KEEP_SHARE = 0.1  # of the table: written whenever so much is new, so a kill loses no more
# What decides the logits' bits, and of which image they are.
CODE = ("common.batches", "common.data", "common.device", "common.models", __name__)
POOR = 50  # percent of the held-out images: far below what any network here has
MAX_VIEWS = 64  # beyond, a run meets few views twice, and the table no longer pays


def _code_digest(network: nn.Module) -> str:
    """Of our code, of the modules that the network's classes are from, and of what it is made."""
    classes = {each for module in network.modules() for each in type(module).__mro__}
    names = {*CODE} | {each.__module__ for each in classes}
    names = sorted(name for name in names if not name.startswith("torch."))  # its version is noted
    files = (getattr(sys.modules.get(name), "__file__", None) for name in names)
    code = b"".join(Path(file).read_bytes() for file in files if file)
    return hashlib.sha256(code + repr(network).encode()).hexdigest()


class RememberedLogits:
    """Logits of a frozen network for training batches: (N, 10) float32.

    They are computed before an epoch, in batches of one fixed size, whatever is asked for, and so
    are the same bits whether remembered, read from disk, or computed anew (on a GPU, with
    --deterministic). With more than MAX_VIEWS nothing is remembered beyond the epoch.
    """

    def __init__(
        self, network: nn.Module, data: Dataset, device: Device, digest: str, folder: Path | None
    ):
        """network: frozen; digest: of its weights; folder: where the table is kept, or None."""
        self.network = network.to(device.type)
        for module in network.modules():  # what autocast would convert again at every call
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.to(device.dtype)
        self.data = data
        self.device = device
        self.remembers = data.views.count <= MAX_VIEWS
        self.asked = 0  # how many answers were computed
        self.kept = 0  # how many of them are in the table on disk
        subject = {
            "network": digest, "data": data.digest, "views": list(astuple(data.views)),
            "device": [device.type, device.name, device.precision],
        }  # fmt: skip
        # Nor may the code have changed, or what else the bits depend on.
        self.key = subject | {
            "code": _code_digest(network), "torch": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        }  # fmt: skip
        name = hashlib.sha256(repr(subject).encode()).hexdigest()[:12]
        self.path = folder / f"logits-{name}.pt" if folder and self.remembers else None
        self.table = self._read()

    def _read(self) -> Tensor:
        shape = (self.data.views.count if self.remembers else 1, len(self.data), 10)
        if self.path:
            with contextlib.suppress(OSError, ValueError):  # absent or damaged: computed again
                content = load(self.path)
                table = content.get("table")
                if content.get("key") == self.key and getattr(table, "shape", None) == shape:
                    return table.to(self.device.type)
        return torch.full(shape, torch.nan).to(self.device.type)

    def prepare(self, index: Tensor, view: Tensor, stop: StopSignals) -> None:
        """Compute what is not known yet of an epoch's views (M,) of images (M,)."""
        if not self.remembers:
            self.table.fill_(torch.nan)
        row, missing = self._row(view), self.unknown(index, view)
        size = self.device.evaluation_batch
        with progress(self.device, "asking the teacher", len(missing), "image") as bar:
            for start in range(0, len(missing), size):
                stop.check()
                chunk = missing[start : start + size]
                self.asked += len(chunk)
                # Filled up with repeats: always the same batch size, and so the same arithmetic.
                full = chunk.repeat(-(-size // len(chunk)))[:size]
                logits = self.ask(self.data.batch(index[full], view[full]).images)
                self.table[row[chunk], index[chunk]] = logits[: len(chunk)]
                bar.update(len(chunk))
        if self.asked - self.kept > KEEP_SHARE * self.table[..., 0].numel():  # a kill may come
            self.keep()

    def unknown(self, index: Tensor, view: Tensor) -> Tensor:
        """Which of these views (M,) of images (M,) the table has no answer to."""
        return self.table[self._row(view), index, 0].isnan().nonzero().squeeze(1)

    def ask(self, images: Tensor) -> Tensor:
        """The network's own answer to images (N, 1, 28, 28) uint8: (N, 10) float32."""
        with torch.no_grad(), self.device.autocast():
            return self.network(images).float()

    def val_accuracy(self) -> float:
        """Percent of the held-out images that the network gets right."""
        chunks = self.data.val_images.split(self.device.evaluation_batch)
        answers = torch.cat([self.ask(images) for images in chunks]).argmax(1)
        return 100 * (answers == self.data.val_labels).float().mean().item()

    def __call__(self, batch: Batch) -> Tensor:
        return self.table[self._row(batch.view), batch.index]

    def _row(self, view: Tensor) -> Tensor:
        """Where the table has the answers to these views."""
        return view if self.remembers else torch.zeros_like(view)

    def keep(self) -> None:
        """Leave the table on disk for the next student, if the disk takes it.

        Of several processes each has asked for its part of the images only: nothing is kept.
        """
        if self.path and self.device.processes == 1 and self.asked > self.kept:
            self.kept = self.asked
            for leftover in self.path.parent.glob(f".{self.path.name}.*.tmp"):
                with contextlib.suppress(OSError):  # another student may clear it away first
                    if time.time() - leftover.stat().st_mtime > WRITING:
                        leftover.unlink()
            # RuntimeError: of a GPU that has failed, which is told already.
            with contextlib.suppress(OSError, UserError, RuntimeError):
                # Another student of this teacher may have left answers there since.
                table = torch.where(self.table.isnan(), self._read(), self.table)
                save(self.path, {"key": self.key, "table": table.cpu()})


class Ensemble:
    """The mean of its members' logits: (N, 10) float32, of one member that member's own.

    Its softened outputs are the geometric mean of theirs, normalised, at any temperature (Hinton,
    Vinyals, Dean 2015, Distilling the Knowledge in a Neural Network).
    """

    def __init__(self, members: Iterable[RememberedLogits]):
        self.members = list(members)

    def announce(self, paths: Iterable[Path]) -> None:
        """Print each member's file and held-out accuracy, and warn of one that knows little."""
        for path, member in zip(paths, self.members, strict=True):
            print(f"teacher: {path}", end="", flush=True)
            accuracy = member.val_accuracy()
            print(f", held-out accuracy {accuracy:.2f} %", flush=True)
            if accuracy < POOR:
                warn(
                    f"{path} is right about few images, so a student learns little from it: has it "
                    "the classes in another order, or images that are normalised otherwise?"
                )

    def __call__(self, batch: Batch) -> Tensor:
        return torch.stack([member(batch) for member in self.members]).mean(0)

    def prepare(self, index: Tensor, view: Tensor, stop: StopSignals) -> None:
        if not any(member.asked for member in self.members) and not sys.stderr.isatty():
            count = sum(len(member.unknown(index, view)) for member in self.members)
            if count:  # where no bar shows it
                count *= self.members[0].device.processes
                print(f"asking for about {count:,} answers of the teacher first", flush=True)
        for member in self.members:
            member.prepare(index, view, stop)

    def keep(self) -> None:
        for member in self.members:
            member.keep()
