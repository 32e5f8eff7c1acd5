"""Does an energy model keep its contract? Run this on your own before trusting a result."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from clease_nn.energies.protocol import EnergyModel
from clease_nn.lattice import UNKNOWN, Lattice

__all__ = ["EnergyModelError", "check_energy_model"]


class EnergyModelError(ValueError):
    """An energy model breaks its contract; the message says which law, where and by how much."""


def check_energy_model(
    energy: EnergyModel, lattice: Lattice, n: int = 16, seed: int = 0, tolerance: float = 1e-8
) -> dict[str, float]:
    """Test an energy model on random configurations of a lattice.

    Laws: one finite energy a configuration; the input is not changed; a configuration has the
    same energy alone, in a batch and in another order. Where the model has ``flip_energies``:
    they are the differences of energies, 0 for the present species, +inf for species not
    allowed. Where it has ``partial_fields``: finite for partial configurations, 0 for species
    not allowed, and with all sites known, or with means of unknown sites that are certain, their
    differences are those of the energy.

    Parameters
    ----------
    energy : EnergyModel
    lattice : Lattice
    n : int
        Number of random configurations, at least 2.
    seed : int
        Seed of the random configurations.
    tolerance : float
        Largest deviation allowed, relative to 1 eV or the largest energy if that is larger.

    Returns
    -------
    dict of str to float
        Largest deviation of every law that was tested, in eV.

    Raises
    ------
    EnergyModelError
        Naming the law that fails, the configuration and the numbers.
    ValueError
        If ``n`` is below 2.

    Examples
    --------
    >>> lattice = Lattice.square(3)
    >>> check_energy_model(lambda lattice, x: x.double().sum(1), lattice)
    {'batch': 0.0}
    """
    if n < 2:
        raise ValueError(f"n must be at least 2 configurations, got {n}")
    rng = np.random.default_rng(seed)
    choices = [np.flatnonzero(row) for row in lattice.allowed]
    columns = [rng.choice(c, size=n) for c in choices]
    x = torch.as_tensor(np.stack(columns, 1).astype(np.int8))
    e = _call(energy, "energies", lattice, x).double()
    if e.shape != (n,):
        raise EnergyModelError(
            f"energies of {n} configurations must have shape ({n},), got {tuple(e.shape)}"
        )
    _require_finite("the energy", e)
    limit = tolerance * max(1.0, float(e.abs().max()))

    order = torch.as_tensor(rng.permutation(n))
    shuffled = _call(energy, "energies", lattice, x[order]).double()
    alone = torch.cat([_call(energy, "energies", lattice, row[None]).double() for row in x])
    report = {
        "batch": max(
            _compare("the energy depends on the order of the batch", shuffled, e[order], limit),
            _compare("the energy alone differs from the energy in a batch", alone, e, limit),
        )
    }
    changes = _changes(energy, lattice, x, e)
    if hasattr(energy, "flip_energies"):
        flips = _call(energy.flip_energies, "flip energies", lattice, x).double()
        report["flips"] = _compare(
            "flip_energies differ from differences of energies", flips, changes, limit
        )
    if hasattr(energy, "partial_fields"):
        report["fields"] = _check_fields(energy, lattice, x, changes, limit, rng)
    return report


def _call(function, name: str, lattice: Lattice, x: Tensor) -> Tensor:
    before = x.clone()
    out = torch.as_tensor(function(lattice, x)).detach().cpu()
    if not torch.equal(before, x):
        raise EnergyModelError(f"computing {name} changed the occupations that were passed in")
    return out


def _require_finite(name: str, values: Tensor) -> None:
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        where = tuple(bad.nonzero()[0].tolist())
        raise EnergyModelError(
            f"{name} of configuration {where[0]} is {values[where].item()}; it must be finite"
        )


def _compare(law: str, got: Tensor, expected: Tensor, limit: float) -> float:
    """Largest deviation in eV; equal infinities agree."""
    if got.shape != expected.shape:
        raise EnergyModelError(f"{law}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}")
    difference = torch.where(got == expected, 0.0, (got - expected).abs())
    difference = torch.where(torch.isnan(difference), torch.inf, difference)
    worst = float(difference.max())
    if worst > limit:
        where = np.unravel_index(int(difference.argmax()), difference.shape)
        where = tuple(int(k) for k in where)
        raise EnergyModelError(
            f"{law}: {got[where].item():.12g} instead of {expected[where].item():.12g} eV at "
            f"{where} (configuration, site, species as far as given), more than {limit:.1e} eV"
        )
    return worst


def _changes(energy: EnergyModel, lattice: Lattice, x: Tensor, e: Tensor) -> Tensor:
    """(batch, sites, species) changes of the energy by evaluating every changed configuration."""
    out = torch.full((*x.shape, lattice.n_species), torch.inf, dtype=torch.float64)
    for site in range(lattice.n_sites):
        for a in np.flatnonzero(lattice.allowed[site]):
            changed = x.clone()
            changed[:, site] = int(a)
            out[:, site, a] = torch.as_tensor(energy(lattice, changed)).detach().cpu().double() - e
    out.scatter_(2, x.long()[:, :, None], 0.0)
    return out


def _check_fields(
    energy, lattice: Lattice, x: Tensor, changes: Tensor, limit: float, rng: np.random.Generator
) -> float:
    allowed = torch.tensor(lattice.allowed)
    partial = x.clone()
    partial[torch.as_tensor(rng.random(x.shape) < rng.random((len(x), 1)))] = UNKNOWN
    for occupations in (partial, x):
        fields = _call(energy.partial_fields, "partial fields", lattice, occupations).double()
        if fields.shape != changes.shape:
            raise EnergyModelError(
                f"partial_fields must have shape {tuple(changes.shape)}, got {tuple(fields.shape)}"
            )
        _require_finite("a partial field", fields)
        if bool((fields[:, ~allowed] != 0).any()):
            raise EnergyModelError("partial_fields must read 0 for species that are not allowed")
    now = x.long()[:, :, None]
    relative = torch.where(allowed, fields - fields.gather(2, now), torch.inf)
    law = "partial_fields with all sites known differ from changes of the energy"
    # fields may be single precision: allow for its rounding
    limit = max(limit, 1e-6 * float(fields.abs().max()))
    worst = _compare(law, relative, changes, limit)
    # certain means are known sites; what means say of known sites is ignored
    certain = torch.nn.functional.one_hot(x.long(), lattice.n_species).double()
    alike = allowed / allowed.sum(1, keepdim=True).double()
    means = torch.where((partial == UNKNOWN)[:, :, None], certain, alike)

    def with_means(lattice: Lattice, occupations: Tensor) -> Tensor:
        return energy.partial_fields(lattice, occupations, means=means)

    try:
        told = _call(with_means, "partial fields", lattice, partial).double()
    except TypeError as error:
        raise EnergyModelError(f"partial_fields must take means as well: {error}") from error
    told = torch.where(allowed, told - told.gather(2, now), torch.inf)
    law = "partial_fields with certain means differ from those with all sites known"
    return max(worst, _compare(law, told, relative, limit))
