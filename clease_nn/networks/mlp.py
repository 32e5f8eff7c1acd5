"""Multilayer perceptron on all sites of one supercell: the network of the any-order papers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clease_nn.conditions import ConditionRange
from clease_nn.configurations import Configurations
from clease_nn.lattice import Lattice
from clease_nn.networks.abstract import AbstractNetwork
from clease_nn.networks.cell import check_cell
from clease_nn.networks.features import global_features, n_global_features
from clease_nn.networks.prior import check_fields, with_prior

__all__ = ["MLP"]

_CONDITION_WIDTH = 64


class MLP(AbstractNetwork):
    """Residual multilayer perceptron on the one-hot species and the known mask of all sites.

    The network of the any-order models of Du, Liu and Gomez-Bombarelli (AI4Mat, NeurIPS 2024).
    With ``x`` one-hot species and known mask of all sites and ``g`` a learned function of
    conditions and totals of the known sites::

        h_1 = W_1 x,   h_(l+1) = h_l + W_(l+1) silu(h_l + C_l g),   logits = H silu(h_L + C_L g)

    for ``L = layers``. The head H starts at zero. With fields (conditional energies in kT) these
    are inputs too, squashed, and the physical prior is added
    (:func:`~clease_nn.networks.prior.with_prior`).

    It knows no symmetry and belongs to one supercell.

    Parameters
    ----------
    lattice : Lattice
        The one supercell that is served.
    box : ConditionRange
        Conditions to be served; scales the inputs.
    width, layers : int
        Units of a layer, and layers (the head not counted).
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
    >>> net = MLP(lattice, box, width=32, layers=2, needs_fields=False)
    >>> net(Configurations.unknown(lattice, box.at([[0.5, 0.5]])), None).shape
    torch.Size([1, 16, 2])
    """

    def __init__(
        self,
        lattice: Lattice,
        box: ConditionRange,
        *,
        width: int = 512,
        layers: int = 4,
        needs_fields: bool = True,
    ):
        if min(width, layers) < 1:
            raise ValueError(f"width and layers must be positive, got {width} and {layers}")
        self._setup(
            lattice.fingerprint,
            lattice.n_sites,
            lattice.n_species,
            box,
            width,
            layers,
            needs_fields,
        )

    def _setup(self, cell, n_sites, n_species, box, width, layers, needs_fields):
        super().__init__()
        self.cell = str(cell)
        self.n_sites, self.n_species = int(n_sites), int(n_species)
        self.box = box
        self.width, self.layers = int(width), int(layers)
        self.needs_fields = bool(needs_fields)
        n, k, w = self.n_sites, self.n_species, self.width
        self.inlet = nn.Linear(n * (k + 1 + (4 * k if self.needs_fields else 0)), w)
        self.conditions = nn.Sequential(
            nn.Linear(n_global_features(k), _CONDITION_WIDTH),
            nn.SiLU(),
            nn.Linear(_CONDITION_WIDTH, self.layers * w),
        )
        self.hidden = nn.ModuleList(nn.Linear(w, w) for _ in range(self.layers - 1))
        self.head = nn.Linear(w, n * k)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, c: Configurations, fields: Tensor | None) -> Tensor:
        """Logits, shape (batch, sites, species); see the class for the formula.

        Raises
        ------
        ValueError
            If fields are needed and absent, or the lattice is another.
        """
        fields = check_fields(self.needs_fields, fields)
        logits = self.head(self._trunk(c, fields)).float()
        return with_prior(logits.view(len(c), self.n_sites, self.n_species), c, fields)

    @torch.no_grad()
    def at(self, c: Configurations, fields: Tensor | None, site: Tensor) -> Tensor:
        """Logits of one site of each row, (batch, species): only its rows of the head."""
        fields = check_fields(self.needs_fields, fields)
        u = self._trunk(c, fields)
        n, k = self.n_sites, self.n_species
        # one row of u for each row: sums beat a batched product of matrices this small
        logits = self.head.weight.view(n, k, -1)[site].mul_(u[:, None]).sum(-1)
        return with_prior(logits + self.head.bias.view(n, k)[site], c, fields, site)

    def check_lattice(self, lattice: Lattice) -> None:
        """Raise ValueError if the lattice is not the supercell the network was made for."""
        check_cell(self.cell, self.n_sites, lattice)

    def _trunk(self, c: Configurations, fields: Tensor | None) -> Tensor:
        """What the head reads, (batch, width)."""
        self.check_lattice(c.lattice)
        occ = c.occupations
        species = torch.arange(self.n_species, device=occ.device, dtype=occ.dtype)
        columns = [(occ[:, :, None] == species).flatten(1), c.known]
        if fields is not None:
            f = fields.flatten(1)
            columns += [torch.tanh(f / 2), torch.asinh(f / 2) / 3]
        h = self.inlet(torch.cat([column.to(torch.float32) for column in columns], 1)).float()
        shift = self.conditions(global_features(c, self.box)).float().chunk(self.layers, 1)
        free = not torch.is_grad_enabled()  # then nobody needs the input of an activation
        for layer, s in zip(self.hidden, shift, strict=False):
            h += layer(nn.functional.silu(h + s, inplace=free))
        return nn.functional.silu(h + shift[-1], inplace=free)

    def multiplications(self, n_sites: int) -> int:
        """Every weight once, as sites share none."""
        return self.n_weights

    def bytes_per_row(self, n_sites: int) -> int:
        """Inputs twice, logits twice, and the hidden layers, float32."""
        per_site = 2 * self.inlet.in_features // self.n_sites + 4 * self.n_species
        return 4 * (n_sites * per_site + (self.layers + 4) * self.width)

    def config(self) -> dict:
        """JSON-ready arguments that rebuild the network."""
        return {
            "class": "MLP",
            "cell": self.cell,
            "n_sites": self.n_sites,
            "n_species": self.n_species,
            "box": self.box.to_dict(),
            "width": self.width,
            "layers": self.layers,
            "needs_fields": self.needs_fields,
        }

    @classmethod
    def from_config(cls, config: dict) -> MLP:
        """Rebuild from :meth:`config` without ``class``."""
        out = cls.__new__(cls)
        out._setup(**{**config, "box": ConditionRange.from_dict(config["box"])})
        return out
