"""PaiNN: equivariant message passing on the sites of a periodic lattice."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list
from torch import Tensor, nn

from clease_nn.conditions import ConditionRange
from clease_nn.configurations import Configurations
from clease_nn.lattice import UNKNOWN, Lattice
from clease_nn.networks.abstract import AbstractNetwork
from clease_nn.networks.features import global_features, n_global_features
from clease_nn.networks.prior import check_fields, with_prior

__all__ = ["PaiNN"]

_SHELLS = 3  # of neighbours within the default cutoff
_MARGIN = 1.25  # default cutoff over the distance of the last shell: the cosine ends at zero
_TOLERANCE = 1e-3  # angstrom; distances closer than this share a filter
_TEMPORARY = 2**23  # floats in the largest temporary: 32 MB
_ORIGINS = 8  # inequivalent sites up to which one site's logits are computed alone
_BLOCK = 128  # sites whose sums over neighbours are one dense product
_EPSILON = 1e-6  # under the root of a squared length, whose slope at zero must be finite


class PaiNN(AbstractNetwork):
    """Polarizable atom interaction network: scalar and vector features of every site.

    K. T. Schütt, O. T. Unke, M. Gastegger, ICML 2021 (arXiv:2102.03150). Each layer is a message
    block and an update block; with ``u`` the scalars ``s`` after FiLM by the conditions::

        x  = MLP(u)                               split into x_s, x_v, x_d
        s += sum_j W_s(d_ij) x_s(j)
        v += sum_j W_v(d_ij) x_v(j) v(j) + W_d(d_ij) x_d(j) r_ij / d_ij
        a  = MLP(u, |V v|)                        split into a_ss, a_sv, a_vv
        s += a_ss + a_sv <U v, V v>
        v += a_vv U v

    Sums run over all periodic images within the cutoff, those of the site itself included;
    directions that are not periodic have none. The filters W are linear in ``n_radial`` functions
    sin(n pi d / cutoff) / d times the cosine cutoff (1 + cos(pi d / cutoff)) / 2. Node types are
    the species and "unknown". The logits are invariant under rotations, reflections and
    translations of the lattice; weights are not tied to a supercell.

    The paper's network is changed in this: FiLM (Perez et al., AAAI 2018) carries temperature,
    chemical potentials and totals of the known sites into every block; the squashed fields and
    the sublattice are further scalar inputs, and the physical prior is added to the logits
    (:func:`~clease_nn.networks.prior.with_prior`); sums over neighbours are scaled to unit
    variance; x_v of the first and a_vv of the last layer, which cannot act, are left out.

    Parameters
    ----------
    lattice : Lattice
        Any supercell of the parent lattice: supplies species and neighbour distances.
    box : ConditionRange
        Conditions to be served; scales the inputs.
    features, layers, n_radial : int
        Width of scalars and vectors, message passing steps, radial functions.
    cutoff : float, optional
        In angstrom. Default 1.25 times the distance of the third shell of neighbours
        (``lattice.pair_shells(3)``): the filters end smoothly at the cutoff, so a shell just
        inside would hardly count.
    needs_fields : bool
        Use fields as input and prior. True where the energy offers ``partial_fields``.

    Raises
    ------
    ValueError
        If a size or the cutoff is not positive, or no neighbour lies within the cutoff.

    Examples
    --------
    >>> lattice = Lattice.square(4)
    >>> box = ConditionRange((300, 900), [-0.1], [0.1], [[-1.0, 1.0]])
    >>> net = PaiNN(lattice, box, features=8, layers=2, needs_fields=False)
    >>> net.cutoff
    2.5
    >>> net(Configurations.unknown(lattice, box.at([[0.5, 0.5]])), None).shape
    torch.Size([1, 16, 2])
    """

    def __init__(
        self,
        lattice: Lattice,
        box: ConditionRange,
        *,
        features: int = 64,
        layers: int = 3,
        n_radial: int = 20,
        cutoff: float | None = None,
        needs_fields: bool = True,
    ):
        if min(features, layers, n_radial) < 1:
            raise ValueError(
                f"features, layers and n_radial must be positive, got {features}, {layers}, "
                f"{n_radial}"
            )
        if cutoff is None:
            cutoff = _MARGIN * max((k[2] for k in lattice.pair_shells(_SHELLS)), default=1.0)
        if not 0 < cutoff < math.inf:
            raise ValueError(f"cutoff must be a positive distance in angstrom, got {cutoff}")
        d = _edges(lattice, cutoff)[2]
        power = (_radial(d, cutoff, n_radial) * _envelope(d, cutoff)[:, None]) ** 2
        self._setup(
            lattice.species,
            len(np.unique(lattice.sublattices)),
            box,
            features,
            layers,
            n_radial,
            cutoff,
            math.sqrt(n_radial * lattice.n_sites / float(power.sum())),
            needs_fields,
        )

    def _setup(
        self, species, n_sublattices, box, features, layers, n_radial, cutoff, scale, needs_fields
    ):
        super().__init__()
        self.species = tuple(species)
        self.n_sublattices = int(n_sublattices)
        self.box = box
        self.features, self.layers, self.n_radial = int(features), int(layers), int(n_radial)
        self.cutoff, self.scale = float(cutoff), float(scale)
        self.needs_fields = bool(needs_fields)
        k, f = len(self.species), self.features
        width = k + 1 + (self.n_sublattices if self.n_sublattices > 1 else 0)
        self.inlet = nn.Linear(width + (4 * k if self.needs_fields else 0), f)
        self.film = nn.Sequential(
            nn.Linear(n_global_features(k), 2 * f),
            nn.SiLU(),
            nn.Linear(2 * f, 2 * f),
            nn.SiLU(),
            nn.Linear(2 * f, (2 * self.layers + 1) * 2 * f),
        )
        last = self.layers - 1
        self.messages = nn.ModuleList(_Message(f, self.n_radial, n > 0) for n in range(layers))
        self.updates = nn.ModuleList(_Update(f, n < last) for n in range(layers))
        self.head = nn.Linear(f, k)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self._geometry: dict[tuple, _Geometry] = {}

    # ---------------------------------------------------------------- geometry of a supercell
    def _sites(self, lattice: Lattice) -> _Geometry:
        device = self.head.weight.device
        key = (lattice.fingerprint, device)
        if key not in self._geometry:
            if lattice.species != self.species:
                raise ValueError(
                    f"the network was made for species {self.species}, the lattice has "
                    f"{lattice.species}"
                )
            n_sublattices = len(np.unique(lattice.sublattices))
            if n_sublattices != self.n_sublattices:
                raise ValueError(
                    f"the network was made for {self.n_sublattices} sublattices, the lattice has "
                    f"{n_sublattices}; it has another parent"
                )
            self._geometry[key] = _Geometry(
                lattice, self.cutoff, self.n_radial, self.scale, self.n_sublattices, device
            )
        return self._geometry[key]

    # ---------------------------------------------------------------- forward
    def forward(self, c: Configurations, fields: Tensor | None) -> Tensor:
        """Logits, shape (batch, sites, species); see the class for the formula.

        Raises
        ------
        ValueError
            If fields are needed and absent, or the lattice has another parent.
        """
        fields = check_fields(self.needs_fields, fields)
        geometry = self._sites(c.lattice)
        parts = []
        for piece in self._pieces(len(c), c.lattice.n_sites):
            own = None if fields is None else fields[piece]
            s, _, g = self._trunk(c[piece], own, geometry, geometry.order, geometry.steps)
            parts.append(self._logits(s, g)[:, geometry.inverse])
        return with_prior(torch.cat(parts), c, fields)

    @torch.no_grad()
    def at(self, c: Configurations, fields: Tensor | None, site: Tensor) -> Tensor:
        """Logits of one site of each row, (batch, species): only the sites that it hears.

        Rows are translated so that their sites coincide; where translations join only few sites
        (clusters, several sublattices in a cell of few repeats) all logits are computed.
        """
        fields = check_fields(self.needs_fields, fields)
        geometry = self._sites(c.lattice)
        if len(geometry.origins) > _ORIGINS:
            return self(c, fields)[torch.arange(len(c), device=site.device), site]
        out = torch.empty(len(c), len(self.species), device=site.device)
        origin = geometry.origin[site]
        for n, sites in enumerate(geometry.origins):
            order, steps = geometry.cone(sites, self.layers)
            every = (origin == n).nonzero()[:, 0]
            for piece in self._pieces(len(every), len(order)):
                rows = every[piece]
                moved = geometry.shift[site[rows]].long()
                occ = c.occupations[rows].gather(1, moved)
                own = None
                if fields is not None:
                    own = fields[rows].gather(1, moved[:, :, None].expand(-1, -1, fields.shape[2]))
                part = Configurations(c.lattice, c.conditions[rows], occ)
                s, _, g = self._trunk(part, own, geometry, order, steps)
                out[rows] = self._logits(s, g)[:, 0]
        return with_prior(out, c, fields, site)

    def hidden(self, c: Configurations, fields: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scalar and vector features before the head.

        Returns
        -------
        tuple of Tensor, shapes (batch, sites, features) and (batch, sites, 3, features)
            The scalars are invariant when the lattice is rotated, the vectors rotate with it.
        """
        fields = check_fields(self.needs_fields, fields)
        geometry = self._sites(c.lattice)
        s, v, _ = self._trunk(c, fields, geometry, geometry.order, geometry.steps)
        return s.permute(2, 1, 0)[:, geometry.inverse], v.permute(3, 1, 2, 0)[:, geometry.inverse]

    def _pieces(self, batch: int, sites: int) -> list[slice]:
        """Slices of the batch whose vectors are no larger than ``_TEMPORARY``."""
        rows = max(_TEMPORARY // (3 * self.features * sites), 1)
        return [slice(k, k + rows) for k in range(0, max(batch, 1), rows)]

    def _trunk(self, c, fields, geometry, order, steps):
        """Scalars (features, sites, batch), vectors (features, sites, 3, batch), FiLM.

        Starts from the sites in ``order``; each layer keeps those of its step. Features come
        first and rows last: every dense layer is one matrix product and every sum over neighbours
        one product for each feature.
        """
        g = self.film(global_features(c, self.box)).float()
        g = g.T.reshape(2 * self.layers + 1, 2, self.features, 1, len(c))
        s = _dense(self.inlet, self._inputs(c, fields, geometry, order)).float()
        v = None
        for n, (message, update) in enumerate(zip(self.messages, self.updates, strict=True)):
            step = steps[min(n, len(steps) - 1)]
            s, v = message(s, v, g[2 * n], geometry, step)
            s, v = update(s, v, g[2 * n + 1])
        return s, v, g

    def _inputs(self, c, fields, geometry, order) -> Tensor:
        """What each site carries, (inputs, sites, batch), float32."""
        occ = c.occupations.T[order]
        types = torch.arange(UNKNOWN, len(self.species), device=occ.device)
        columns = [(occ == types[:, None, None]).to(torch.float32)]
        if geometry.sublattice is not None:
            columns.append(geometry.sublattice[:, order, None].expand(-1, -1, len(c)))
        if fields is not None:
            own = fields.permute(2, 1, 0)[:, order]
            columns += [torch.tanh(own / 2), torch.asinh(own / 2) / 3]
        return torch.cat(columns)

    def _logits(self, s, g) -> Tensor:
        """(batch, sites, species) float32."""
        return _dense(self.head, _film(s, g[-1])).float().permute(2, 1, 0)

    def check_lattice(self, lattice: Lattice) -> None:
        """Raise ValueError if a lattice has other species, sublattices, or no neighbours."""
        self._sites(lattice)

    def bytes_per_row(self, n_sites: int) -> int:
        """Some fourteen vectors and scalars of every feature, float32, and the logits."""
        return 4 * n_sites * (56 * self.features + 2 * len(self.species))

    # ---------------------------------------------------------------- saving
    def config(self) -> dict:
        """JSON-ready arguments that rebuild the network."""
        return {
            "class": type(self).__name__,
            "species": list(self.species),
            "n_sublattices": self.n_sublattices,
            "box": self.box.to_dict(),
            "features": self.features,
            "layers": self.layers,
            "n_radial": self.n_radial,
            "cutoff": self.cutoff,
            "scale": self.scale,
            "needs_fields": self.needs_fields,
        }

    @classmethod
    def from_config(cls, config: dict) -> PaiNN:
        """Rebuild from :meth:`config` without ``class``."""
        out = cls.__new__(cls)
        config = dict(config)
        config["box"] = ConditionRange.from_dict(config["box"])
        out._setup(**config)
        return out


class _Message(nn.Module):
    """What a site hears from its neighbours; ``vectors`` False where there are none yet."""

    def __init__(self, features: int, n_radial: int, vectors: bool):
        super().__init__()
        parts = 3 if vectors else 2
        self.hidden = _glorot(features, features)
        self.out = _glorot(features, parts * features)
        self.filters = nn.Linear(n_radial, parts * features)
        nn.init.normal_(self.filters.weight, std=n_radial**-0.5)  # sums of unit variance
        nn.init.zeros_(self.filters.bias)

    def forward(self, s, v, g, geometry, step):
        f = len(s)
        x = _dense(self.out, nn.functional.silu(_dense(self.hidden, _film(s, g))))
        # one filter for every distinct distance, times the cosine cutoff, (parts * f, distances)
        w = (self.filters(geometry.radial) * geometry.envelope[:, None]).T
        moved = None if v is None else v * x[2 * f :, :, None]
        ds, dv = [], []
        for block in step.blocks:
            heard = block.sum(w[:f], x[:f])
            pushed = block.push(w[f : 2 * f], x[f : 2 * f])
            if moved is not None:
                pushed = pushed + block.sum(w[2 * f :], moved)
            ds.append(heard)
            dv.append(pushed)
        ds, dv = (p[0] if len(p) == 1 else torch.cat(p, 1) for p in (ds, dv))
        if step.kept is not None:
            s, v = s[:, step.kept], None if v is None else v[:, step.kept]
        return s + ds, dv.float() if v is None else v + dv


class _Update(nn.Module):
    """What scalars and vectors of one site tell each other; ``vectors`` False in the last layer."""

    def __init__(self, features: int, vectors: bool):
        super().__init__()
        self.mix = nn.Parameter(torch.empty(2 * features, features))
        nn.init.normal_(self.mix, std=features**-0.5)
        self.hidden = _glorot(2 * features, features)
        self.out = _glorot(features, (3 if vectors else 2) * features)

    def forward(self, s, v, g):
        f = len(s)
        uv, vv = (self.mix @ v.flatten(1)).view(2, *v.shape)
        length = (vv.float().square().sum(2) + _EPSILON).sqrt()
        a = torch.cat([_film(s, g), length])
        a = _dense(self.out, nn.functional.silu(_dense(self.hidden, a)))
        s = s + a[:f] + a[f : 2 * f] * (uv * vv).sum(2)
        return s, v + a[2 * f :, :, None] * uv if len(a) > 2 * f else v


class _Block:
    """Neighbours of some sites as dense arrays: sums over them are one product for each feature.

    Weights of all edges between two sites are added up first, so that neither edges nor periodic
    images ever carry features.

    Parameters
    ----------
    n_rows : int
        Sites that hear.
    columns : Tensor, shape (m,), or None
        Which of the sites at hand they hear; None: all.
    counts : Tensor, shape (distances, n_rows * m)
        How many images of a site lie at each distance.
    units : Tensor, shape (distances, n_rows * 3 * m)
        Sum of the unit vectors to them.
    """

    def __init__(self, n_rows, columns, counts, units):
        self.n_rows, self.columns, self.counts, self.units = n_rows, columns, counts, units

    def sum(self, w: Tensor, x: Tensor) -> Tensor:
        """``sum_j W(d_ij) x_j`` with w (features, distances) and x (features, sites, ...)."""
        x = self._heard(x)
        kernel = (w @ self.counts).view(len(w), self.n_rows, -1)
        return torch.bmm(kernel, x.flatten(2)).view(len(w), self.n_rows, *x.shape[2:])

    def push(self, w: Tensor, x: Tensor) -> Tensor:
        """``sum_j W(d_ij) x_j r_ij / d_ij``, (features, rows, 3, batch)."""
        x = self._heard(x)
        kernel = (w @ self.units).view(len(w), 3 * self.n_rows, -1)
        return torch.bmm(kernel, x).view(len(w), self.n_rows, 3, x.shape[2])

    def _heard(self, x: Tensor) -> Tensor:
        return x if self.columns is None else x.index_select(1, self.columns)


@dataclass(frozen=True, eq=False)
class _Step:
    """Which of the sites at hand a layer keeps (None: all), and the blocks that they make up."""

    kept: Tensor | None
    blocks: list[_Block]


class _Geometry:
    """What a network needs of one supercell on one device.

    Attributes
    ----------
    order, inverse : Tensor, shape (sites,)
        Sites in the order of the blocks, and back.
    steps : list of _Step
        Sums over neighbours for all sites, the same in each layer.
    radial : Tensor, shape (distances, n_radial)
        Radial functions of the distinct distances, scaled.
    envelope : Tensor, shape (distances,)
        Cosine cutoff.
    sublattice : Tensor, shape (sublattices, sites), or None
        One-hot sublattice where there are several.
    origins : list of int
        One site of each set that the translations join.
    origin : Tensor, shape (sites,)
        Which of them a site can be moved to.
    shift : Tensor, shape (sites, sites), int32
        ``occupations[shift[i]]`` is the configuration with site i moved to its origin.
    """

    def __init__(self, lattice: Lattice, cutoff, n_radial, scale, n_sublattices, device):
        self._i, self._j, d, self._unit = _edges(lattice, cutoff)
        values, self._kind = np.unique(d, return_inverse=True)
        self._device, self._n = device, lattice.n_sites
        self.radial = self._tensor(scale * _radial(values, cutoff, n_radial))
        self.envelope = self._tensor(_envelope(values, cutoff))
        self.sublattice = None
        if n_sublattices > 1:
            labels = np.unique(lattice.sublattices, return_inverse=True)[1]
            self.sublattice = self._tensor(np.eye(n_sublattices)[:, labels])
        groups = _bisect(lattice.positions, np.arange(self._n))
        order = np.concatenate(groups)
        blocks = [self._block(g, self._hears(g) if len(groups) > 1 else order, order)
                  for g in groups]  # fmt: skip
        self.steps = [_Step(None, blocks)]
        self.order, self.inverse = self._index(order), self._index(np.argsort(order))
        self._lattice = lattice
        self._cones: dict[int, tuple] = {}

    @cached_property
    def _moves(self) -> tuple[list[int], Tensor, Tensor]:
        """``origins``, ``origin`` and ``shift``."""
        translations = self._lattice.translations
        origin, shift = np.full(self._n, -1), np.zeros((self._n, self._n), dtype=np.int32)
        origins = []
        for site in range(self._n):
            if origin[site] < 0:
                images = translations[:, site]
                origin[images], shift[images] = len(origins), translations
                origins.append(site)
        return origins, self._index(origin), torch.as_tensor(shift, device=self._device)

    @property
    def origins(self) -> list[int]:
        return self._moves[0]

    @property
    def origin(self) -> Tensor:
        return self._moves[1]

    @property
    def shift(self) -> Tensor:
        return self._moves[2]

    def cone(self, site: int, layers: int) -> tuple[Tensor, list[_Step]]:
        """Sites that one site hears through all layers, and the step of each layer.

        The last step keeps the site alone, each one before also what the next one hears.
        """
        if site not in self._cones:
            sets = [np.array([site])]
            for _ in range(layers):
                sets.append(np.union1d(sets[-1], self._hears(sets[-1])))
            sets.reverse()
            steps = [
                _Step(self._index(np.searchsorted(a, b)), [self._block(b, a, a)])
                for a, b in pairwise(sets)
            ]
            self._cones[site] = (self._index(sets[0]), steps)
        return self._cones[site]

    def _hears(self, sites: np.ndarray) -> np.ndarray:
        """Sites with an image within the cutoff of one of ``sites``, sorted."""
        return np.unique(self._j[np.isin(self._i, sites)])

    def _block(self, rows: np.ndarray, heard: np.ndarray, at_hand: np.ndarray) -> _Block:
        """Sums over the sites ``heard`` (all neighbours of ``rows``) among those ``at_hand``."""
        a, b, place = (np.full(self._n, -1) for _ in range(3))
        for where, sites in ((a, rows), (b, heard), (place, at_hand)):
            where[sites] = np.arange(len(sites))
        mine = np.isin(self._i, rows)
        at = (self._kind[mine], a[self._i[mine]], b[self._j[mine]])
        counts = np.zeros((len(self.radial), len(rows), len(heard)))
        units = np.zeros((len(self.radial), len(rows), 3, len(heard)))
        np.add.at(counts, at, 1.0)
        np.add.at(units.transpose(0, 1, 3, 2), at, self._unit[mine])
        columns = None if heard is at_hand else self._index(place[heard])
        counts, units = (self._tensor(x.reshape(len(x), -1)) for x in (counts, units))
        return _Block(len(rows), columns, counts, units)

    def _tensor(self, x) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(x), dtype=torch.float32, device=self._device)

    def _index(self, x) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(x), dtype=torch.int64, device=self._device)


