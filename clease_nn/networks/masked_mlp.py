"""Masked multilayer perceptron: all conditionals of one fixed order in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from clease_nn.conditions import ConditionRange
from clease_nn.configurations import Configurations
from clease_nn.lattice import Lattice
from clease_nn.networks.abstract import AbstractNetwork
from clease_nn.networks.cell import check_cell
from clease_nn.networks.features import condition_features, n_condition_features
from clease_nn.networks.prior import check_fields, with_prior

__all__ = ["IncrementalLogits", "MaskedMLP"]


class MaskedMLP(AbstractNetwork):
    """Multilayer perceptron whose logits of a site see only the sites before it in an order.

    Masked autoencoder for distribution estimation (Germain et al., ICML 2015), as used for
    alloys in SEGAL (Damewood et al., npj Comput. Mater. 2022): the site at position t of the
    order sees the species at positions < t, so that one pass gives every conditional of a full
    configuration. Temperature and mu enter every layer, unmasked. With ``x`` the one-hot species
    and ``g`` the conditions::

        h_1 = W_1 x + C_1 g,   h_(l+1) = h_l + W_(l+1) silu(h_l) + C_(l+1) g
        logits = H silu(h_L) + C_(L+1) g

    for ``L = layers``, all W and H masked. A unit of degree t sees the first t sites; degrees are
    spread evenly, ascend, and are the same in every layer, so that residual connections respect
    them, and so that drawing site after site computes every unit once (:meth:`incremental`).
    The head starts at zero.

    With ``needs_fields`` the physical prior is added
    (:func:`~clease_nn.networks.prior.with_prior`). Fields belong to one set of known sites, so
    they serve a site only when they are those of the sites before it: the next site of each row,
    one evaluation a site.

    It knows no symmetry and belongs to one supercell.

    Parameters
    ----------
    lattice : Lattice
        The one supercell that is served.
    box : ConditionRange
        Conditions to be served; scales the inputs.
    order : sequence of int, shape (sites,), optional
        Sites in the order in which they are drawn; default as they are numbered.
    width, layers : int
        Units of a layer, and layers (the head not counted).
    needs_fields : bool
        Add the physical logits. It costs the single pass.

    Raises
    ------
    ValueError
        If a size is not positive, or the order is no permutation of the sites.

    Examples
    --------
    >>> lattice = Lattice.square(4)
    >>> box = ConditionRange((300, 900), [-0.1], [0.1], [[-1.0, 1.0]])
    >>> net = MaskedMLP(lattice, box, width=32, layers=2)
    >>> net(Configurations.unknown(lattice, box.at([[0.5, 0.5]])), None).shape
    torch.Size([1, 16, 2])
    """

    any_order = False

    def __init__(
        self,
        lattice: Lattice,
        box: ConditionRange,
        order: Sequence[int] | None = None,
        *,
        width: int = 512,
        layers: int = 4,
        needs_fields: bool = False,
    ):
        if min(width, layers) < 1:
            raise ValueError(f"width and layers must be positive, got {width} and {layers}")
        order = np.arange(lattice.n_sites) if order is None else np.asarray(order)
        if sorted(order.tolist()) != list(range(lattice.n_sites)):
            raise ValueError(
                f"the order must hold each of the {lattice.n_sites} sites once, got "
                f"{order.tolist()}"
            )
        self._setup(
            lattice.fingerprint, lattice.n_species, order.tolist(), box, width, layers, needs_fields
        )

    def _setup(self, cell, n_species, order, box, width, layers, needs_fields):
        super().__init__()
        self.cell = str(cell)
        self.order = [int(i) for i in order]
        self.n_sites, self.n_species = len(self.order), int(n_species)
        self.box = box
        self.width, self.layers = int(width), int(layers)
        self.needs_fields = bool(needs_fields)
        n, k, w = self.n_sites, self.n_species, self.width
        degree = torch.arange(w) * n // w
        position = torch.arange(n).repeat_interleave(k)
        masks = {
            "inlet_mask": position < degree[:, None],
            "hidden_mask": degree <= degree[:, None],
            "head_mask": degree <= position[:, None],
        }
        for name, mask in masks.items():
            self.register_buffer(name, mask.to(torch.float32), persistent=False)
        self.register_buffer("sites", torch.tensor(self.order), persistent=False)
        self.register_buffer("rank", self.sites.argsort(), persistent=False)
        self.first_unit = torch.searchsorted(degree, torch.arange(n + 1)).tolist()
        """First unit of each degree; entry t + 1 ends those that the site at position t sees."""
        self.inlet = nn.Parameter(_spread(masks["inlet_mask"]))
        self.hidden = nn.ParameterList(
            _spread(masks["hidden_mask"]) for _ in range(self.layers - 1)
        )
        self.head = nn.Parameter(torch.zeros(n * k, w))
        self.conditions = nn.Linear(n_condition_features(k), self.layers * w + n * k)
        with torch.no_grad():
            self.conditions.weight[self.layers * w :] = 0.0
            self.conditions.bias[self.layers * w :] = 0.0

    def forward(self, c: Configurations, fields: Tensor | None) -> Tensor:
        """Logits, shape (batch, sites, species): each site's given those before it.

        Whatever is known at a site and after it in the order does not enter, but in the fields.

        Raises
        ------
        ValueError
            If fields are needed and absent, or the lattice is another.
        """
        fields = check_fields(self.needs_fields, fields)
        h, *shift, last = self._shifts(c)
        h = h + self._onehot(c) @ (self.inlet * self.inlet_mask).T
        for weight, s in zip(self.hidden, shift, strict=True):
            h = h + nn.functional.silu(h) @ (weight * self.hidden_mask).T + s
        logits = nn.functional.silu(h) @ (self.head * self.head_mask).T + last
        logits = logits.view(len(c), self.n_sites, self.n_species)[:, self.rank]
        return with_prior(logits, c, fields)

    @torch.no_grad()
    def incremental(self, c: Configurations) -> IncrementalLogits:
        """Logits site after site, for drawing the sites that are unknown in ``c``.

        Raises
        ------
        ValueError
            If the known sites are not the same prefix of the order in every row, or the network
            uses fields.
        """
        if self.needs_fields:
            raise ValueError("with fields every site needs an evaluation of its own; use forward")
        self.check_lattice(c.lattice)
        n_known = int(c.known[0].sum()) if len(c) else 0
        prefix = torch.arange(self.n_sites, device=c.occupations.device) < n_known
        if not bool((c.known[:, self.sites] == prefix).all()):
            raise ValueError(
                "the known sites must be the same prefix of the order in every row; draw rows "
                "with other known sites apart"
            )
        return IncrementalLogits(self, c, n_known)

    def check_lattice(self, lattice: Lattice) -> None:
        """Raise ValueError if the lattice is not the supercell the network was made for."""
        check_cell(self.cell, self.n_sites, lattice)

    def _shifts(self, c: Configurations) -> tuple[Tensor, ...]:
        """What the conditions add to every layer and to the logits, float32."""
        self.check_lattice(c.lattice)
        out = self.conditions(condition_features(c, self.box)).float()
        return out.split([self.width] * self.layers + [self.n_sites * self.n_species], 1)

    def _onehot(self, c: Configurations) -> Tensor:
        """One-hot species in the order, (batch, sites * species), float32; zero if unknown."""
        species = torch.arange(self.n_species, device=c.occupations.device, dtype=torch.int8)
        onehot = c.occupations[:, self.sites, None] == species
        return onehot.flatten(1).to(torch.float32)

    def multiplications(self, n_sites: int) -> int:
        """Every weight once, as sites share none."""
        return self.n_weights

    def bytes_per_row(self, n_sites: int) -> int:
        """Inputs and logits twice, shifts twice, and the hidden layers, float32."""
        wide = 6 * n_sites * self.n_species + (2 * self.layers + 4) * self.width
        return 4 * wide

    def config(self) -> dict:
        """JSON-ready arguments that rebuild the network."""
        return {
            "class": "MaskedMLP",
            "cell": self.cell,
            "n_species": self.n_species,
            "order": self.order,
            "box": self.box.to_dict(),
            "width": self.width,
            "layers": self.layers,
            "needs_fields": self.needs_fields,
        }

    @classmethod
    def from_config(cls, config: dict) -> MaskedMLP:
        """Rebuild from :meth:`config` without ``class``."""
        out = cls.__new__(cls)
        out._setup(**{**config, "box": ConditionRange.from_dict(config["box"])})
        return out


class IncrementalLogits:
    """Logits of a :class:`MaskedMLP` site after site: the arithmetic of one pass in all.

    Units see only sites before them, so each is computed once, as soon as those are known.
    Without gradients. Made by :meth:`MaskedMLP.incremental`.

    Attributes
    ----------
    position : int
        Of the next site in the order: the number of sites before it.
    """

    def __init__(self, network: MaskedMLP, c: Configurations, n_known: int):
        self.network = network
        self.position = n_known
        self._done = 0  # units computed so far
        half = torch.is_autocast_enabled("cpu") and c.occupations.device.type == "cpu"
        dtype = torch.bfloat16 if half else torch.float32
        *self._shift, self._last = (s.T.contiguous() for s in network._shifts(c))
        self._weights = [
            (network.inlet * network.inlet_mask).to(dtype),
            *((w * network.hidden_mask).to(dtype) for w in network.hidden),
        ]
        self._head = (network.head * network.head_mask).to(dtype)
        # units along rows: those that a site sees are one block of memory
        self._seen = [network._onehot(c).T.to(dtype).contiguous()]
        self._seen += [torch.empty_like(s, dtype=dtype) for s in self._shift]

    @torch.no_grad()
    def next(self, c: Configurations) -> Tensor:
        """Logits of the next site, (batch, species), float32, and on to the one after it.

        Parameters
        ----------
        c : Configurations
            The rows this was made for, with all sites before the next one known.
        """
        network, t, k = self.network, self.position, self.network.n_species
        if t > 0:
            before = c.occupations[:, network.order[t - 1]]
            species = torch.arange(k, device=before.device, dtype=before.dtype)
            self._seen[0][(t - 1) * k : t * k] = species[:, None] == before
        start, end, below = self._done, network.first_unit[t + 1], t * k
        if end > start:
            h = 0.0
            for layer, weight in enumerate(self._weights):
                h = h + self._shift[layer][start:end]
                h = h + weight[start:end, :below] @ self._seen[layer][:below]
                self._seen[layer + 1][start:end] = nn.functional.silu(h)
                below = end
        rows = slice(t * k, (t + 1) * k)
        self._done, self.position = end, t + 1
        return (self._last[rows] + self._head[rows, :end] @ self._seen[-1][:end]).T


def _spread(mask: Tensor) -> Tensor:
    """Initial weights uniform within 1 / sqrt(inputs of the unit), as of a dense layer."""
    bound = mask.sum(1, keepdim=True).clamp(min=1).rsqrt()
    return (2 * torch.rand(mask.shape) - 1) * bound
