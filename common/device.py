"""Where a network is trained: the device, its precision, and the processes that share the work."""

import contextlib
import ctypes
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed
from tqdm import tqdm

from common.config import Config
from common.errors import UserError


@dataclass(frozen=True)
class Device:
    type: str  # cuda, mps or cpu
    name: str
    precision: str  # of convolutions and matrix products: float32 or bfloat16
    rank: int = 0  # which of the processes that torchrun started this is
    processes: int = 1
    note: str = ""  # why it is not the GPU

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.precision)

    @property
    def evaluation_batch(self) -> int:
        """Images a forward pass: on a CPU few enough for the activations to stay in its cache."""
        return 250 if self.type == "cpu" else 1000

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def facts(self) -> dict[str, Any]:
        return {
            "device": self.type,
            "device_name": self.name,
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "processes": self.processes,
        }


def choose_device(config: Config) -> Device:
    """The device and precision that `config` asks for. An explicit device never falls back.

    Under torchrun it joins the other processes, each with a GPU of its own if on CUDA.
    """
    kind = config.device
    note = ""
    if kind != "cpu":  # which works where a GPU fails when it is asked
        why_not = {"cuda": why_no_cuda(), "mps": why_no_mps(config), "cpu": None}
        if kind == "auto":
            kind = next(each for each, reason in why_not.items() if reason is None)
            note = why_not["cuda"] if kind == "cpu" else ""
        elif reason := why_not[kind]:
            raise UserError(f"no {kind} device", reason, "use --device cpu, or --device auto")
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not config.deterministic
    torch.set_float32_matmul_precision("high")
    rank, processes = _join(kind)
    if kind == "cuda":
        name = torch.cuda.get_device_name()
        fast_bfloat16 = torch.cuda.get_device_capability() >= (8, 0)
    elif kind == "cpu":
        # torch 2.11 cannot be asked; bfloat16 without hardware for it is slower than float32.
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        name = str(capabilities.get("cpu_name", "CPU"))
        fast_bfloat16 = any(capabilities.get(unit) for unit in ("avx512_bf16", "amx_bf16"))
        has_some = fast_bfloat16 or capabilities.get("bf16")  # of ARM: not measured
        if capabilities and not has_some:  # processors of one name differ in it
            name += ", no bf16"
    else:
        name, fast_bfloat16 = "Apple GPU", False
    automatic = "bfloat16" if fast_bfloat16 else "float32"
    precision = automatic if config.precision == "auto" else config.precision
    return Device(kind, name, precision, rank, processes, note)


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _join(kind: str) -> tuple[int, int]:
    """(rank, number of processes); under torchrun it sets up their group, once."""
    processes = _processes()
    if processes == 1:
        return 0, 1
    if kind == "cuda":
        if (own := int(os.environ["LOCAL_RANK"])) >= (count := torch.cuda.device_count()):
            raise UserError(
                "no GPU for each process",
                f"here are {count}",
                f"use --nproc-per-node {count}, or --device cpu",
            )
        torch.cuda.set_device(own)
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    if distributed.get_rank() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  the first process speaks for all
    return distributed.get_rank(), processes


@contextlib.contextmanager
def together(check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Where processes wait for each other: say so when another one is gone.

    check: raises if this one is to end as well; torchrun signals all, and others may be quicker.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        check()
        raise UserError(
            "another process of this run is gone",
            str(error).splitlines()[0],
            "see its own message, then start all of them again with --resume",
            exit_code=1,
        ) from error


def why_no_mps(config: Config) -> str | None:
    """Why this run cannot be on an Apple GPU, in words; None if it can."""
    if not torch.backends.mps.is_available():
        return "torch finds none"
    if config.deterministic:
        return "it does not pool deterministically"
    if _processes() > 1:
        return "processes cannot share it"
    return None


def why_no_cuda() -> str | None:
    """Why torch cannot compute on a GPU here, in words; None if it can."""
    built_for = torch.version.cuda
    if built_for is None:
        return "this torch is built without CUDA"
    with warnings.catch_warnings():  # torch's own, of an old driver: it is said below
        warnings.simplefilter("ignore")
        available = torch.cuda.is_available()
    if not available:
        driver = _driver_version()
        if driver is None:
            return "no NVIDIA driver in sight (in a container: docker run --gpus all)"
        if driver[0] < int(built_for.split(".")[0]):
            return (
                f"the driver supports CUDA {driver[0]}.{driver[1]}, this torch needs {built_for}: "
                "update the driver (580 or newer for CUDA 13) or pin an older torch"
            )
        return "the NVIDIA driver is there, but no GPU is (see nvidia-smi)"
    try:
        have = torch.cuda.get_device_capability()
    except Exception as error:  # in use by another alone, or broken; torch has several kinds
        return f"the GPU fails when it is asked: {str(error).splitlines()[0]}"
    built = [arch.removeprefix("sm_") for arch in torch.cuda.get_arch_list()]
    oldest = min((int(arch[:-1]), int(arch[-1])) for arch in built if arch.isdigit())
    if have < oldest:
        name = torch.cuda.get_device_name()
        return (
            f"{name} has compute capability {have[0]}.{have[1]}, this torch needs "
            f"{oldest[0]}.{oldest[1]}: pin an older torch"
        )
    return None


def _driver_version() -> tuple[int, int] | None:
    """The newest CUDA that the NVIDIA driver supports, (major, minor); None without a driver."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        version = ctypes.c_int()
        if library.cuDriverGetVersion(ctypes.byref(version)):
            return None
    except (OSError, AttributeError):
        return None
    return version.value // 1000, version.value % 1000 // 10


def progress(device: Device, name: str, total: int, unit: str) -> tqdm:
    """A bar on a terminal; of several processes the first one's."""
    return tqdm(
        total=total,
        desc=name,
        unit=unit,
        leave=False,
        disable=device.rank > 0 or not sys.stderr.isatty(),
        dynamic_ncols=True,
    )
