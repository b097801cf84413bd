"""What the tests share: a tiny data set in the real one's format, and quick configurations."""

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

import common.data
from common.batches import Dataset, Views
from common.config import BaselineConfig
from common.device import choose_device

# Networks as small as these gain nothing from a second thread, and on a busy machine two threads
# wait for each other a hundred times as long as they compute.
torch.set_num_threads(1)
# A shell that starts pytest in the background has it and its children ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The project's folder may be read-only: nothing is kept from one run of the tests to the next. No
# deadline: a busy machine is slow at times.
settings.register_profile("ours", database=None, deadline=None)
settings.load_profile("ours")
ROOT = Path(__file__).resolve().parent.parent
CHILD = ROOT / "tests" / "child.py"
# README.md and what it leads to.
PAGES = tuple(ROOT / name for name in ("README.md", "EXTENDING.md", "results/README.md"))


def pages() -> str:
    return "\n".join(page.read_text() for page in PAGES)


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    content = header + array.tobytes()
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)


def make_tiny(folder: Path, training: int = 260, test: int = 60) -> dict[str, str]:
    """Ten classes of bright bars in noise; returns digests, and leaves them in digests.json."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    digests = {}
    for part, size in (("train", training), ("t10k", test)):
        labels = (np.arange(size) % 10).astype(np.uint8)
        images = generator.integers(0, 120, (size, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label + 4 : 2 * label + 7] = 255
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            name = f"{part}-{kind}-ubyte"
            write_idx(folder / f"{name}.gz", array)
            content = gzip.decompress((folder / f"{name}.gz").read_bytes())
            digests[name] = hashlib.sha256(content).hexdigest()
    (folder / "digests.json").write_text(json.dumps(digests))
    return digests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits longest goes first, so that `pytest -n auto` has the rest to run beside it."""
    items.sort(key=lambda item: item.path.name != "test_published.py")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A folder with the tiny data set; its digests lie in it for `child.py`."""
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny(folder)
    return folder


@pytest.fixture
def tiny_data(tiny, monkeypatch) -> Path:
    """The tiny data set, its digests pinned in this process."""
    monkeypatch.setattr(common.data, "DIGESTS", json.loads((tiny / "digests.json").read_text()))
    return tiny


@pytest.fixture
def dataset(tiny_data) -> Dataset:
    return Dataset(common.data.load(tiny_data), Views(1, True), "cpu")


def quick_config(kind=BaselineConfig, **changes):
    """A configuration for the tiny data set, in float32."""
    arguments = {"epochs": 2, "batch_size": 32, "device": "cpu", "precision": "float32", **changes}
    words = []
    for key, value in arguments.items():
        flag = "--" + key.replace("_", "-")
        words += [flag] if value is True else [flag, str(value)]
    return kind.parse("", words)


@pytest.fixture
def device():
    return choose_device(quick_config())


class Child:
    """A script running in a process of its own, forked by a server of faults.py."""

    def __init__(self, server: "Server", pid: int, output: str):
        self.server, self.pid, self.output = server, pid, output

    def wait(self) -> "Child":
        self.code = self.server.ask({"wait": self.pid})
        self.out, self.err = (Path(self.output + end).read_text() for end in (".out", ".err"))
        self.stderr = self.err  # as subprocess has it
        return self

    def wait_for(self, text: str) -> None:
        """Wait until `text` stands in its output."""
        deadline, out = time.monotonic() + 60, Path(self.output + ".out")
        while not out.exists() or text not in out.read_text():
            assert time.monotonic() < deadline, Path(self.output + ".err").read_text()
            time.sleep(0.02)


class Server:
    """Of faults.py: runs scripts on the data set `data`; their output goes to files."""

    def __init__(self, data: Path, outputs: Path):
        self.data, self.outputs, self.count = data, outputs, 0
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "faults.py"), str(data)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},  # CUDA cannot be forked
        )

    @classmethod
    def serving(cls, data: Path, outputs: Path) -> Iterator["Server"]:
        server = cls(data, outputs)
        yield server
        with server.process as process:
            process.stdin.close()

    def ask(self, request: dict) -> int:
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def start(self, script: str, *words: object, faults: tuple = (), data: bool = True) -> Child:
        self.count += 1
        output = str(self.outputs / str(self.count))
        words = (ROOT / script, *words, *(("--data-dir", self.data) if data else ()))
        request = {"arguments": [str(word) for word in words], "faults": faults, "output": output}
        return Child(self, self.ask(request), output)

    def run(self, script: str, *words: object, faults: tuple = (), data: bool = True) -> Child:
        return self.start(script, *words, faults=faults, data=data).wait()


@pytest.fixture(scope="module")
def server(tiny, tmp_path_factory) -> Iterator[Server]:
    """Runs scripts on the tiny data set."""
    yield from Server.serving(tiny, tmp_path_factory.mktemp("outputs"))


def run_script(
    script: str, *arguments: object, check: int = 0, timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess:
    """Run a script as a user would; assert its exit code."""
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    assert done.returncode == check, done.stdout + done.stderr
    return done


def only_line(done: subprocess.CompletedProcess) -> str:
    """The one line that a failed script may leave on stderr."""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


def equal(a: object, b: object) -> bool:
    """Deep equality, bit for bit in tensors and arrays."""
    if isinstance(a, torch.Tensor | np.ndarray):
        return (
            type(a) is type(b)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and bool((a == b).all())
        )
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b
