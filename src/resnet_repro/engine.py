"""How the arithmetic is done on this machine: device, mode, precision, threads, determinism."""

import contextlib
import ctypes
import functools
import logging
import os
import platform
from dataclasses import dataclass

import torch

from resnet_repro.errors import ParamsError
from resnet_repro.params import Engine


@dataclass(frozen=True)
class ResolvedEngine:
    """`params.Engine` with every `auto` decided. Another value in any field gives other bits."""

    device: str
    mode: str  # eager, compiled, graphed, graphed_eager
    precision: str  # fp32, bf16
    threads: int
    deterministic: bool

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def compiles(self) -> bool:
        return self.mode in ("compiled", "graphed")

    @property
    def graphs(self) -> bool:
        return self.mode in ("graphed", "graphed_eager")

    def __str__(self) -> str:
        determinism = "deterministic" if self.deterministic else "not deterministic"
        threads = f", {self.threads} threads" if self.device == "cpu" else ""
        where = f"{device_name(self.device)} ({self.device}{threads})"
        return f"{where}, {self.mode}, {self.precision}, {determinism}"


def resolve(params: Engine) -> ResolvedEngine:
    """Decide every `auto` by what this machine has.

    Raises:
        ParamsError: what was asked for is not here.
    """
    device = params.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise ParamsError("engine.device is cuda, and torch finds no CUDA device here: use auto or cpu")
    elif device == "mps" and not torch.backends.mps.is_available():
        raise ParamsError("engine.device is mps, and torch finds none here: use auto or cpu")

    mode: str = params.mode
    if mode == "graphed" and device != "cuda":
        raise ParamsError(f"engine.mode graphed is for CUDA devices, and the device is {device}: use auto")
    if mode == "auto":
        mode = {"cuda": "graphed", "cpu": "compiled"}.get(device, "eager")
    if mode in ("compiled", "graphed") and (problem := compile_problem(device)):
        if params.mode == "compiled":
            raise ParamsError(f"engine.mode is compiled, and here {problem}. {COMPILER_NEEDED}, or use auto")
        print(f"Training runs without compilation, which is slower: {problem}. {COMPILER_NEEDED}", flush=True)
        mode = {"graphed": "graphed_eager"}.get(mode, "eager")

    precision = params.precision
    if precision == "auto":
        precision = "bf16" if has_bf16(device) else "fp32"
    threads = params.threads or torch.get_num_threads()
    return ResolvedEngine(device, mode, precision, threads, params.deterministic)


COMPILER_NEEDED = (
    "torch.compile needs a C++ compiler and Python's headers (Debian: g++ and python3-dev); CXX, where it is set, is "
    "the name of that compiler and nothing else"
)


@functools.cache
def compile_problem(device: str) -> str:
    """Why torch.compile does not work on a device, in one line; empty where it does.

    Found out by compiling, loading and running something: names say little, as torch takes not every compiler, and
    needs Python's headers beside it.
    """
    # where a CUDA toolkit but no device is found, the compiler would warn about that on every start
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

    def add_one(tensor: torch.Tensor) -> torch.Tensor:
        return tensor + 1

    try:
        torch.compile(add_one)(torch.ones(8, device=device))
    except Exception as error:  # whatever torch, the compiler, the linker or the loader raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
        return next((line for line in lines if "error:" in line), lines[0])
    return ""


def has_bf16(device: str) -> bool:
    """Whether the hardware itself multiplies in bf16; emulation would be slower than fp32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, check, lambda: False)() for check in checks)
    return False


def configure(engine: ResolvedEngine) -> None:
    """Set torch's global switches. Call before any other work on the device."""
    if engine.device == "cpu":
        _keep_freed_memory()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(engine.threads)
    torch.use_deterministic_algorithms(engine.deterministic)
    # a safety net against bugs that costs time
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = engine.deterministic
    torch.backends.cudnn.benchmark = not engine.deterministic  # it picks kernels by timing them
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # fp32 means fp32


def _keep_freed_memory() -> None:
    """Tell glibc's malloc to keep what a step frees, for the next step.

    Otherwise it gives activations of some megabytes back to the system, which then zeroes every page of them
    anew: on 2 cores that took a quarter of ResNet-20's time. Other C libraries are left alone.
    """
    M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # noqa: N806 - malloc.h's names
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc accepts
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, 64 << 20)


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return name


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def peak_memory_bytes(device: str) -> int | None:
    """The most that was allocated on a CUDA device, or this process's peak resident memory."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource  # not on Windows
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
