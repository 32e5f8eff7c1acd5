"""Configurations as columns of numbers."""

from __future__ import annotations

import numpy as np

from clease_nn.configurations import Configurations
from clease_nn.export.extras import optional

__all__ = ["columns", "complete_rows", "to_dataframe"]


def complete_rows(c: Configurations, what: str) -> np.ndarray:
    """(batch, sites) occupations, none of them unknown.

    Raises
    ------
    ValueError
        If a site is unknown.
    """
    occupations = c.occupations.cpu().numpy()
    unknown = (occupations < 0).any(1)
    if unknown.any():
        raise ValueError(
            f"{int(unknown.sum())} of {len(c)} configurations have unknown sites (row "
            f"{int(np.argmax(unknown))} first), which {what} cannot hold; complete them, or "
            "write HDF5"
        )
    return occupations


def columns(c: Configurations) -> dict[str, np.ndarray]:
    """What is known of every row besides its sites: conditions, energies, likelihoods, chain."""
    out = {"temperature": c.conditions.temperature}
    for s, mu in zip(c.lattice.species, c.conditions.mu.T, strict=True):
        out[f"mu_{s}"] = mu
    for name in ("energy", "log_prob", "log_target", "chain"):
        if getattr(c, name) is not None:
            out[name] = getattr(c, name)
    if c.log_prob is not None and c.log_target is not None:
        out["log_weight"] = c.log_weight
    return {name: np.asarray(v.detach().cpu()) for name, v in out.items()}


def to_dataframe(c: Configurations, occupations: bool = False):
    """A pandas DataFrame with one row a configuration.

    Columns: ``temperature`` (K), ``mu_<species>`` (eV), ``energy`` (eV per supercell, without
    mu.N), ``log_prob``, ``log_target``, ``chain`` and ``log_weight`` (as far as there are such),
    ``n_<species>`` (sites) and ``x_<species>`` (share of the active sites).
    ``DataFrame.attrs`` has ``n_sites``, ``lattice`` (fingerprint) and ``provenance``.

    Parameters
    ----------
    c : Configurations
    occupations : bool
        Add a column ``site_<k>`` of chemical symbols for every active site, k its index in the
        supercell.

    Raises
    ------
    ImportError
        If pandas is not installed.
    ValueError
        If a site is unknown.

    Notes
    -----
    Rows of weighted draws have to be weighted by ``exp(log_weight)``, up to a constant.

    Examples
    --------
    >>> from clease_nn import Conditions, Lattice
    >>> lattice = Lattice.square(2, species=("Cu", "Au"))
    >>> c = Configurations(lattice, Conditions([300.0], [[0.0, 0.1]]), [[0, 0, 0, 1]])
    >>> to_dataframe(c).iloc[0].to_dict()["x_Au"]
    0.25
    """
    pandas = optional("pandas")
    rows = complete_rows(c, "a table")
    lattice = c.lattice
    out = columns(c)
    for a, s in enumerate(lattice.species):
        out[f"n_{s}"] = (rows == a).sum(1)
    for a, s in enumerate(lattice.species):
        out[f"x_{s}"] = (rows == a).mean(1)
    if occupations:
        for k, site in enumerate(lattice.site_indices):
            out[f"site_{site}"] = pandas.Categorical.from_codes(rows[:, k], lattice.species)
    frame = pandas.DataFrame(out)
    frame.attrs = {
        "n_sites": lattice.n_sites,
        "lattice": lattice.fingerprint,
        "provenance": dict(c.provenance),
    }
    return frame
