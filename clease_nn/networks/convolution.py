"""The relation convolution: weights tied to pair shells, for any lattice and supercell."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.sparse import csr_array, eye_array, vstack
from torch import Tensor, nn

from clease_nn.conditions import ConditionRange
from clease_nn.configurations import Configurations
from clease_nn.lattice import Lattice
from clease_nn.networks.abstract import AbstractNetwork
from clease_nn.networks.features import (
    global_features,
    n_global_features,
    n_site_features,
    site_features,
)
from clease_nn.networks.neighbours import Neighbours
from clease_nn.networks.prior import check_fields, with_prior

__all__ = ["LatticeConvolution"]


class LatticeConvolution(AbstractNetwork):
    """Residual network of relation convolutions with conditions fed to every block.

    Each block is ``h + sum_s A_s (u W_s) + mean(u) V`` with ``u = silu(FiLM(h))``: ``A_s`` joins
    the sites of pair shell s (the site itself is shell 0), ``W_s`` is dense. Weights belong to
    shells of the parent lattice, not to a supercell: the same network serves every supercell,
    and is equivariant under translations and the point group. FiLM (feature-wise scale and
    shift, Perez et al., AAAI 2018) carries temperature, chemical potentials and totals of the
    known sites. The head starts at zero.

    With fields (conditional energies in kT, unknown sites at their mean field) these are added,
    ``logits = network + fields * (f + (1 - f) * gate)`` with f the fraction of known sites and a
    gate that follows conditions and totals: they become exact as the configuration fills and
    prevent rare catastrophic draws at low temperature.

    Parameters
    ----------
    lattice : Lattice
        Any supercell of the parent lattice: supplies species and pair shells.
    box : ConditionRange
        Conditions to be served; scales the inputs.
    channels, blocks, n_shells : int
        Width, depth, and shells of neighbours (the site itself not counted).
    needs_fields : bool
        Use fields as input and prior. True where the energy offers ``partial_fields``.

    Raises
    ------
    ValueError
        If a size is not positive.

    Examples
    --------
    >>> lattice = Lattice.square(4)
    >>> box = ConditionRange((300, 900), [-0.1], [0.1], [[-1.0, 1.0]])
    >>> net = LatticeConvolution(lattice, box, channels=8, blocks=1, needs_fields=False)
    >>> net(Configurations.unknown(lattice, box.at([[0.5, 0.5]])), None).shape
    torch.Size([1, 16, 2])
    """

    def __init__(
        self,
        lattice: Lattice,
        box: ConditionRange,
        *,
        channels: int = 32,
        blocks: int = 4,
        n_shells: int = 4,
        needs_fields: bool = True,
    ):
        if min(channels, blocks, n_shells) < 1:
            raise ValueError(
                f"channels, blocks and n_shells must be positive, got {channels}, {blocks}, "
                f"{n_shells}"
            )
        shells = lattice.pair_shells(n_shells)
        degrees = lattice.relation_lists(shells).sum(1).reshape(len(shells), -1)
        self._setup(
            shells,
            degrees.max(1, initial=0).tolist(),
            lattice.species,
            len(np.unique(lattice.sublattices)),
            box,
            channels,
            blocks,
            needs_fields,
        )

    def _setup(self, shells, degrees, species, n_sublattices, box, channels, blocks, needs_fields):
        super().__init__()
        self.shells = [(int(a), int(b), float(d)) for a, b, d in shells]
        self.degrees = [int(d) for d in degrees]
        self.species = tuple(species)
        self.n_sublattices = int(n_sublattices)
        self.box = box
        self.channels, self.blocks = int(channels), int(blocks)
        self.needs_fields = bool(needs_fields)
        k, s, c = len(self.species), len(self.shells), self.channels
        width = n_site_features(k, s, self.n_sublattices, self.needs_fields)
        self.inlet = nn.Linear(width, c)
        hidden = 2 * c
        self.film = nn.Sequential(
            nn.Linear(n_global_features(k), hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, (self.blocks + 1) * 2 * c + 1),
        )
        nn.init.zeros_(self.film[-1].weight[-1])  # the last one is the gate of the prior
        nn.init.zeros_(self.film[-1].bias[-1:])
        # a sum over d neighbours is scaled by 1 / sqrt(d): every shell starts equally strong
        scale = torch.tensor([1.0, *(1.0 / math.sqrt(max(d, 1)) for d in self.degrees)])
        self.register_buffer("shell_scale", scale[:, None, None], persistent=False)
        spread = 1.0 / math.sqrt(c * (s + 1) * self.blocks)
        self.weights = nn.Parameter(torch.randn(self.blocks, s + 1, c, c) * spread)
        self.pooled = nn.Parameter(torch.randn(self.blocks, c, c) * spread)
        self.head = nn.Linear(c, k)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self._geometry: dict[tuple, tuple] = {}

    # ---------------------------------------------------------------- geometry of a supercell
    def _relations(self, lattice: Lattice) -> tuple[Neighbours, Tensor, Tensor | None]:
        device = self.head.weight.device
        key = (lattice.fingerprint, device)
        if key not in self._geometry:
            if lattice.species != self.species:
                raise ValueError(
                    f"the network was made for species {self.species}, the lattice has "
                    f"{lattice.species}"
                )
            counts = lattice.relation_lists(self.shells)
            if not counts.nnz:
                raise ValueError(
                    "no neighbours at the distances the network was made for "
                    f"({[s[2] for s in self.shells]} angstrom); the lattice has another parent"
                )
            itself = eye_array(lattice.n_sites, dtype=counts.dtype)
            neighbours = Neighbours(csr_array(vstack([itself, counts])))
            degree = torch.tensor(self.degrees, device=device).clamp(min=1).to(torch.float32)
            sublattice = None
            if self.n_sublattices > 1:
                onehot = np.eye(self.n_sublattices, dtype=np.float32)[lattice.sublattices]
                sublattice = torch.tensor(onehot, device=device)
            self._geometry[key] = (neighbours, degree, sublattice)
        return self._geometry[key]

    def check_lattice(self, lattice: Lattice) -> None:
        """Raise ValueError if the lattice has other species or another parent."""
        self._relations(lattice)

    # ---------------------------------------------------------------- forward
    def forward(self, c: Configurations, fields: Tensor | None) -> Tensor:
        """Logits, shape (batch, sites, species); see the class for the formula.

        Raises
        ------
        ValueError
            If fields are needed and absent, or the lattice has another parent.
        """
        fields = check_fields(self.needs_fields, fields)
        h, g, gate, _, _ = self._trunk(c, fields, self.blocks)
        u = _film(h, g[:, -1])
        return with_prior(self.head(u).float(), c, fields, gate=gate)

    @torch.no_grad()
    def at(self, c: Configurations, fields: Tensor | None, site: Tensor) -> Tensor:
        """Logits of one site of each row, (batch, species): the last block at that site only."""
        fields = check_fields(self.needs_fields, fields)
        rows = torch.arange(len(c), device=site.device)
        h, g, gate, weights, neighbours = self._trunk(c, fields, self.blocks - 1)
        u = _film(h, g[:, -2])
        z = neighbours.at(u, site).flatten(1)
        last = h[rows, site] + u.mean(1) @ self.pooled[-1] + z @ weights[-1]
        logits = self.head(_film(last[:, None], g[:, -1])[:, 0]).float()
        return with_prior(logits, c, fields, site, gate)

    def _trunk(self, c, fields, blocks):
        """Hidden state after some blocks, FiLM of all blocks, gate, weights, neighbour lists."""
        neighbours, degree, sublattice = self._relations(c.lattice)
        share = neighbours.of_flags(c.known)[:, :, 1:] / degree
        n, b, width = c.lattice.n_sites, len(c), self.channels
        g = self.film(global_features(c, self.box)).float()
        g, gate = g[:, :-1].reshape(b, self.blocks + 1, 2, 1, width), g[:, -1]
        h = self.inlet(site_features(c, fields, share, sublattice)).float()
        weights = (self.weights * self.shell_scale).view(self.blocks, -1, width)
        for k in range(blocks):
            u = _film(h, g[:, k])
            z = neighbours(u).reshape(n * b, weights.shape[1])
            pooled = (u.mean(1) @ self.pooled[k])[:, None]
            h = h + pooled + (z @ weights[k]).view(b, n, width)
        return h, g, gate, weights, neighbours

    def bytes_per_row(self, n_sites: int) -> int:
        """Sums over all shells, and ten hidden states beside them, or the inputs, float32."""
        inputs = 3 * self.inlet.in_features + 2 * self.channels
        block = (len(self.shells) + 1 + 10) * self.channels
        return 4 * n_sites * max(inputs, block)

    # ---------------------------------------------------------------- saving
    def config(self) -> dict:
        """JSON-ready arguments that rebuild the network."""
        return {
            "class": type(self).__name__,
            "shells": [list(s) for s in self.shells],
            "degrees": self.degrees,
            "species": list(self.species),
            "n_sublattices": self.n_sublattices,
            "box": self.box.to_dict(),
            "channels": self.channels,
            "blocks": self.blocks,
            "needs_fields": self.needs_fields,
        }

    @classmethod
    def from_config(cls, config: dict) -> LatticeConvolution:
        """Rebuild from :meth:`config` without ``class``."""
        out = cls.__new__(cls)
        config = dict(config)
        config["box"] = ConditionRange.from_dict(config["box"])
        out._setup(**config)
        return out


def _film(h: Tensor, g: Tensor) -> Tensor:
    """``silu(h * (1 + scale) + shift)`` with g (batch, 2, 1, channels)."""
    return nn.functional.silu(torch.addcmul(g[:, 1], h, 1 + g[:, 0]))
