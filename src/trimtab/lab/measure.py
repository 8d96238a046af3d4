"""What a process has used, and what it ran on."""

import platform
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trimtab.lab import machine
from trimtab.lab.origin import code

PACKAGES = ("trimtab", "torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "numpy")


def peak_memory() -> dict[str, int | None]:
    """The largest memory this process has held so far, in bytes: `rss` of the machine, `gpu` if one was used.

    Linux counts into `ru_maxrss` what the parent held when it forked; VmHWM starts anew with the program.
    """
    import torch

    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        rss = int(line.split()[1]) * 1024
    else:
        import resource

        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"rss": rss, "gpu": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None}


def seconds(call: Callable[[], Any]) -> float:
    """How long a call takes; a GPU is waited for before and after."""
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    began = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - began


def energy() -> float | None:
    """Joules that the processors (RAPL) and the GPUs (NVML) have counted so far; None where none can be read."""
    counters = sorted(Path("/sys/class/powercap").glob("intel-rapl:?/energy_uj"))
    try:
        joules = [int(counter.read_text()) / 1e6 for counter in counters]
    except OSError:  # readable by root only, on most machines
        joules = []
    return sum(joules + _gpu_joules()) or None


def _gpu_joules() -> list[float]:
    import torch

    if not torch.cuda.is_available():
        return []
    try:
        pynvml = import_module("pynvml")  # comes with NVIDIA's packages, where it does
        pynvml.nvmlInit()
        devices = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(torch.cuda.device_count())]
        return [pynvml.nvmlDeviceGetTotalEnergyConsumption(device) / 1e3 for device in devices]
    except Exception:  # no NVML, or a device that does not count: then energy is simply unknown
        return []


def environment() -> dict[str, Any]:
    """Code, versions, device and threads: what a result may depend on besides its settings."""
    import torch

    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": machine.processor(),
        "gpus": gpus,
        **machine.threads(),
        "packages": {package: _version(package) for package in PACKAGES},
        "kernels": machine.kernels(),
        "determinism": machine.determinism(),
        "variables": machine.variables(),
        "code": code(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
