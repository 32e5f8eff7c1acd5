"""The lattice Transformer: attention between all sites of one supercell."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from clease_nn.conditions import ConditionRange
from clease_nn.configurations import Configurations
from clease_nn.lattice import Lattice
from clease_nn.networks.abstract import AbstractNetwork
from clease_nn.networks.cell import check_cell
from clease_nn.networks.features import global_features, n_global_features
from clease_nn.networks.prior import check_fields, with_prior
from clease_nn.networks.waves import (
    condition_waves,
    n_condition_waves,
    site_coordinates,
    wave_vectors,
)

__all__ = ["LatticeTransformer"]


class LatticeTransformer(AbstractNetwork):
    """Transformer over the sites of one supercell, with rotary positions of integer frequency.

    After the network of the long form of the any-order and marginalization papers (Du et al.,
    arXiv:2603.14695): one token a site (its species or unknown, and its sublattice), pre-norm
    blocks of attention and GELU feed-forward, a three-layer head that starts at zero. Octaves of
    T and mu (:func:`~clease_nn.networks.waves.condition_waves`) and totals of the known sites
    are added to every token and scale and shift every normalised input of the blocks.

    Positions enter by rotary embedding (Su et al., arXiv:2104.09864): pair p of a query or key
    at fractional coordinate f of the supercell is rotated by ``2 pi m_p . f`` with an integer
    vector ``m_p``. Attention then sees differences of positions only, and those modulo the
    supercell: every lattice translation of the supercell is an exact symmetry. Along axes that
    are not periodic, coordinates run from 0 to 1/2 between the outermost sites, so that the two
    ends differ. Vectors are chosen by :func:`~clease_nn.networks.waves.wave_vectors`.

    Weights mean something on this supercell only, and cost grows with the square of the sites.
    With fields, squashed fields are inputs of the tokens and the physical prior is added
    (:func:`~clease_nn.networks.prior.with_prior`).

    Parameters
    ----------
    lattice : Lattice
        The supercell to be served.
    box : ConditionRange
        Conditions to be served; scales the inputs.
    width, blocks, heads : int
        Size of a token, number of blocks, attention heads in each.
    needs_fields : bool
        Use fields as input and prior. True where the energy offers ``partial_fields``.
    max_sites : int
        Largest number of sites that is accepted.

    Raises
    ------
    ValueError
        If a size is not positive, ``heads`` does not divide ``width``, the size of a head is odd,
        or the lattice has more than ``max_sites`` sites.

    Examples
    --------
    >>> lattice = Lattice.square(4)
    >>> box = ConditionRange((300, 900), [-0.1], [0.1], [[-1.0, 1.0]])
    >>> net = LatticeTransformer(lattice, box, width=16, blocks=1, heads=2, needs_fields=False)
    >>> net(Configurations.unknown(lattice, box.at([[0.5, 0.5]])), None).shape
    torch.Size([1, 16, 2])
    """

    def __init__(
        self,
        lattice: Lattice,
        box: ConditionRange,
        *,
        width: int = 256,
        blocks: int = 4,
        heads: int = 8,
        needs_fields: bool = True,
        max_sites: int = 1024,
    ):
        if min(width, blocks, heads) < 1:
            raise ValueError(
                f"width, blocks and heads must be positive, got {width}, {blocks}, {heads}"
            )
        if width % heads:
            raise ValueError(f"heads must divide width, got {heads} heads and width {width}")
        if width // heads % 2:
            raise ValueError(
                f"the size of a head, width / heads, must be even (rotary pairs), got {width} / "
                f"{heads} = {width // heads}"
            )
        if lattice.n_sites > max_sites:
            raise ValueError(
                f"attention between {lattice.n_sites} sites is more than max_sites = {max_sites}; "
                "its cost grows with the square of the sites: use LatticeConvolution or PaiNN, or "
                "raise max_sites"
            )
        coordinates, metric = site_coordinates(lattice)
        vectors = wave_vectors(coordinates, metric, heads, width // heads // 2)
        _, sublattices = np.unique(lattice.sublattices, return_inverse=True)
        self._setup(
            lattice.fingerprint,
            lattice.species,
            sublattices.tolist(),
            coordinates.tolist(),
            vectors.tolist(),
            box,
            width,
            blocks,
            heads,
            needs_fields,
        )

    def _setup(
        self, cell, species, sublattices, coordinates, vectors, box, width, blocks,
        heads, needs_fields,
    ):  # fmt: skip
        super().__init__()
        self.cell = str(cell)
        self.species = tuple(species)
        self.sublattices, self.coordinates, self.vectors = sublattices, coordinates, vectors
        self.box = box
        self.width, self.n_blocks, self.heads = int(width), int(blocks), int(heads)
        self.needs_fields = bool(needs_fields)
        k = len(self.species)
        kinds = torch.as_tensor(sublattices)
        several = int(kinds.max()) + 1 if int(kinds.max()) > 0 else 0
        onehot = (
            functional.one_hot(kinds, several).float() if several else torch.empty(len(kinds), 0)
        )
        self.register_buffer("sublattice", onehot, persistent=False)
        turns = np.einsum("sa,hpa->shp", np.array(coordinates), np.array(vectors, dtype=float))
        phase = torch.as_tensor(2 * np.pi * (turns - np.round(turns)))
        # tables (sites, heads, head size): a pair is one of the first and one of the second half
        cos, sin = phase.cos().float(), phase.sin().float()
        self.register_buffer("cos", torch.cat([cos, cos], 2), persistent=False)
        self.register_buffer("sin", torch.cat([-sin, sin], 2), persistent=False)
        self.inlet = nn.Linear(k + 1 + several + (4 * k if self.needs_fields else 0), width)
        self.embed = nn.Sequential(
            nn.Linear(n_condition_waves(k) + n_global_features(k), width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
        )
        self.to_tokens = nn.Linear(width, width)
        self.modulate = nn.Linear(width, (2 * self.n_blocks + 1) * 2 * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        self.blocks = nn.ModuleList(_Block(width, self.heads, blocks) for _ in range(blocks))
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(),
            nn.Linear(width, k),
        )  # fmt: skip
        nn.init.zeros_(self.head[-1].weight)
        nn.init.zeros_(self.head[-1].bias)

    def forward(self, c: Configurations, fields: Tensor | None) -> Tensor:
        """Logits, shape (batch, sites, species), float32.

        Raises
        ------
        ValueError
            If fields are needed and absent, or the lattice is another supercell.
        """
        fields = check_fields(self.needs_fields, fields)
        h, g = self._inputs(c, fields)
        for k, block in enumerate(self.blocks):
            h = block(h, g[:, 2 * k], g[:, 2 * k + 1], self.cos, self.sin)
        return with_prior(self.head(_norm(h, g[:, -1])).float(), c, fields)

    @torch.no_grad()
    def at(self, c: Configurations, fields: Tensor | None, site: Tensor) -> Tensor:
        """Logits of one site of each row, (batch, species): the last block at that site only."""
        fields = check_fields(self.needs_fields, fields)
        h, g = self._inputs(c, fields)
        for k, block in enumerate(self.blocks[:-1]):
            h = block(h, g[:, 2 * k], g[:, 2 * k + 1], self.cos, self.sin)
        h = self.blocks[-1].at(h, g[:, -3], g[:, -2], self.cos, self.sin, site)
        logits = self.head(_norm(h, g[:, -1])).float()[:, 0]
        return with_prior(logits, c, fields, site)

    def check_lattice(self, lattice: Lattice) -> None:
        """Raise ValueError if the lattice is not the supercell the network was made for."""
        check_cell(self.cell, len(self.coordinates), lattice)

    def _inputs(self, c: Configurations, fields: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens (batch, sites, width), and scales and shifts (batch, uses, 2, 1, width)."""
        self.check_lattice(c.lattice)
        batch = len(c)
        kinds = torch.arange(-1, len(self.species), device=c.occupations.device)
        columns = [(c.occupations[:, :, None] == kinds).to(torch.float32)]
        if self.sublattice.shape[1]:
            columns.append(self.sublattice.expand(batch, -1, -1))
        if fields is not None:
            fields = fields.to(torch.float32)
            columns += [torch.tanh(fields / 2), torch.asinh(fields / 2) / 3]
        totals = torch.cat(
            [condition_waves(c.conditions, self.box), global_features(c, self.box)], 1
        )
        g = self.embed(totals)
        h = self.inlet(torch.cat(columns, -1)).float() + self.to_tokens(g).float()[:, None]
        return h, self.modulate(g).float().view(batch, 2 * self.n_blocks + 1, 2, 1, self.width)

    def bytes_per_row(self, n_sites: int) -> int:
        """Tokens, queries, keys and values as they are, rotated and in order of heads, float32."""
        return 4 * n_sites * 20 * self.width

    def config(self) -> dict:
        """JSON-ready arguments that rebuild the network."""
        return {
            "class": type(self).__name__,
            "cell": self.cell,
            "species": list(self.species),
            "sublattices": self.sublattices,
            "coordinates": self.coordinates,
            "vectors": self.vectors,
            "box": self.box.to_dict(),
            "width": self.width,
            "blocks": self.n_blocks,
            "heads": self.heads,
            "needs_fields": self.needs_fields,
        }

    @classmethod
    def from_config(cls, config: dict) -> LatticeTransformer:
        """Rebuild from :meth:`config` without ``class``."""
        out = cls.__new__(cls)
        config = dict(config)
        config["box"] = ConditionRange.from_dict(config["box"])
        out._setup(**config)
        return out


