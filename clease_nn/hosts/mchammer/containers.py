"""mchammer's DataContainer: configurations into one, and runs out of one."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from ase.data import atomic_numbers as number_of
from mchammer import DataContainer

import clease_nn
from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.cost import Cost
from clease_nn.energies.atomic_numbers import atomic_numbers, from_atomic_numbers
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.export.tables import complete_rows
from clease_nn.export.unweighted import by_condition, is_weighted, unweighted
from clease_nn.hosts.mchammer.private import trajectory, write_last_state
from clease_nn.lattice import Lattice

__all__ = ["from_data_container", "to_data_container"]


def to_data_container(c: Configurations, *, resample: int | None = None) -> DataContainer:
    """A mchammer container of configurations at one condition, as its SGC ensemble writes it.

    A container has no place for weights. Weighted draws are made into an independence
    Metropolis-Hastings chain (:func:`clease_nn.export.unweighted`), on request; a rejected draw
    repeats its row, so that ``DataContainer.analyze_data`` sees the correlation.

    Parameters
    ----------
    c : Configurations
        At one temperature and one set of chemical potentials, with ``energy``: weighted draws, or
        one chain in time order.
    resample : int, optional
        Seed; needed for weighted draws.

    Returns
    -------
    DataContainer
        One row a configuration, as many trials apart as the supercell has atoms: ``mctrial``,
        ``potential`` (eV per supercell, without mu.N), ``<symbol>_count``, ``acceptance_ratio`` (1
        where the row differs from the one before, else 0) and ``occupations``.
        ``ensemble_parameters`` are those of ``SemiGrandCanonicalEnsemble``, which can go on from a
        file of it (``dc_filename=``). ``metadata`` has the origin of the rows: ``clease_nn``
        (version), ``method`` and ``provenance``.

    Raises
    ------
    ValueError
        If there are several conditions or chains, no energies, unknown sites, or weighted draws
        without ``resample``.

    Examples
    --------
    >>> from clease_nn import Lattice
    >>> lattice = Lattice.square(2, species=("Au", "Cu"))
    >>> ensemble = SemiGrandCanonical(lambda lattice, x: 0.1 * (x == 0).sum(1))
    >>> at = Conditions([300.0], [[0.1, 0.0]]).repeat(2)
    >>> chain = Configurations(lattice, at, [[0, 0, 0, 1], [0, 1, 0, 1]], chain=torch.zeros(2))
    >>> to_data_container(ensemble.score(chain)).data[["mctrial", "potential", "Au_count"]]
       mctrial  potential  Au_count
    0        0        0.3         3
    1        4        0.2         2
    """
    n_conditions = sum(1 for _ in by_condition(c))
    if n_conditions != 1:
        raise ValueError(
            f"a data container belongs to one condition, these rows to {n_conditions}; make one "
            "container for each"
        )
    if c.energy is None:
        raise ValueError("a data container needs energies; score the configurations first")
    if resample is not None:
        c = unweighted(c, resample)
    elif is_weighted(c):
        raise ValueError(
            "these are weighted draws, and a data container has no place for weights; use "
            "resample=<seed> for an unweighted chain"
        )
    if c.chain is not None and len(torch.unique(c.chain)) > 1:
        raise ValueError(
            f"a data container holds one chain in time order, these rows are of "
            f"{len(torch.unique(c.chain))}; choose one with c[c.chain == k]"
        )
    lattice, x = c.lattice, complete_rows(c, "a data container")
    numbers = atomic_numbers(lattice, x)
    background = np.delete(lattice.template.symbols, lattice.site_indices)
    interval = len(lattice.template)
    parameters = {"temperature": c.conditions.temperature[0].item()}
    for s, mu in zip(lattice.species, c.conditions.mu[0].tolist(), strict=True):
        parameters[f"mu_{s}"] = mu
    parameters["n_atoms"] = interval
    metadata = OrderedDict(
        ensemble_name="SemiGrandCanonicalEnsemble",
        user_tag=None,
        seed=resample,
        clease_nn=clease_nn.__version__,
        method=c.provenance.get("method", "rows as given"),
        provenance=dict(c.provenance),
    )
    out = DataContainer(lattice.atoms(x[0]), parameters, metadata)
    changed = np.concatenate([[False], (x[1:] != x[:-1]).any(1)])
    symbols = sorted({*lattice.species, *background})  # the host counts all atoms
    counts = {f"{s}_count": (numbers == number_of[s]).sum(1).tolist() for s in symbols}
    for k, energy in enumerate(c.energy.tolist()):
        row = {"potential": energy, "acceptance_ratio": float(changed[k])}
        row |= {tag: n[k] for tag, n in counts.items()}
        out.append(k * interval, {**row, "occupations": numbers[k].tolist()})
    state = random.Random(0 if resample is None else resample).getstate()
    write_last_state(out, (len(c) - 1) * interval, numbers[-1], state)
    return out


def from_data_container(container: DataContainer, lattice: Lattice, start: int = 0):
    """The trajectory of an SGC run as a chain, for :mod:`clease_nn.thermodynamics`.

    Parameters
    ----------
    container : DataContainer
        Of a ``SemiGrandCanonicalEnsemble`` or a :class:`NeuralSGCEnsemble` in eV and K.
    lattice : Lattice
        Of the same supercell (:func:`clease_nn.hosts.mchammer.lattice`).
    start : int
        First trial step to read.

    Returns
    -------
    Configurations
        ``chain`` is 0; ``energy`` and ``log_target`` are filled if the potential was written
        wherever the occupations were. ``provenance`` has what the whole run has cost, one energy
        a trial step, without seconds, which the container does not tell.

    Raises
    ------
    ValueError
        If the run was not semi-grand canonical, a chemical potential is missing of a species
        whose number changed, no row has occupations, or a structure does not belong to the
        lattice.
    """
    parameters = container.ensemble_parameters
    given = [s for s in lattice.species if f"mu_{s}" in parameters]
    if "temperature" not in parameters or not given:
        raise ValueError(
            f"the container has no temperature or no chemical potential of {lattice.species} among "
            f"its parameters {sorted(parameters)}; only runs in the semi-grand canonical ensemble "
            "can be read"
        )
    rows = [r for r in trajectory(container) if r["mctrial"] >= start]
    if not rows:
        raise ValueError(
            f"no row from trial step {start} on has occupations; set trajectory_write_interval "
            "in the ensemble"
        )
    numbers = np.array([r["occupations"] for r in rows])
    template = lattice.template
    if numbers.shape[1] != len(template):
        raise ValueError(
            f"the structures have {numbers.shape[1]} atoms, the lattice {len(template)}; read the "
            "lattice off the supercell of the run"
        )
    x = from_atomic_numbers(lattice, numbers[:, lattice.site_indices])
    background = np.delete(numbers, lattice.site_indices, 1)
    wrong = ~lattice.allowed[np.arange(lattice.n_sites), x].all(1) | (x < 0).any(1)
    wrong |= (background != np.delete(template.numbers, lattice.site_indices)).any(1)
    if wrong.any():
        k = int(np.argmax(wrong))
        structure = template.copy()
        structure.numbers = numbers[k]
        lattice.occupations(structure)  # raises, naming the atom
    n = len(rows)
    mu = [parameters.get(f"mu_{s}", 0.0) for s in lattice.species]
    at = Conditions([parameters["temperature"]], [mu]).repeat(n)
    for a, s in enumerate(lattice.species):
        if s not in given and np.ptp((x == a).sum(1)):
            raise ValueError(
                f"the number of {s} atoms changed in the run, but the container states no "
                "chemical potential for them; only semi-grand canonical runs can be read"
            )
    metadata = {k: v for k, v in container.metadata.items() if k not in ("username", "hostname")}
    out = Configurations(
        lattice,
        at,
        torch.as_tensor(x),
        chain=torch.zeros(n, dtype=torch.int64),
        provenance=_cost(rows[-1]["mctrial"], lattice, metadata).noted_in(
            {"method": "mchammer data container", "metadata": metadata}
        ),
    )
    if not all("potential" in r for r in rows):
        return out
    energy = torch.tensor([float(r["potential"]) for r in rows], dtype=torch.float64)
    return replace(out, energy=energy, log_target=SemiGrandCanonical.log_weight(out, energy))


def _cost(trials: int, lattice: Lattice, metadata: Mapping) -> Cost:
    """Of a run of so many trial steps; containers made of configurations state theirs."""
    if "provenance" in metadata:
        return Cost.from_provenance(metadata["provenance"])
    return Cost(energy_evaluations=float(trials), attempts_per_site=trials / lattice.n_sites)
