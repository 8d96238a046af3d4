"""The machine and the switches of the process that the last bits of a result depend on."""

import os
import platform
import re
from pathlib import Path
from typing import Any

CPU_FLAGS = (
    "fma", "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8",
    "asimd", "asimddp", "bf16", "i8mm", "sve", "sve2",
)  # fmt: skip
"""Instructions that matrix kernels are chosen by, as `/proc/cpuinfo` spells them."""

VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS",
    "ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE",
    "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "PYTORCH_CUDA_ALLOC_CONF", "PYTHONHASHSEED",
)  # fmt: skip
"""Environment variables that change how many threads, which kernels or which device compute."""


def threads() -> dict[str, int]:
    """Threads of torch within and between operations, and the processors that this process may use."""
    import torch

    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "threads": torch.get_num_threads(),
        "threads_between": torch.get_num_interop_threads(),
        "processors": len(affinity(0)) if affinity else os.cpu_count() or 1,
    }


def kernels() -> dict[str, Any]:
    """Which libraries and instructions multiply matrices."""
    import torch

    return {
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cpu_flags": cpu_flags(),
        "blas": "mkl" if torch.backends.mkl.is_available() else _built_with("BLAS_INFO"),
        "onednn": torch.backends.mkldnn.is_available(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        "driver": _driver(),
        "capability": [
            ".".join(map(str, torch.cuda.get_device_capability(n))) for n in range(torch.cuda.device_count())
        ],
    }


def determinism() -> dict[str, Any]:
    """The switches that decide whether sums run in a fixed order and in full precision."""
    import torch

    return {
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "matmul_precision": torch.get_float32_matmul_precision(),
    }


def variables() -> dict[str, str]:
    """The environment variables that matter and are set."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def cpu_flags() -> list[str]:
    """Of the instructions that matter, those that the processor has; none where the system does not list them."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    has = set(line.group(1).split()) if line else set()
    return [flag for flag in CPU_FLAGS if flag in has]


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:(.*)$", info.read_text() if info.exists() else "", re.MULTILINE)
    return named.group(1).strip() if named else platform.processor()


def _built_with(key: str) -> str | None:
    import torch

    found = re.search(rf"{key}=([^,\s]+)", torch.__config__.show())
    return found.group(1) if found else None


def _driver() -> str | None:
    """The version of NVIDIA's kernel driver."""
    version = Path("/proc/driver/nvidia/version")
    found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", version.read_text() if version.exists() else "")
    return found.group(1) if found else None
