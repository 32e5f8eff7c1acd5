"""Cluster expansion energies in plain torch: the same numbers as the kernels, on any device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from clease_nn.energies.kernels import Program
from clease_nn.energies.tables import ClusterTables

__all__ = ["TorchBackend"]

_ELEMENTS = 2**24  # numbers held by one temporary: batches are cut so that it stays below


class TorchBackend:
    """Energies and site energies of cluster tables with torch operations.

    Parameters
    ----------
    tables : ClusterTables
    program : Program
        Layout of the same tables (its values and means are used).
    device : torch.device
    """

    def __init__(self, tables: ClusterTables, program: Program, device):
        self.constant = program.constant
        self.values = torch.as_tensor(program.values, device=device)
        self.site = torch.as_tensor(program.site.astype(np.int64), device=device)
        self.n_sites = len(program.first) - 1
        used = np.unique(tables.variables)
        variables = np.searchsorted(used, tables.variables)
        lengths = np.diff(tables.pointer)
        self.groups = []
        for length in np.unique(lengths):
            terms = np.flatnonzero(lengths == length)
            index = variables[tables.pointer[terms][:, None] + np.arange(length)]
            self.groups.append(
                (
                    torch.as_tensor(index.T.copy(), device=device),
                    torch.as_tensor(tables.coefficients[terms], device=device),
                )
            )
        largest = max((len(c) for _, c in self.groups), default=1)
        self.rows = max(1, _ELEMENTS // max(largest, len(used), 1))

    def _variables(self, occupations: Tensor) -> Tensor:
        """(V, batch) values of all variables; unknown sites take their mean."""
        species = occupations.to(torch.int64).T[self.site]
        species = torch.where(species < 0, self.values.shape[1] - 1, species)
        return torch.gather(self.values, 1, species)

    def _energy(self, v: Tensor) -> Tensor:
        total = torch.full((v.shape[1],), self.constant, dtype=v.dtype, device=v.device)
        for index, coefficient in self.groups:
            product = v[index[0]]
            for row in index[1:]:
                product = product * v[row]
            total = total + coefficient @ product
        return total

    def energies(self, occupations: Tensor) -> Tensor:
        """(batch,) eV."""
        with torch.no_grad():
            parts = [self._energy(self._variables(o)) for o in occupations.split(self.rows)]
        return torch.cat(parts)

    def site_energies(self, occupations: Tensor) -> Tensor:
        """(batch, sites, species): energy of every species from the terms with that site."""
        parts = []
        for o in occupations.split(self.rows):
            v = self._variables(o).requires_grad_(True)
            out = torch.zeros(
                (self.n_sites, len(o), self.values.shape[1] - 1), dtype=v.dtype, device=v.device
            )
            if self.groups:
                with torch.enable_grad():
                    (gradient,) = torch.autograd.grad(self._energy(v).sum(), v)
                out.index_add_(0, self.site, gradient[:, :, None] * self.values[:, None, :-1])
            parts.append(out.transpose(0, 1))
        return torch.cat(parts)
