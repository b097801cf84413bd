"""Fashion-MNIST: find it, verify it, split it.

`python -m common.data` fetches the data set if need be and says what it found where.
"""

import gzip
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.config import ROOT, Parser
from common.errors import UserError, script

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

DATA_DIR = ROOT / "data"
SYSTEM_DIR = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
PACKAGE = "dataset-fashion-mnist"

# SHA-256 of the uncompressed IDX files: compressed copies differ between mirrors, these do not.
DIGESTS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
HELD_OUT_SHARE = 12  # one training image in twelve is held out: 5,000 of 60,000


@dataclass(frozen=True)
class Arrays:
    """The whole data set as it is on disk."""

    train_images: np.ndarray  # (60000, 28, 28) uint8
    train_labels: np.ndarray  # (60000,) uint8
    test_images: np.ndarray  # (10000, 28, 28) uint8
    test_labels: np.ndarray  # (10000,) uint8
    source: Path
    digest: str  # SHA-256 over the four digests: names the data in config.json


def load(data_dir: str | Path | None = None, fetch: bool = True) -> Arrays:
    """Find Fashion-MNIST, check every file against its digest, and return its arrays.

    Searched in order: `data_dir` if given (and then nothing else), `data/`, the system's copy;
    then fetched into `data/` unless `fetch` is False. Raises UserError if it is nowhere to be
    had, or if a file is damaged: a damaged file is never skipped in silence.
    """
    roots = [DATA_DIR, SYSTEM_DIR] if data_dir is None else [Path(data_dir)]
    folder = _first_with_files(roots)
    if folder is None and data_dir is None and fetch:
        folder = _fetch()
    if folder is None:
        raise UserError(
            f"no Fashion-MNIST in {' or '.join(map(str, roots))}",
            f"that has to hold {', '.join(DIGESTS)}, plain or as .gz",
            "correct --data-dir, or leave it out and run `python -m common.data` to fetch them",
        )
    digest = hashlib.sha256("".join(DIGESTS.values()).encode()).hexdigest()
    return Arrays(*(_parse_idx(read_file(folder, name)) for name in DIGESTS), folder, digest)


def _file(folder: Path, name: str) -> Path | None:
    candidates = (folder / name, folder / f"{name}.gz")
    return next((path for path in candidates if os.path.isfile(path)), None)


def _first_with_files(roots: list[Path]) -> Path | None:
    """The first folder, torchvision's layout included, that holds all four files."""
    folders = [
        folder
        for root in roots
        for folder in (root, root / "fashion-mnist", root / "FashionMNIST" / "raw")
    ]
    return next((f for f in folders if all(_file(f, name) for name in DIGESTS)), None)


def read_file(folder: Path, name: str) -> bytes:
    """Contents of one IDX file, uncompressed, of the right digest."""
    path = _file(folder, name)
    assert path is not None
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}", str(error), "correct its permissions") from error
    try:
        content = gzip.decompress(raw) if path.suffix == ".gz" else raw
        found = hashlib.sha256(content).hexdigest()
        other = next((other for other, digest in DIGESTS.items() if digest == found), None)
        if found == DIGESTS[name]:
            return content
        why = f"its content is that of {other}" if other else f"its SHA-256 is {found}"
    except (OSError, EOFError, zlib.error) as error:
        why = f"it cannot be uncompressed ({error})"
    raise UserError(
        f"{path} is damaged, or of another data set",
        f"{why}, Fashion-MNIST's is {DIGESTS[name]} (uncompressed)",
        "replace the file, or move it away and run `python -m common.data`",
    )


