"""One policy for threads, precision and memory of numerical work."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import torch

__all__ = [
    "PRECISIONS",
    "available_memory",
    "compute_policy",
    "resolve_device",
    "resolve_precision",
]

PRECISIONS = ("auto", "bfloat16", "float32")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def _keep_freed_memory() -> None:
    """Ask glibc to reuse freed memory instead of returning it: page faults are expensive.

    The networks allocate and free arrays of about 10 MB many times a step; on virtual machines
    touching fresh pages was measured to cost more than the arithmetic. Other C libraries ignore
    the request.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**30)


def resolve_device(device: str | torch.device) -> torch.device:
    """The device of this process: ``"cuda"`` is the GPU that a launcher's LOCAL_RANK names, or 0.

    Raises
    ------
    ValueError
        If it is neither the CPU nor a CUDA device, or not there.

    Examples
    --------
    >>> resolve_device("cpu")
    device(type='cpu')
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is unknown; give 'cpu', 'cuda' or 'cuda:0'") from error
    if found.type == "cpu":
        return found
    if found.type != "cuda":
        raise ValueError(f"models are trained on 'cpu' or 'cuda', got device {device!r}")
    if not torch.cuda.is_available():
        raise ValueError(
            f"device {device!r} was asked for, but torch {torch.__version__} sees no GPU: install "
            "a CUDA build of torch and check nvidia-smi, or train on 'cpu'"
        )
    n = torch.cuda.device_count()
    index = int(os.environ.get("LOCAL_RANK", "0")) if found.index is None else found.index
    if index >= n:
        raise ValueError(
            f"GPU {index} was asked for, this machine has {n} (0 to {n - 1}); start no more "
            "processes than it has GPUs"
        )
    return torch.device("cuda", index)


def resolve_precision(precision: str, device: str | torch.device = "cpu") -> str:
    """``"auto"`` becomes bfloat16 on devices with instructions for it, float32 elsewhere.

    The choice depends on the machine alone, never on a timing, so that runs stay reproducible.
    Only matrix products and neighbour sums use bfloat16; the residual stream and the physical
    logits stay float32, log-softmax and sums float64.

    Raises
    ------
    ValueError
        If the name is unknown.

    Examples
    --------
    >>> resolve_precision("float32")
    'float32'
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
    if precision != "auto":
        return precision
    if torch.device(device).type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    fast = capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)
    return "bfloat16" if fast else "float32"


@contextlib.contextmanager
def compute_policy(
    threads: int | None = None, precision: str = "float32", device: str | torch.device = "cpu"
) -> Iterator[None]:
    """Run a block with ``threads`` torch threads (None: as they are) and a precision.

    The precision holds on the CPU and on ``device``. Freed memory is kept for reuse from then on.

    Raises
    ------
    ValueError
        If ``threads`` is less than 1 or the precision unknown.

    Examples
    --------
    >>> with compute_policy(threads=1):
    ...     torch.get_num_threads()
    1
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    _keep_freed_memory()
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    half = resolve_precision(precision, device) == "bfloat16"
    try:
        with contextlib.ExitStack() as stack:
            for kind in {"cpu", torch.device(device).type}:
                # no cache: it would keep the weights of the first training step for the whole block
                stack.enter_context(
                    torch.autocast(kind, torch.bfloat16, enabled=half, cache_enabled=False)
                )
            yield
    finally:
        torch.set_num_threads(before)


def available_memory(device: str | torch.device = "cpu") -> int | None:
    """Bytes that can still be allocated on a device; None where nobody tells.

    Of the host: what the machine says is available, or less where the limit of a control group
    (containers, queueing systems) is nearer.

    Examples
    --------
    >>> free = available_memory()
    >>> free is None or free > 0
    True
    """
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    known = [n for n in (_machine_memory(), _group_memory()) if n is not None]
    return min(known, default=None)


def _machine_memory(path: Path = Path("/proc/meminfo")) -> int | None:
    """What the kernel says is available; without a kernel that tells, all that is built in."""
    try:
        for line in path.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _group_memory(
    groups: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """What the control groups of this process leave, of both versions; None without a limit."""
    found = []
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, names, cache = mount, ("memory.max", "memory.current"), "inactive_file"
        elif "memory" in controllers.split(","):
            top, cache = mount / "memory", "total_inactive_file"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        folder = top / path.lstrip("/")
        for level in (folder, *folder.parents):
            if level != top and top not in level.parents:
                break
            with contextlib.suppress(OSError, ValueError, KeyError):  # "max", or not mounted
                limit, used = (int((level / name).read_text()) for name in names)
                stat = dict(row.split() for row in (level / "memory.stat").read_text().splitlines())
                found.append(max(limit - used + int(stat[cache]), 0))
    return min(found, default=None)
