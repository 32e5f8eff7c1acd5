"""Independent draws with exact importance weights."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace

import torch
from tqdm.auto import tqdm

from clease_nn.compute import compute_policy
from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.models import AbstractOccupationModel
from clease_nn.sampling.memory import rows_at_once
from clease_nn.sampling.workers import ChunkedDraw
from clease_nn.warnings import InterruptedWarning

__all__ = ["DrawError", "complete", "sample"]


class DrawError(RuntimeError):
    """Some rows could not be drawn by the workers of an executor; the message names them.

    Attributes
    ----------
    finished : Configurations or None
        The rows that were drawn, scored, in their order.
    """

    def __init__(self, message: str, finished: Configurations | None):
        super().__init__(message)
        self.finished = finished


def sample(
    model: AbstractOccupationModel,
    ensemble: SemiGrandCanonical,
    lattice: Lattice,
    conditions: Conditions,
    rng: torch.Generator,
    *,
    batch_size: int | None = None,
    threads: int = 1,
    precision: str = "float32",
    executor=None,
    progress: bool = False,
) -> Configurations:
    """Independent draws, one for every row of ``conditions``, with exact importance weights.

    Parameters
    ----------
    conditions : Conditions
        (batch,) conditions; ``conditions.repeat(n)`` draws ``n`` samples at each.
    rng : torch.Generator
        On the CPU; its state fixes the result.
    batch_size : int, optional
        Rows drawn together. Default: 256, or as many as fit into half of the free memory. Another
        size takes the random numbers in another order; the distribution of a row is the same.
    threads : int
        Torch threads; the arrays are too small to gain from more than a few.
    precision : str
        ``"float32"``, ``"bfloat16"`` or ``"auto"`` (:func:`clease_nn.compute.resolve_precision`).
        Weights use the likelihood as drawn and are exact in either.
    executor : object, optional
        With ``submit`` or ``map``, as those of ``concurrent.futures`` (processes by ``spawn``: a
        fork after threads have started may hang) or a dask client. ``batch_size`` rows at a time
        are drawn by its workers, ``threads`` threads each. Every such chunk has random numbers of
        its own: the result depends on ``rng`` and ``batch_size``, not on the number of workers.
        Energies are computed here, unless the model needs the fields of the energy.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Configurations
        With ``log_prob`` (ln q as drawn), ``energy`` (eV per supercell) and ``log_target``, and
        the cost in ``provenance``; that of training is known to
        :attr:`clease_nn.io.TrainedModel.cost`. After Ctrl-C with an executor or a progress bar:
        the rows of the chunks that were finished, with an ``InterruptedWarning``.

    Raises
    ------
    ValueError
        If an energy is not finite, or ``batch_size`` < 1.
    MemoryError
        If the free memory has no room for ``batch_size`` rows; the message says what fits.
    DrawError
        If a worker fails; the message names the rows, and what was drawn is kept in it.
    TypeError
        If the executor cannot work.

    Examples
    --------
    >>> from clease_nn.conditions import ConditionRange
    >>> from clease_nn.models import AnyOrderARM
    >>> from clease_nn.networks import LatticeConvolution
    >>> lattice = Lattice.square(2)
    >>> box = ConditionRange((300, 900), [-0.1], [0.1], [[-1.0, 1.0]])
    >>> model = AnyOrderARM(LatticeConvolution(lattice, box, needs_fields=False))
    >>> flat = SemiGrandCanonical(lambda lattice, occupations: torch.zeros(len(occupations)))
    >>> c = sample(model, flat, lattice, box.grid(1, 1).repeat(4), torch.Generator())
    >>> c.log_weight.exp().round()  # every weight is Z: 2^4 states
    tensor([16., 16., 16., 16.], dtype=torch.float64)
    """
    return complete(
        model,
        ensemble,
        Configurations.unknown(lattice, conditions),
        rng,
        batch_size=batch_size,
        threads=threads,
        precision=precision,
        executor=executor,
        progress=progress,
    )


def complete(
    model: AbstractOccupationModel,
    ensemble: SemiGrandCanonical,
    partial: Configurations,
    rng: torch.Generator,
    *,
    batch_size: int | None = None,
    threads: int = 1,
    precision: str = "float32",
    executor=None,
    progress: bool = False,
) -> Configurations:
    """Draw the unknown sites of ``partial`` and score the result; arguments as :func:`sample`.

    ``log_prob`` is ln q of the drawn sites given the known ones, ``log_target`` that of the whole
    configuration.
    """
    started = time.perf_counter()
    size = rows_at_once(model, partial.lattice, batch_size, partial.occupations.device)
    chunks = [partial[k : k + size] for k in range(0, len(partial), size)]
    if not chunks:
        return _nothing(partial)
    parts: dict[int, Configurations] = {}
    interrupted = False
    bar = tqdm(total=len(partial), disable=not progress, desc="drawing", unit="row")
    try:
        if executor is None:
            drawn = _serial(model, ensemble, chunks, rng, threads, precision)
        else:
            seed = int(torch.randint(2**62, (), generator=rng))
            drawn = ChunkedDraw(executor, model, ensemble, chunks, seed, threads, precision)
        try:
            for k, c in drawn:
                parts[k] = ensemble.score(c)
                bar.update(len(c))
        except KeyboardInterrupt:
            if executor is not None:
                parts |= {k: ensemble.score(c) for k, c in drawn.finished() if k not in parts}
            if not parts or not (progress or executor is not None):
                raise
            interrupted = True
        finally:
            if executor is None:
                drawn.close()  # the model is as it was before
    finally:
        bar.close()
    out = _joined(partial, [parts[k] for k in sorted(parts)], time.perf_counter() - started)
    if interrupted:
        warnings.warn(
            f"drawing was interrupted: {len(out)} of {len(partial)} rows are returned",
            InterruptedWarning,
            stacklevel=3,
        )
    elif len(parts) < len(chunks):
        raise DrawError(_complaint(chunks, parts, drawn.errors), out)
    return out


def _serial(model, ensemble, chunks, rng, threads, precision):
    """Chunks one after another, from one stream of random numbers."""
    fields = ensemble.fields if model.needs_fields else None
    was_training = model.training
    model.eval()
    try:
        for k, chunk in enumerate(chunks):
            with compute_policy(threads, precision):
                c = model.complete(chunk, rng, fields)
            yield k, c
    finally:
        model.train(was_training)


def _joined(partial, parts: list[Configurations], seconds: float) -> Configurations | None:
    """Scored parts as one batch that knows its cost."""
    if not parts:
        return None
    out = Configurations.cat(parts)
    provenance = {
        "energy_evaluations": len(out),
        "network_passes": sum(int(p.step.max()) + 1 for p in parts),
        "attempts_per_site": int((out.step >= 0).sum()) / partial.lattice.n_sites,
        "seconds": seconds,
    }
    return replace(out, provenance=provenance)


def _nothing(partial: Configurations) -> Configurations:
    """A batch without rows, scored."""
    empty = torch.zeros(0, dtype=torch.float64, device=partial.occupations.device)
    columns = dict.fromkeys(("log_prob", "energy", "log_target"), empty)
    steps = torch.zeros_like(partial.occupations, dtype=torch.int16)
    return replace(partial, step=steps, provenance={}, **columns)


def _complaint(chunks, parts, errors: dict[int, str]) -> str:
    """Which rows are missing, and why."""
    first = [0]
    for chunk in chunks:
        first.append(first[-1] + len(chunk))
    failed = sorted(k for k in errors if k >= 0)
    what = [
        f"rows {first[k]} to {first[k + 1] - 1} could not be drawn ({errors[k]})" for k in failed
    ]
    if -1 in errors:
        missing = [k for k in range(len(chunks)) if k not in parts and k not in errors]
        rows = ", ".join(f"{first[k]} to {first[k + 1] - 1}" for k in missing[:3])
        more = f" and {len(missing) - 3} more chunks" if len(missing) > 3 else ""
        what.append(f"rows {rows}{more} are missing ({errors[-1]})")
    done = sum(len(p) for p in parts.values())
    return (
        f"{'; '.join(what)}; {done} of {first[-1]} rows are finished and kept in .finished of "
        "this error"
    )