def _parse_idx(content: bytes) -> np.ndarray:
    """The array in an IDX file: two zero bytes, type 8 (uint8), rank, sizes, then the values."""
    rank = content[3]
    shape = np.frombuffer(content, ">u4", rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _fetch() -> Path:
    """Fetch the four files into `data/fashion-mnist`; return that folder.

    One process at a time fetches, into a temporary folder whose files are renamed into place only
    when every digest is right; what else is in their place stays.
    """
    from filelock import FileLock

    target = DATA_DIR / "fashion-mnist"
    try:
        DATA_DIR.mkdir(parents=True, exist_ok=True)
        with FileLock(DATA_DIR / ".lock"):
            if found := _first_with_files([DATA_DIR]):  # another process was faster
                return found
            for leftover in DATA_DIR.glob(".fetch-*"):  # of a process that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            print(f"fetching Fashion-MNIST (30 MB) into {target}", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(prefix=".fetch-", dir=DATA_DIR) as scratch:
                raw = _download(Path(scratch))
                target.mkdir(exist_ok=True)
                for name in DIGESTS:
                    path = _file(raw, name)
                    os.replace(path, target / path.name)
    except OSError as error:
        raise UserError(
            f"cannot write {DATA_DIR}",
            str(error),
            "make it writable, or name a folder that holds the data set with --data-dir",
        ) from error
    return target


def _download(scratch: Path) -> Path:
    """The folder below `scratch` with the files, from the first source that has them."""
    failures = []
    for source in (_from_torchvision, _from_debian):
        try:
            raw = source(scratch)
            if missing := [name for name in DIGESTS if not _file(raw, name)]:
                raise RuntimeError(f"it lacks {', '.join(missing)}")
            for name in DIGESTS:
                read_file(raw, name)
            return raw
        except Exception as error:  # whatever a source fails with, the next one is tried
            failures.append(f"{source.__name__.removeprefix('_from_')}: {str(error).strip()}")
    raise UserError(
        "Fashion-MNIST could not be fetched",
        ", ".join(failures).replace(";", ","),
        f"put {', '.join(DIGESTS)} (SHA-256 of the first, uncompressed: "
        f"{next(iter(DIGESTS.values()))}) into {DATA_DIR}, or name their folder with --data-dir",
    )


def _from_torchvision(scratch: Path) -> Path:
    from torchvision.datasets import FashionMNIST

    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # a host that never answers must not hang the first start
    try:
        FashionMNIST(scratch, download=True)
    except RuntimeError as error:
        raise RuntimeError(str(error).splitlines()[0]) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return scratch / "FashionMNIST" / "raw"


def _from_debian(scratch: Path) -> Path:
    """Debian's package, unpacked without installing it; needs apt, but no root."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise RuntimeError("no apt-get here")
    lists = scratch / "apt"
    (lists / "partial").mkdir(parents=True)

    def run(*command: str) -> None:
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or [command[0]])[-1])

    apt = ("apt-get", "-o", "APT::Sandbox::User=")
    try:
        run(*apt, "download", PACKAGE)
    except RuntimeError:  # no package lists on this machine: make private ones
        private = ("-o", f"Dir::State::Lists={lists}")
        run(*apt, *private, "-o", f"Dir::Cache={lists}", "-o", "Debug::NoLocking=1", "update")
        run(*apt, *private, "-o", f"Dir::Cache={lists}", "download", PACKAGE)
    package = next(scratch.glob(f"{PACKAGE}_*.deb"))
    run("dpkg-deb", "-x", str(package), str(scratch / "package"))
    return scratch / "package" / SYSTEM_DIR.relative_to("/")


def split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices (train, held_out): of each class the last twelfth, in file order, is held out.

    Fixed: it depends on no seed and no library's generator. 55,000 and 5,000 of 60,000.
    """
    is_held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        is_held_out[members[len(members) - len(members) // HELD_OUT_SHARE :]] = True
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def main(argv: Sequence[str] | None = None) -> None:
    Parser(__doc__, prog="python -m common.data").parse_args(argv)
    arrays = load()
    train, held_out = split(arrays.train_labels)
    print(
        f"Fashion-MNIST in {arrays.source}\n{len(train):,} training, {len(held_out):,} held-out, "
        f"{len(arrays.test_labels):,} test images, digests right"
    )


if __name__ == "__main__":
    script(main)