class _Block(nn.Module):
    """``h + attention(norm(h))``, then ``h + feed_forward(norm(h))``; h stays float32."""

    def __init__(self, width: int, heads: int, blocks: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        with torch.no_grad():  # every block adds the like: the sum keeps its size
            for layer in (self.out, self.down):
                layer.weight /= math.sqrt(2 * blocks)

    def forward(self, h: Tensor, g1: Tensor, g2: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Hidden state (batch, sites, width) after the block; ``g1``, ``g2`` for :func:`_norm`."""
        batch, sites, width = h.shape
        qkv = self.qkv(_norm(h, g1)).view(batch, sites, 3, self.heads, width // self.heads)
        qk = _rotate(qkv[:, :, :2], cos[:, None], sin[:, None])
        mixed = _attention(*(x.transpose(1, 2) for x in (*qk.unbind(2), qkv[:, :, 2])))
        h = h + self.out(mixed.transpose(1, 2).reshape(batch, sites, width))
        return self._feed_forward(h, g2)

    def at(self, h, g1, g2, cos, sin, site: Tensor) -> Tensor:
        """:meth:`forward` at one site of each row, (batch, 1, width).

        Values are never formed: the attention weights first average the inputs of each head.
        """
        batch, sites, width = h.shape
        u = _norm(h, g1)
        rows = torch.arange(batch, device=h.device)
        weight, bias = self.qkv.weight, self.qkv.bias
        q = functional.linear(u[rows, site], weight[:width], bias[:width])
        q = _rotate(q.view(batch, self.heads, width // self.heads), cos[site], sin[site])
        k = functional.linear(u, weight[width : 2 * width], bias[width : 2 * width])
        k = _rotate(k.view(batch, sites, self.heads, width // self.heads), cos, sin)
        scores = torch.einsum("bhd,bshd->bhs", q, k).float() / math.sqrt(q.shape[-1])
        mean = torch.bmm(scores.softmax(-1), u).transpose(0, 1)  # (heads, batch, width)
        values = weight[2 * width :].view(self.heads, -1, width).transpose(1, 2)
        mixed = torch.bmm(mean, values).transpose(0, 1).reshape(batch, width) + bias[2 * width :]
        return self._feed_forward((h[rows, site] + self.out(mixed))[:, None], g2)

    def _feed_forward(self, h: Tensor, g: Tensor) -> Tensor:
        return h + self.down(functional.gelu(self.up(_norm(h, g))))


def _norm(h: Tensor, g: Tensor) -> Tensor:
    """Layer norm, scaled and shifted by ``g`` (batch, 2, 1, width)."""
    return torch.addcmul(g[:, 1], functional.layer_norm(h, h.shape[-1:]), 1 + g[:, 0])


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs ``x[..., p], x[..., half + p]``; ``sin`` carries the signs."""
    swapped = x.roll(x.shape[-1] // 2, -1)
    return torch.addcmul(x * cos.to(x.dtype), swapped, sin.to(x.dtype))


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention (batch, heads, sites, head size), in float32 on a CPU.

    Values and gradient of torch's bfloat16 kernel took 3 to 4 times as long there together.
    """
    if q.device.type != "cpu":
        return functional.scaled_dot_product_attention(q, k, v)
    with torch.autocast("cpu", enabled=False):
        out = functional.scaled_dot_product_attention(q.float(), k.float(), v.float())
    return out.to(v.dtype)
