"""Cluster expansion energies in plain torch: the same numbers as the kernels, on any device."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clease_nn.energies.kernels import Program
from clease_nn.energies.tables import ClusterTables

__all__ = ["TorchBackend"]

# numbers in one temporary: batches are cut so that it stays below (beyond 32 MB, host memory pays
# page faults; a GPU wants more work at once)
_ELEMENTS_HOST = 2**22
_ELEMENTS_DEVICE = 2**26


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
                    [torch.as_tensor(row.copy(), device=device) for row in index.T],
                    torch.as_tensor(tables.coefficients[terms], device=device),
                )
            )
        largest = max((len(c) for _, c in self.groups), default=1)
        elements = _ELEMENTS_HOST if torch.device(device).type == "cpu" else _ELEMENTS_DEVICE
        self.rows = max(1, elements // max(largest, len(used), 1))

    def _variables(self, occupations: Tensor, means: Tensor | None = None) -> Tensor:
        """(V, batch) values of all variables; unknown sites take their mean, or that of means."""
        species = occupations.to(torch.int64).T[self.site]
        unknown = species < 0
        species = torch.where(unknown, self.values.shape[1] - 1, species)
        v = torch.gather(self.values, 1, species)
        if means is None:
            return v
        average = (means[:, self.site] * self.values[:, :-1]).sum(2)
        return torch.where(unknown, average.T, v)

    def energies(self, occupations: Tensor) -> Tensor:
        """(batch,) eV."""
        parts = []
        for o in occupations.split(self.rows):
            v = self._variables(o)
            total = v.new_full((len(o),), self.constant)
            for index, coefficient in self.groups:
                total += coefficient @ math.prod(v[row] for row in index)
            parts.append(total)
        return torch.cat(parts)

    def _gradient(self, v: Tensor) -> Tensor:
        """(V, batch) derivatives: every variable gets the product of its term's other ones."""
        out = torch.zeros_like(v)
        for index, coefficient in self.groups:
            factors = [v[row] for row in index]
            left = coefficient[:, None].expand(-1, v.shape[1])
            lefts = []
            for factor in factors:
                lefts.append(left)
                left = left * factor
            right = torch.ones_like(factors[0])
            for row, factor, left in zip(
                reversed(index), reversed(factors), reversed(lefts), strict=True
            ):
                out.index_add_(0, row, left * right)
                right = right * factor
        return out

    def site_energies(self, occupations: Tensor, means: Tensor | None = None) -> Tensor:
        """(batch, sites, species): energy of every species from the terms with that site.

        Differentiable with respect to ``means`` (batch, sites, species), the species of unknown
        sites; its derivatives keep no products of terms, but form them anew.
        """
        parts = []
        for begin in range(0, max(len(occupations), 1), self.rows):
            rows = slice(begin, begin + self.rows)
            own = None if means is None else means[rows]
            if own is not None and own.requires_grad:
                parts.append(
                    checkpoint(
                        self._site_energies,
                        occupations[rows],
                        own,
                        use_reentrant=False,
                        preserve_rng_state=False,
                    )
                )
            else:
                parts.append(self._site_energies(occupations[rows], own))
        return torch.cat(parts)

    def _site_energies(self, occupations: Tensor, means: Tensor | None) -> Tensor:
        """:meth:`site_energies` of all rows at once."""
        gradient = self._gradient(self._variables(occupations, means))
        out = gradient.new_zeros((self.n_sites, len(occupations), self.values.shape[1] - 1))
        out.index_add_(0, self.site, gradient[:, :, None] * self.values[:, None, :-1])
        return out.transpose(0, 1)
