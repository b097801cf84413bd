import ctypes
import os
import warnings

import pytest
import torch

from common import device
from common.device import choose_device, why_no_cuda
from common.errors import UserError
from conftest import quick_config


@pytest.fixture
def machine(monkeypatch):
    """Make torch see a GPU, a driver and a build of one's choice."""

    def pretend(built="13.2", driver=(13, 2), gpu=(9, 0), archs=("sm_75", "sm_90", "sm_100")):
        def is_available():
            if gpu is None:
                warnings.warn("of torch itself", stacklevel=1)  # as with an old driver
            return gpu is not None

        monkeypatch.setattr(torch.version, "cuda", built)
        monkeypatch.setattr(device, "_driver_version", lambda: driver)
        monkeypatch.setattr(torch.cuda, "is_available", is_available)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: gpu)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(archs))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A card")

    return pretend


def test_why_there_is_no_cuda_is_told_apart(machine):
    machine()
    assert why_no_cuda() is None
    machine(built=None)
    assert "built without CUDA" in why_no_cuda()
    machine(driver=None, gpu=None)
    assert "no NVIDIA driver" in why_no_cuda() and "--gpus all" in why_no_cuda()
    machine(driver=(12, 4), gpu=None)
    assert "supports CUDA 12.4, this torch needs 13.2" in why_no_cuda()
    machine(gpu=None)
    assert "no GPU is" in why_no_cuda()
    machine(gpu=(6, 1))
    assert "compute capability 6.1, this torch needs 7.5" in why_no_cuda()


def test_auto_falls_back_and_says_why_an_explicit_device_does_not(machine):
    machine(driver=None, gpu=None)
    found = choose_device(quick_config(device="auto"))
    assert found.type in ("cpu", "mps") and (found.type == "mps" or "driver" in found.note)
    assert choose_device(quick_config(device="cpu")).note == ""
    with pytest.raises(UserError, match="no cuda device; no NVIDIA driver"):
        choose_device(quick_config(device="cuda"))


@pytest.mark.parametrize("kind", [RuntimeError, torch.cuda.DeferredCudaCallError])
def test_a_gpu_that_fails_when_it_is_asked_leaves_the_cpu(machine, monkeypatch, kind):
    machine()
    why = "CUDA error: CUDA-capable device(s) is/are busy or unavailable"

    def fail():
        raise kind(f"{why}\nCUDA kernel errors might be reported later")

    monkeypatch.setattr(torch.cuda, "get_device_capability", fail)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    auto = choose_device(quick_config(device="auto"))
    assert auto.type == "cpu" and auto.note == f"the GPU fails when it is asked: {why}"
    with pytest.raises(UserError, match="no cuda device; the GPU fails when it is asked: CUDA err"):
        choose_device(quick_config(device="cuda"))
    monkeypatch.setattr(device, "why_no_cuda", fail)
    assert choose_device(quick_config(device="cpu")).type == "cpu"  # it is not asked


@pytest.mark.parametrize(
    ("gpu", "precision"), [((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), "float32")]
)
def test_auto_takes_the_gpu(machine, monkeypatch, gpu, precision):
    machine(gpu=gpu)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    found = choose_device(quick_config(device="auto", precision="auto"))
    assert (found.type, found.name, found.precision) == ("cuda", "A card", precision)
    assert found.note == ""


def test_an_apple_gpu_is_taken_for_what_it_can(machine, monkeypatch):
    machine(built=None)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda _: None)
    assert choose_device(quick_config(device="auto")).type == "mps"
    assert choose_device(quick_config(device="auto", deterministic=True)).type == "cpu"
    with pytest.raises(UserError, match="no mps device; it does not pool deterministically"):
        choose_device(quick_config(device="mps", deterministic=True))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="no mps device; processes cannot share it"):
        choose_device(quick_config(device="mps"))


def test_a_process_without_a_gpu_of_its_own_is_told(machine, monkeypatch):
    machine()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match="here are 1; use --nproc-per-node 1, or --device cpu"):
        choose_device(quick_config(device="cuda"))


@pytest.mark.parametrize(
    ("capabilities", "name", "precision"),
    [
        ({"cpu_name": "An ARM", "bf16": True}, "An ARM", "float32"),  # not measured
        ({"cpu_name": "A chip", "avx512_bf16": True}, "A chip", "bfloat16"),
        ({"cpu_name": "A chip", "avx512_bf16": False}, "A chip, no bf16", "float32"),
        (None, "CPU", "float32"),  # of an older torch, which cannot be asked: nothing is claimed
    ],
)
def test_a_processor_is_named_with_what_it_lacks(monkeypatch, capabilities, name, precision):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    if capabilities:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    found = choose_device(quick_config(device="cpu", precision="auto"))
    assert (found.name, found.precision) == (name, precision)


@pytest.mark.parametrize("deterministic", [False, True])
def test_deterministic_asks_torch_for_the_same_bits(monkeypatch, deterministic):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", deterministic)
    asked = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    flags = {"deterministic": True} if deterministic else {}
    choose_device(quick_config(**flags))
    assert asked == [True] * deterministic
    assert torch.backends.cudnn.benchmark is not deterministic
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if deterministic else None)


def test_the_driver_is_asked_for_its_version(monkeypatch):
    class Library:
        def __init__(self, name):
            pass

        def cuDriverGetVersion(self, pointer):  # noqa: N802
            pointer._obj.value = 12040
            return 0

    monkeypatch.setattr(ctypes, "CDLL", Library)
    assert device._driver_version() == (12, 4)

    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert device._driver_version() is None
