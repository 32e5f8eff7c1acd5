"""Sets of sites to redraw together, chosen without regard to the configuration."""

from __future__ import annotations

import numpy as np
import torch

from clease_nn.lattice import Lattice

__all__ = ["Blocks"]


class Blocks:
    """Random blocks of sites: scattered or compact, with equal probability.

    The choice never depends on the configuration, so it cancels in an acceptance probability.

    Parameters
    ----------
    lattice : Lattice
    sites : Tensor, shape (n,)
        Active sites to choose from.

    Examples
    --------
    >>> blocks = Blocks(Lattice.square(4), torch.arange(16))
    >>> len(set(blocks.draw(5, torch.Generator().manual_seed(0)).tolist()))
    5
    """

    def __init__(self, lattice: Lattice, sites: torch.Tensor):
        self.lattice, self.sites = lattice, sites
        self._distances: np.ndarray | None = None

    def draw(self, size: int, rng: torch.Generator) -> torch.Tensor:
        """A block of ``size`` sites (all, if there are fewer), shape (size,).

        Compact blocks are a site and those nearest to it, periodic images considered.
        """
        order = torch.randperm(len(self.sites), generator=rng)
        if bool(torch.rand(1, generator=rng) < 0.5):
            return self.sites[order[:size]]
        if self._distances is None:
            atoms = self.lattice.site_indices[self.sites.numpy()]
            template = self.lattice.template
            self._distances = np.array(
                [template.get_distances(i, atoms, mic=True).round(3) for i in atoms]
            )
        nearest = np.argsort(self._distances[int(order[0])], kind="stable")[:size]
        return self.sites[torch.as_tensor(nearest)]
