"""Connected two-point correlations against distance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.lattice import Lattice
from clease_nn.statistics import Estimate
from clease_nn.thermodynamics.groups import Group, groups, stack

__all__ = ["Correlations", "correlations"]

_TOLERANCE = 1e-3  # angstrom; distances closer than this are one shell
_CHUNK = 256  # rows turned into pair counts together


@dataclass(frozen=True, eq=False)
class Correlations:
    """Connected pair correlations of every condition and shell.

    Attributes
    ----------
    conditions : Conditions
        One a row, in the order of first appearance.
    species : tuple of str
    shells : tuple of (sublattice, sublattice of the neighbour, distance)
        Sorted by distance (angstrom); the site itself is the shell at distance 0.
    pairs : ndarray, shape (shells,)
        Ordered pairs of sites in each shell.
    connected : Estimate, shape (conditions, shells, species, species)
        ``<n_a(i) n_b(j)> - <n_a><n_b>`` averaged over the pairs of the shell; dimensionless.
    """

    conditions: Conditions
    species: tuple[str, ...]
    shells: tuple[tuple[int, int, float], ...]
    pairs: np.ndarray
    connected: Estimate

    @property
    def distances(self) -> np.ndarray:
        """Distance of every shell in angstrom, shape (shells,)."""
        return np.array([d for _, _, d in self.shells])

    @property
    def spin(self) -> Estimate:
        """``<s s'> - <s><s'>`` with s = -1 and +1 for the two species, (conditions, shells).

        ``s = 2 n_1 - 1``, so it is four times the connected correlation of species 1.

        Raises
        ------
        ValueError
            If there are more or less than two species.
        """
        if len(self.species) != 2:
            raise ValueError(
                f"spins stand for two species, there are {len(self.species)} {self.species}; "
                "read `connected` instead"
            )
        return self.connected[..., 1, 1] * 4.0


def correlations(c: Configurations, n_shells: int | None = None) -> Correlations:
    """Connected two-point correlations of every species pair against distance.

    Every ordered pair of sites belongs to one shell: that of its two sublattices and of the
    distance between its nearest periodic images. ``<n_a>`` is the mean over the sublattice, so
    that the sum over all shells times their pairs is the covariance of the counts::

        sum over shells of  pairs * connected[a, b]  =  Cov(N_a, N_b)

    Errors are those of the linearised estimate, with the weights or the autocorrelation of the
    chains, and of the product of the errors of the means, which is all there is where the linear
    terms cancel (a site with itself at half filling). The bias from products of means is removed
    to leading order.

    Parameters
    ----------
    c : Configurations
        Weighted or chains; for chains no energies are needed.
    n_shells : int, optional
        The nearest shells only, the site itself not counted. Default: all of the supercell.

    Raises
    ------
    ValueError
        As :func:`~clease_nn.thermodynamics.averages`, or if ``n_shells`` < 1.

    Warns
    -----
    LowESSWarning
        As :func:`~clease_nn.thermodynamics.averages`.

    Examples
    --------
    Independent sites are correlated with themselves alone, by ``x (1 - x)``:

    >>> lattice = Lattice.square(4)
    >>> x = torch.randint(2, (4000, 16), generator=torch.Generator().manual_seed(0))
    >>> at = Conditions([300.0], [[0.0, 0.0]]).repeat(4000)
    >>> found = correlations(Configurations(lattice, at, x, chain=torch.arange(4000)), n_shells=2)
    >>> found.distances
    array([0.   , 1.   , 1.414])
    >>> print(found.spin[0])
    [1.000015 +- 0.000024, 0.0034 +- 0.0028, 0.0007 +- 0.0027] (NESS 1.00)
    """
    if n_shells is not None and n_shells < 1:
        raise ValueError(f"n_shells must be at least 1, got {n_shells}")
    shells, members = _shells(c.lattice, n_shells)
    found = groups(c)
    parts = [_connected(c, g, shells, members) for g in found]
    return Correlations(
        Conditions.cat(g.condition for g in found),
        c.lattice.species,
        tuple(shells),
        members.sum((1, 2)),
        stack(parts),
    )


def _shells(lattice: Lattice, n_shells: int | None):
    """Keys of the shells and which pairs belong to each, bool (shells, sites, sites)."""
    distance = lattice.template[lattice.site_indices].get_all_distances(mic=True)
    values = np.unique(np.round(distance, 6))
    first = np.concatenate([[True], np.diff(values) > _TOLERANCE])
    shell = (np.cumsum(first) - 1)[np.searchsorted(values, np.round(distance, 6))]
    last = int(shell.max()) if n_shells is None else min(n_shells, int(shell.max()))
    sub = lattice.sublattices
    keys, members = [], []
    for k in range(last + 1):
        for a in np.unique(sub):
            for b in np.unique(sub):
                inside = (shell == k) & (sub[:, None] == a) & (sub[None] == b)
                if inside.any():
                    keys.append((int(a), int(b), round(float(distance[inside].mean()), 3) + 0.0))
                    members.append(inside)
    return keys, np.array(members)


def _connected(c: Configurations, g: Group, shells, members) -> Estimate:
    """Connected correlations of one condition, shape (shells, species, species)."""
    pair, site = _densities(c, g.rows, members)
    sub = c.lattice.sublattices
    labels = np.unique(sub)
    share = (sub[:, None] == labels) / np.bincount(sub)[labels]
    means = np.einsum("nia,is->nsa", site, share)
    n, _, k = means.shape
    covariance = g.covariance(means.reshape(n, -1)).value
    covariance = covariance.reshape(len(labels), k, len(labels), k)
    middle = g.mean(means)
    centre = middle.value
    parts = []
    for s, (a, b, _) in enumerate(shells):
        i, j = np.searchsorted(labels, [a, b])
        left, right = means[:, i, :, None], means[:, j, None, :]
        # the mean of the product is unbiased, the product of means is not: add their difference
        value = g.mean(pair[:, s] - left * right).value + covariance[i, :, j, :]
        linear = pair[:, s] - left * centre[j] - centre[i][:, None] * right
        e = g.mean(linear)
        product = np.sqrt(2) * middle.error[i][:, None] * middle.error[j]
        parts.append(Estimate(value, np.hypot(e.error, product), e.ness))
    return Estimate(
        np.stack([p.value for p in parts]),
        np.stack([p.error for p in parts]),
        float(np.min([p.ness for p in parts])),
    )


def _densities(c: Configurations, rows: np.ndarray, members: np.ndarray):
    """Pair densities (rows, shells, species, species) and site occupations of a condition."""
    matrices = torch.as_tensor(members, dtype=torch.float32)
    n_pairs = matrices.sum((1, 2))[:, None, None]
    occupations = c.occupations[torch.as_tensor(rows, device=c.occupations.device)].cpu()
    species = torch.arange(c.lattice.n_species)
    pair, site = [], []
    for k in range(0, len(rows), _CHUNK):
        one = (occupations[k : k + _CHUNK, :, None] == species).to(torch.float32)
        around = torch.einsum("sij,njb->nsib", matrices, one)
        pair.append((torch.einsum("nia,nsib->nsab", one, around).double() / n_pairs).numpy())
        site.append(one.double().numpy())
    return np.concatenate(pair), np.concatenate(site)
