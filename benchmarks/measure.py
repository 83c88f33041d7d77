"""What both sides of a benchmark need: resident memory, timing, the hardware, a plain table.

Standard library only, because the worker processes of peer libraries import it inside environments of
their own.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

MEMORY_DEFINITION = (
    "peak resident memory of a fresh process during two calls (the first compiles, its result is dropped "
    "before the second), minus the resident memory just before them, when the libraries are imported, the "
    "device is started and the input is on it; compilation, temporaries and the returned arrays are all "
    "counted"
)


def resident_bytes() -> int:
    """Resident memory of this process now."""
    return _status_bytes("VmRSS")


def peak_resident_bytes() -> int:
    """Largest resident memory since the process began or since `reset_peak`.

    Read from /proc rather than from getrusage: a child's `ru_maxrss` starts at the size of the process that
    started it, so a small computation started by a big benchmark would look as large as the benchmark.
    """
    return _status_bytes("VmHWM")


def reset_peak() -> None:
    """Forget the peak so far (libraries can need more memory to import than they hold afterwards)."""
    Path("/proc/self/clear_refs").write_text("5")


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no field {field}: memory is measured on Linux only.")


def extra_peak_bytes(call: Callable[[], object]) -> int:
    """Memory that `call` needs beyond what is resident now: see `MEMORY_DEFINITION`."""
    reset_peak()
    before = resident_bytes()
    for _ in range(2):
        call()  # the result is released at once: nothing keeps a reference to it
    return peak_resident_bytes() - before


def seconds(call: Callable[[], object]) -> float:
    """Wall-clock time of one call (which must itself wait for its results)."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def summary(times: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and the raw values of a list of times, ready for JSON."""
    return {
        "median": statistics.median(times),
        "min": min(times),
        "max": max(times),
        "all": [round(t, 6) for t in times],
    }


def hardware() -> dict[str, Any]:
    """Processor, usable cores and memory: what a reader needs to judge absolute times."""
    model = platform.processor() or "unknown"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": model, "cores": cores, "memory_gib": round(memory / 2**30, 1), "system": platform.system()}


def versions() -> dict[str, str]:
    """Of Python, of gpntk, and of what it computes with that is installed in this environment."""
    found = {"python": platform.python_version()}
    for name in ("gpntk", "jax", "jaxlib", "numpy", "gpjax", "numpyro", "s2fft", "scikit-learn", "scipy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a source tree on the path, or a library that the benchmark does not need
            continue
    return found


def context() -> dict[str, Any]:
    """When, on what and with what a benchmark ran: the head of its results."""
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    return {"date": date, "hardware": hardware(), "versions": versions()}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` atomically, so that an interrupted run never leaves half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
        json.dump(content, file, indent=2)
        file.write("\n")
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A plain text table: the first column to the left, the others to the right."""
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def render(line: Sequence[str]) -> str:
        cells = [line[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * w for w in widths)
    return "\n".join([render(lines[0]), rule, *map(render, lines[1:])])