def _edges(lattice: Lattice, cutoff: float):
    """Neighbours within the cutoff: sites i and j, distances (angstrom), unit vectors i to j.

    Every periodic image is an edge of its own. Distances within 1e-3 angstrom become one, and
    those as close to the cutoff are beyond it.
    """
    cell = lattice.template.cell.complete()
    sites = Atoms(positions=lattice.positions, cell=cell, pbc=lattice.template.pbc)
    # a shell at the cutoff itself, where the filters end, is in or out by rounding: out
    i, j, d, vector = neighbor_list("ijdD", sites, max(cutoff - _TOLERANCE, 0.0))
    if len(d) == 0:
        nearest = min((k[2] for k in lattice.pair_shells(1)), default=None)
        if nearest is None:
            raise ValueError("the lattice has a single site without neighbours at any distance")
        raise ValueError(
            f"no site has a neighbour within the cutoff of {cutoff:g} angstrom, the nearest is "
            f"{nearest:g} angstrom away: make the network with a larger cutoff, or, where it was "
            "made for another parent lattice, use it there"
        )
    values, index = np.unique(d, return_inverse=True)
    group = np.concatenate([[0], np.cumsum(np.diff(values) > _TOLERANCE)])
    mean = np.bincount(group, values) / np.bincount(group)
    return i, j, mean[group][index], vector / d[:, None]


