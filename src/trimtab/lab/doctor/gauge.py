"""Reads how much memory this process holds, and how much the machine has left for it."""

from abc import ABC, abstractmethod
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
LIMITS = (  # of a container, in both versions of Linux' control groups
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


class Gauge(ABC):
    """Where a model's tensors lie; all sizes are in bytes."""

    name: str

    @abstractmethod
    def now(self) -> int:
        """What this process holds there."""

    @abstractmethod
    def restart(self) -> None:
        """Let `peak` begin anew."""

    @abstractmethod
    def peak(self) -> int:
        """The largest size since `restart`."""

    @abstractmethod
    def room(self) -> int:
        """How much this process could hold at most, what others hold left out."""


class Machine(Gauge):
    """The machine's memory; `restart` needs Linux, elsewhere the peak is that of the process's life."""

    name = "RAM"

    def now(self) -> int:
        import psutil

        return int(psutil.Process().memory_info().rss)

    def restart(self) -> None:
        if CLEAR.exists():
            CLEAR.write_text("5")

    def peak(self) -> int:
        from trimtab.lab.measure import peak_memory

        return peak_memory()["rss"] or 0

    def room(self) -> int:
        import psutil

        free = [int(psutil.virtual_memory().available)]
        for most, used in LIMITS:
            if most.exists() and (limit := most.read_text().strip()).isdecimal():
                free.append(int(limit) - int(used.read_text()))
        return self.now() + min(free)


class Graphics(Gauge):
    """The memory of the GPU, as torch's allocator hands it out."""

    name = "GPU memory"

    def now(self) -> int:
        import torch

        return int(torch.cuda.memory_allocated())

    def restart(self) -> None:
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        import torch

        return int(torch.cuda.max_memory_allocated())

    def room(self) -> int:
        import torch

        return int(torch.cuda.mem_get_info()[0]) + int(torch.cuda.memory_reserved())


def gauge() -> Gauge:
    """The gauge of the device that is trained on."""
    import torch

    return Graphics() if torch.cuda.is_available() else Machine()
