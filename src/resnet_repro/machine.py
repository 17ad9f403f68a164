"""The machine as far as it decides the bits of a training, and what else one wants to know of it later."""

import os
import platform
import re
import time
from pathlib import Path

import torch

from resnet_repro.engine import ResolvedEngine, device_name
from resnet_repro.evidence import Processor, Session

CPUINFO, NVIDIA = Path("/proc/cpuinfo"), Path("/proc/driver/nvidia/version")
NAMES = {
    "vendor": ("vendor_id", "CPU implementer"),
    "family": ("cpu family", "CPU architecture"),
    "model": ("model", "CPU part"),
    "stepping": ("stepping", "CPU revision"),
    "name": ("model name",),
}
"""of the fields of `Processor` in /proc/cpuinfo, on x86 and on ARM"""
ARITHMETIC = ("amx", "asimd", "avx", "bf16", "f16c", "fma", "fp16", "i8mm", "neon", "sme", "sse", "sve")
"""how the flags begin by which oneDNN, which does not tell its choice, chooses its kernels"""


def processor() -> Processor:
    """This machine's; where there is no /proc/cpuinfo, its name only."""
    text = CPUINFO.read_text(encoding="utf-8") if CPUINFO.is_file() else ""
    first = dict(re.findall(r"^([^:\n]+?)[ \t]*: *(.*)$", text.partition("\n\n")[0], re.MULTILINE))
    found = {field: next((first[name] for name in names if name in first), "") for field, names in NAMES.items()}
    return Processor(**{**found, "name": found["name"] or platform.processor() or platform.machine()})


def make_session(engine: ResolvedEngine, git_commit: str | None) -> Session:
    """What trains from now on."""
    cuda = engine.device == "cuda"
    flags: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # not in every version
    return Session(
        started_at=time.time(),
        processor=processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        cpu_flags=" ".join(sorted(name for name, has in flags.items() if has is True and name.startswith(ARITHMETIC))),
        onednn_max_cpu_isa=os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA"),
        compiler_isa=_compiler_isa() if engine.compiles and engine.device == "cpu" else None,
        device=engine.device,
        device_name=device_name(engine.device),
        compute_capability="{}.{}".format(*torch.cuda.get_device_capability()) if cuda else None,
        driver=_driver() if cuda else None,
        mode=engine.mode,
        precision=engine.precision,
        threads=engine.threads,
        torch=torch.__version__,
        git_commit=git_commit,
    )


def _compiler_isa() -> str:
    """The vector instructions that torch.compile has C++ made for."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa  # takes a second

    return str(pick_vec_isa())


def _driver() -> str | None:
    text = NVIDIA.read_text(encoding="utf-8") if NVIDIA.is_file() else ""
    found = re.search(r"\s(\d{3,}\.[\d.]+)\s", text)
    return found[1] if found else None
