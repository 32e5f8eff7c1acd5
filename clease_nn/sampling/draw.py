"""Independent draws with exact importance weights."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from clease_nn.compute import compute_policy
from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.models import AbstractOccupationModel

__all__ = ["complete", "sample"]


def sample(
    model: AbstractOccupationModel,
    ensemble: SemiGrandCanonical,
    lattice: Lattice,
    conditions: Conditions,
    rng: torch.Generator,
    *,
    batch_size: int = 256,
    threads: int = 1,
    precision: str = "float32",
) -> Configurations:
    """Independent draws, one for every row of ``conditions``, with exact importance weights.

    Parameters
    ----------
    conditions : Conditions
        (batch,) conditions; ``conditions.repeat(n)`` draws ``n`` samples at each.
    rng : torch.Generator
        On the CPU; its state fixes the result.
    batch_size : int
        Rows drawn together.
    threads : int
        Torch threads; the arrays are too small to gain from more than a few.
    precision : str
        ``"float32"``, ``"bfloat16"`` or ``"auto"`` (:func:`clease_nn.compute.resolve_precision`).
        Weights use the likelihood as drawn and are exact in either.

    Returns
    -------
    Configurations
        With ``log_prob`` (ln q as drawn), ``energy`` (eV per supercell) and ``log_target``, and
        the cost in ``provenance``; that of training is known to
        :attr:`clease_nn.io.TrainedModel.cost`.

    Raises
    ------
    ValueError
        If an energy is not finite, or ``batch_size`` < 1.

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
    )


def complete(
    model: AbstractOccupationModel,
    ensemble: SemiGrandCanonical,
    partial: Configurations,
    rng: torch.Generator,
    *,
    batch_size: int = 256,
    threads: int = 1,
    precision: str = "float32",
) -> Configurations:
    """Draw the unknown sites of ``partial`` and score the result; arguments as :func:`sample`.

    ``log_prob`` is ln q of the drawn sites given the known ones, ``log_target`` that of the whole
    configuration.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    started = time.perf_counter()
    fields = ensemble.fields if model.needs_fields else None
    parts = []
    was_training = model.training
    model.eval()
    try:
        with compute_policy(threads, precision):
            for k in range(0, len(partial), batch_size):
                c = model.complete(partial[k : k + batch_size], rng, fields)
                parts.append(ensemble.score(c))
    finally:
        model.train(was_training)
    out = Configurations.cat(parts)
    passes = sum(int(p.step.max()) + 1 for p in parts)
    provenance = {
        "energy_evaluations": len(out),
        "network_passes": passes,
        "attempts_per_site": int((~partial.known).sum()) / partial.lattice.n_sites,
        "seconds": time.perf_counter() - started,
    }
    return replace(out, provenance=provenance)
