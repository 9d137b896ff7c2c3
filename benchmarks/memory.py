"""What this process has taken of memory at the most (Linux)."""

import ctypes
from pathlib import Path


def start_peak() -> int:
    """Forget the peak so far; returns what is in memory now, in kB."""
    ctypes.CDLL(None).malloc_trim(0)  # or what was freed before would be used again, and not be counted
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """The most since `start_peak`, in kB."""
    return _status("VmHWM")


def _status(field: str) -> int:
    """A line of the kernel's account of this process, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
