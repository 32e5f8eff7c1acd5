"""What every benchmark shares: where it ran and how figures are written."""

from __future__ import annotations

import json
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def one_thread() -> None:
    """Keep torch and numba on one thread (OMP_NUM_THREADS=1 in the shell does it for BLAS)."""
    import numba
    import torch

    torch.set_num_threads(1)
    numba.set_num_threads(1)


def machine() -> dict:
    """CPU model, AMX, threads and versions: what a figure depends on."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    models = [line.split(":", 1)[1].strip() for line in text.splitlines() if "model name" in line]
    versions = {"python": platform.python_version()}
    for name in ("clease_nn", "clease", "ase", "numpy", "numba", "torch"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "machine": platform.machine(),
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "amx": "amx_tile" in text,
        "avx512": "avx512f" in text,
        "threads": 1,
        "versions": versions,
    }


def write_json(path: str | Path | None, name: str, figures: dict) -> None:
    """Write figures with the machine they were measured on; nothing if ``path`` is None."""
    if path is None:
        return
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    record = {"benchmark": name, "date": stamp, "machine": machine(), "figures": figures}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")


def best_seconds(function, repeats: int) -> float:
    """Shortest of several timings: the one least disturbed by other processes."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best