def _radial(d: np.ndarray, cutoff: float, n: int) -> np.ndarray:
    """sin(k pi d / cutoff) / d for k = 1..n, shape (distances, n)."""
    return np.sin(np.pi * np.arange(1, n + 1) * d[:, None] / cutoff) / d[:, None]


def _envelope(d: np.ndarray, cutoff: float) -> np.ndarray:
    """Cosine cutoff, 1 at zero distance and 0 at the cutoff."""
    return 0.5 * (1 + np.cos(np.pi * np.minimum(d / cutoff, 1.0)))


def _bisect(positions: np.ndarray, sites: np.ndarray) -> list[np.ndarray]:
    """Compact groups of at most ``_BLOCK`` sites, halved along the longest extent."""
    if len(sites) <= _BLOCK:
        return [sites]
    own = positions[sites]
    axis = np.ptp(own, axis=0).argmax()
    ranked = sites[np.argsort(own[:, axis], kind="stable")]
    half = len(sites) // 2
    return _bisect(positions, ranked[:half]) + _bisect(positions, ranked[half:])


def _dense(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer on features that come first: (in, ...) to (out, ...)."""
    return torch.addmm(layer.bias[:, None], layer.weight, x.flatten(1)).view(
        len(layer.bias), *x.shape[1:]
    )


def _film(s: Tensor, g: Tensor) -> Tensor:
    """``s * (1 + scale) + shift`` with g (2, features, 1, batch)."""
    return torch.addcmul(g[1], s, 1 + g[0])


def _glorot(inputs: int, outputs: int) -> nn.Linear:
    """A dense layer with the paper's initial weights (Glorot, uniform) and no shift."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
