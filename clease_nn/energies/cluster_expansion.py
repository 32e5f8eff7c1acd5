"""Cluster expansion energies in batches: energies, single-site changes, conditional energies."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from clease_nn.energies import kernels
from clease_nn.energies.tables import ClusterTables
from clease_nn.energies.torch_backend import TorchBackend
from clease_nn.lattice import UNKNOWN, Lattice

__all__ = ["ClusterExpansionEnergy"]

_BACKENDS = ("auto", "numba", "torch")


class ClusterExpansionEnergy:
    r"""Energy of a cluster expansion of one supercell.

    .. math:: E(s) = E_0 + \sum_t c_t \prod_{j \in t} \phi_{f_j}(s_{i_j})

    Parameters
    ----------
    tables : ClusterTables
        The expansion as bare numbers.
    metadata : Mapping, optional
        JSON-ready facts about where it comes from (parent fingerprint, ECIs); kept, never read.
    backend : {"auto", "numba", "torch"}
        ``"auto"``: compiled kernels for occupations in host memory (one thread), torch for those
        on another device. ``"torch"``: always torch. Both give the same numbers to 1e-10 eV.

    Notes
    -----
    Occupations have shape (batch, sites), int8 (any integer type is accepted), and are never
    changed. Results live on the device of the occupations.

    Examples
    --------
    Two spins with one bond:

    >>> tables = ClusterTables.from_terms(2, [[-1.0, 1.0]], [(0.5, [(0, 0), (1, 0)])])
    >>> lattice = Lattice.square(2, 1)
    >>> energy = ClusterExpansionEnergy(tables)
    >>> energy(lattice, torch.tensor([[0, 0], [0, 1]], dtype=torch.int8))
    tensor([ 0.5000, -0.5000], dtype=torch.float64)
    >>> energy.flip_energies(lattice, torch.tensor([[0, 1]], dtype=torch.int8))[0]
    tensor([[0., 1.],
            [1., 0.]], dtype=torch.float64)
    >>> energy.partial_fields(lattice, torch.tensor([[0, -1]], dtype=torch.int8))[0, 1]
    tensor([ 0.5000, -0.5000], dtype=torch.float64)
    """

    def __init__(
        self, tables: ClusterTables, metadata: Mapping | None = None, backend: str = "auto"
    ):
        if not isinstance(tables, ClusterTables):
            raise TypeError(f"tables must be ClusterTables, got {type(tables).__name__}")
        if backend not in _BACKENDS:
            raise ValueError(f"backend must be one of {_BACKENDS}, got {backend!r}")
        self.tables = tables
        self.metadata = dict(metadata or {})
        self.backend = backend
        self.fingerprint = tables.fingerprint
        self._allowed: np.ndarray | None = None
        self._program: kernels.Program | None = None
        self._torch: dict[torch.device, TorchBackend] = {}

    def __call__(self, lattice: Lattice, occupations: Tensor) -> Tensor:
        """Energies in eV per supercell, shape (batch,), float64.

        Raises
        ------
        ValueError
            If the lattice is another one, or a site is unknown, out of range or carries a
            species that it may not carry; the message names row, site and species.
        """
        occupations = self._prepare(lattice, occupations)
        if self._on_torch(occupations):
            self._check(lattice, occupations, unknown=False)
            return self._torch_backend(occupations.device).energies(occupations)
        out = np.empty(len(occupations))
        if not kernels.energies(occupations.numpy(), self._program, out):
            self._check(lattice, occupations, unknown=False)
        return torch.from_numpy(out)

    def flip_energies(self, lattice: Lattice, occupations: Tensor) -> Tensor:
        """Energy changes of all single-site changes, eV, (batch, sites, species), float64.

        Entry ``[b, i, a]`` is E(site i := a) - E(now): exactly 0 for the present species, +inf
        for species that the site may not carry.

        Raises
        ------
        ValueError
            As for the energies.
        """
        occupations = self._prepare(lattice, occupations)
        if self._on_torch(occupations):
            self._check(lattice, occupations, unknown=False)
            local = self._torch_backend(occupations.device).site_energies(occupations)
            now = local.gather(2, occupations.to(torch.int64)[:, :, None])
            allowed = torch.tensor(lattice.allowed, device=local.device)
            return torch.where(allowed, local - now, torch.inf)
        out = np.empty((*occupations.shape, lattice.n_species))
        if not kernels.flips(occupations.numpy(), self._program, out):
            self._check(lattice, occupations, unknown=False)
        return torch.from_numpy(out)

    def partial_fields(
        self, lattice: Lattice, occupations: Tensor, means: Tensor | None = None
    ) -> Tensor:
        """Conditional energies of partial configurations, eV, (batch, sites, species), float64.

        Entry ``[b, i, a]`` is the energy of species ``a`` on site ``i`` from all terms with that
        site; every function of another, unknown site stands at its mean. Species not allowed
        read 0. With every other site known, differences between species are the exact changes
        of the energy.

        Parameters
        ----------
        lattice : Lattice
        occupations : Tensor, shape (batch, sites)
        means : Tensor, shape (batch, sites, species), optional
            Probabilities of the species on unknown sites, independent of each other; 0 for
            species not allowed. Those of known sites are ignored. Default: all allowed ones
            alike. Differentiable.

        Raises
        ------
        ValueError
            If the lattice is another one, a known site is out of range or not allowed, or the
            means have another shape.
        """
        occupations = self._prepare(lattice, occupations)
        if means is not None and means.shape != (*occupations.shape, lattice.n_species):
            raise ValueError(
                f"means must have shape {(*occupations.shape, lattice.n_species)}, got "
                f"{tuple(means.shape)}"
            )
        if self._on_torch(occupations) or (means is not None and means.requires_grad):
            self._check(lattice, occupations, unknown=True)
            means = None if means is None else means.to(torch.float64)
            local = self._torch_backend(occupations.device).site_energies(occupations, means)
            allowed = torch.tensor(lattice.allowed, device=local.device)
            return torch.where(allowed, local, 0.0)
        out = np.empty((*occupations.shape, lattice.n_species))
        if means is not None:
            means = np.ascontiguousarray(means.detach().numpy(), dtype=float)
        if not kernels.fields(occupations.numpy(), self._program, out, means):
            self._check(lattice, occupations, unknown=True)
        return torch.from_numpy(out)

    # ------------------------------------------------------------------ preparation and checks
    def _prepare(self, lattice: Lattice, occupations: Tensor) -> Tensor:
        """Check shapes, lay the tables out for this lattice, return contiguous occupations."""
        if lattice.allowed is not self._allowed:
            self.tables.check_lattice(lattice)
            if self._allowed is None or not np.array_equal(self._allowed, lattice.allowed):
                self._program = kernels.build_program(self.tables, lattice.allowed)
                self._torch.clear()
            self._allowed = lattice.allowed
        occupations = torch.as_tensor(occupations).detach()
        if occupations.ndim != 2 or occupations.shape[1] != lattice.n_sites:
            raise ValueError(
                f"occupations must have shape (batch, {lattice.n_sites}), got "
                f"{tuple(occupations.shape)}"
            )
        if occupations.is_floating_point() or occupations.is_complex():
            raise ValueError(f"occupations must be integers, got {occupations.dtype}")
        if occupations.dtype != torch.int8:  # one type for the kernels; impossible stays so
            occupations = occupations.to(torch.int64).clamp(UNKNOWN - 1, 127).to(torch.int8)
        return occupations.contiguous()

    def _on_torch(self, occupations: Tensor) -> bool:
        return self.backend == "torch" or occupations.device.type != "cpu"

    def _torch_backend(self, device: torch.device) -> TorchBackend:
        if device not in self._torch:
            self._torch[device] = TorchBackend(self.tables, self._program, device)
        return self._torch[device]

    @staticmethod
    def _check(lattice: Lattice, occupations: Tensor, unknown: bool) -> None:
        """Raise ValueError naming the first site that cannot be evaluated."""
        index = occupations.to(torch.int64)
        known = index != UNKNOWN
        if not unknown and not bool(known.all()):
            row, site = (~known).nonzero()[0].tolist()
            raise ValueError(
                f"site {site} of configuration {row} is unknown; energies need complete "
                "configurations (partial_fields takes partial ones)"
            )
        outside = known & ((index < 0) | (index >= lattice.n_species))
        if bool(outside.any()):
            row, site = outside.nonzero()[0].tolist()
            raise ValueError(
                f"site {site} of configuration {row} has occupation {int(index[row, site])}; "
                f"species are numbered 0 to {lattice.n_species - 1} {lattice.species}"
            )
        allowed = torch.tensor(lattice.allowed, device=index.device)
        sites = torch.arange(lattice.n_sites, device=index.device)
        wrong = known & ~allowed[sites, index.clamp(min=0)]
        if bool(wrong.any()):
            row, site = wrong.nonzero()[0].tolist()
            may = [s for s, ok in zip(lattice.species, lattice.allowed[site], strict=True) if ok]
            raise ValueError(
                f"site {site} of configuration {row} carries "
                f"{lattice.species[int(index[row, site])]}, but it may carry only {may}"
            )

    def __getstate__(self):
        state = self.__dict__.copy()
        state.update(_allowed=None, _program=None, _torch={})
        return state

    def __repr__(self) -> str:
        return (
            f"ClusterExpansionEnergy({self.tables.n_sites} sites, {self.tables.n_terms} terms, "
            f"fingerprint {self.fingerprint})"
        )
