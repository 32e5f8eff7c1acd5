r"""Neural moves at fixed composition: redraw a block of sites with the species it has.

A block B of sites and an order of its sites are chosen without regard to the configuration. The
sites are cleared and redrawn one by one from the model's conditionals, restricted to the species
that the block still has to place and tilted so that the sites left are expected to take them all:

.. math::

    q'(y_B | x_{rest}) = \prod_t
        \frac{q(y_t | known)\, e^{\lambda_t(y_t)}}{\sum_a q(a | known)\, e^{\lambda_t(a)}}

where :math:`\lambda_t(a)` solves :math:`\sum_j q_j(a | known) e^{\lambda_t(a)} / z_j = n_t(a)`, the
sum over the sites left (a few Sinkhorn iterations; :math:`-\infty` where :math:`n_t(a) = 0`),
with :math:`n_t` what is left of the block's species before draw t. The same order scores the way
back, so the move is accepted with probability

.. math:: \min\{1, \exp[-(E_y - E_x)/kT]\; q'(x_B | x_{rest}) / q'(y_B | x_{rest})\}.

The composition does not change, so chemical potentials cancel; a model still takes them as a
condition, and any value gives exact results, as does any tilt.

Where the block is all sites, proposals do not depend on the configuration and are drawn in
batches. The order of drawing is then part of the state, as in :mod:`clease_nn.sampler.moves`.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import torch

from clease_nn.compute import compute_policy
from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.io import TrainedModel
from clease_nn.lattice import UNKNOWN, Lattice
from clease_nn.models import AbstractOccupationModel, Fields
from clease_nn.sampler.orders import check_any_order
from clease_nn.sampling.regions import Regions

__all__ = ["CanonicalBlockMoves", "match_composition"]

_TILTS = 6  # Sinkhorn iterations; more would only change the acceptance
_FLOOR = -60.0  # ln q of a species that the model rules out but the block may need
_GRID = {1: 11, 2: 5}  # chemical potentials tried along each axis; more axes: 3
_ROUNDS = 2
_CHUNK = 128  # network rows evaluated together


class CanonicalBlockMoves:
    """Exact Metropolis-Hastings moves at fixed composition with a model's proposals.

    Sites with the same reachable species form a group, and a block keeps the species it has in
    each of its groups: it can always be completed, and no species crosses sublattices.

    Parameters
    ----------
    model : AbstractOccupationModel
        With conditionals for any set of known sites; need not be good.
    ensemble : SemiGrandCanonical
        Its energy decides :meth:`step`; :meth:`propose` only uses its fields, if the model does.
    lattice : Lattice
    conditions : Conditions
        One row. The chemical potentials guide the model and do not change what is sampled;
        :func:`match_composition` finds good ones.
    rng : torch.Generator
        Source of all randomness, on the CPU.
    block_size : int, optional
        Sites redrawn in one move, random or compact, at least 2. Default: all that can change,
        which is accepted surprisingly often and leaves ordered domains that blocks cannot.
    reachable : ndarray of bool, shape (sites, species), optional
        Species that the chain may put on each site; sites with fewer than two stay. Default:
        what the lattice allows.
    groups : array_like of int, shape (sites,), optional
        Finer groups to keep the composition of, such as the sublattices of a host.
    batch_size : int
        Most proposals of all sites drawn together.

    Attributes
    ----------
    expected : int
        Moves still to come: no more proposals than that are drawn ahead.
    acceptance : float
        Acceptance probability of the last :meth:`step`.

    Raises
    ------
    ValueError
        If there is not one condition, the block is smaller than 2, shapes do not match, or the
        model has one order of drawing.

    Examples
    --------
    >>> from clease_nn.conditions import ConditionRange
    >>> from clease_nn.models import AnyOrderARM
    >>> from clease_nn.networks import LatticeConvolution
    >>> lattice = Lattice.square(3)
    >>> box = ConditionRange((300, 900), [-0.1], [0.1], [[-1.0, 1.0]])
    >>> model = AnyOrderARM(LatticeConvolution(lattice, box, needs_fields=False))
    >>> zero = SemiGrandCanonical(lambda lattice, occupations: torch.zeros(len(occupations)))
    >>> moves = CanonicalBlockMoves(
    ...     model, zero, lattice, box.grid(1, 1), torch.Generator().manual_seed(1), 4
    ... )
    >>> x = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1], dtype=np.int8)
    >>> y, log_ratio = moves.propose(x)
    >>> int((y == 0).sum()), abs(log_ratio) < 1e-12  # an untrained model is uniform
    (4, True)
    """

    def __init__(
        self,
        model: AbstractOccupationModel,
        ensemble: SemiGrandCanonical,
        lattice: Lattice,
        conditions: Conditions,
        rng: torch.Generator,
        block_size: int | None = None,
        *,
        reachable: np.ndarray | None = None,
        groups=None,
        batch_size: int = 64,
    ):
        if len(conditions) != 1:
            raise ValueError(f"neural moves need one condition, got {len(conditions)}")
        if block_size is not None and block_size < 2:
            raise ValueError(
                f"block_size must be at least 2, got {block_size}: one site alone has nothing to "
                "exchange at fixed composition"
            )
        check_any_order(model, "moves at fixed composition")
        self.model, self.ensemble, self.lattice = model, ensemble, lattice
        self.conditions, self.rng, self.block_size = conditions, rng, block_size
        self.reachable = np.array(lattice.allowed if reachable is None else reachable, dtype=bool)
        groups = np.zeros(lattice.n_sites, dtype=np.int64) if groups is None else groups
        groups = np.asarray(groups)
        if self.reachable.shape != lattice.allowed.shape or groups.shape != (lattice.n_sites,):
            raise ValueError(
                f"reachable must have shape {lattice.allowed.shape} and groups "
                f"({lattice.n_sites},), got {self.reachable.shape} and {groups.shape}"
            )
        self.free = torch.as_tensor(np.flatnonzero(self.reachable.sum(1) > 1))
        key = np.column_stack([groups, self.reachable])
        self._group = np.unique(key, axis=0, return_inverse=True)[1].ravel()
        self._blocks: dict[bytes, Regions] = {}
        self.batch_size = self.expected = batch_size
        self._ahead: deque = deque()
        self._ahead_for: tuple | None = None
        self._known: tuple[np.ndarray, float] | None = None
        self._proposed: tuple[np.ndarray, float] | None = None
        self._fields: Fields | None = ensemble.fields if model.needs_fields else None
        self.acceptance = 0.0

    def propose(
        self, occupations: np.ndarray, among: np.ndarray | None = None
    ) -> tuple[np.ndarray, float]:
        """A proposal from a configuration x (sites,), for a chain that decides by itself.

        No energy is evaluated. Call :meth:`accepted` if the chain takes it: a proposal of all
        sites then need not be scored again.

        Parameters
        ----------
        occupations : ndarray, shape (sites,), int8
        among : ndarray of int, optional
            Active sites to choose the block from. Their choice must not depend on the
            configuration. Default: all sites that can change.

        Returns
        -------
        occupations : ndarray, shape (sites,), int8
            The proposal y, of the same composition; possibly x itself.
        log_ratio : float
            ln q'(x|y) - ln q'(y|x), to be added to -(E_y - E_x)/kT.

        Raises
        ------
        ValueError
            If a site that can change carries a species that cannot be reached.
        """
        x = np.array(occupations, dtype=np.int8)
        blocks = self._among(among)
        if self.block_size is not None and self.block_size < len(blocks.sites):
            self._proposed = None
            sites = self._shuffled(blocks.one(self.block_size, self.rng))
            self._check(x, sites)
            with compute_policy(threads=1):
                y, log_q_y = self._draw(x, sites[None])
                same = np.array_equal(y[0], x)
                return y[0], 0.0 if same else self._score(x, sites) - float(log_q_y[0])
        outside = np.delete(x, blocks.sites.numpy()).tobytes()
        key = blocks.sites.numpy().tobytes(), outside, self._quota(x, blocks.sites).tobytes()
        if key != self._ahead_for:
            self._ahead.clear()
            self._known, self._ahead_for = None, key
        if not self._ahead:
            self._ahead.extend(self.draw(x, min(self.batch_size, max(self.expected, 1)), among))
        self.expected = max(self.expected - 1, 1)
        y, log_q_y = self._proposed = self._ahead.popleft()
        if self._known is None or not np.array_equal(self._known[0], x):
            self._known = x, self.score(x, among)
        return y, self._known[1] - log_q_y

    def accepted(self) -> None:
        """Say that the last proposal of :meth:`propose` was accepted."""
        self._known, self._proposed = self._proposed or self._known, None

    def draw(
        self, occupations: np.ndarray, n: int, among: np.ndarray | None = None
    ) -> list[tuple[np.ndarray, float]]:
        """Independent redrawings (y, ln q'(y)) of all sites, each in an order of its own."""
        x, sites = np.array(occupations, dtype=np.int8), self._among(among).sites
        self._check(x, sites)
        orders = torch.stack([self._shuffled(sites) for _ in range(n)])
        with compute_policy(threads=1):
            y, log_q = self._draw(x, orders)
        return list(zip(y, log_q.tolist(), strict=True))

    def score(self, occupations: np.ndarray, among: np.ndarray | None = None) -> float:
        """ln q' of all sites of a configuration in a fresh order."""
        sites = self._shuffled(self._among(among).sites)
        with compute_policy(threads=1):
            return self._score(np.array(occupations, dtype=np.int8), sites)

    def step(self, occupations: np.ndarray, log_target: float) -> tuple[bool, np.ndarray, float]:
        """One move from a configuration (sites,) with known ``-(E - mu.N)/kT``.

        Returns
        -------
        accepted : bool
        occupations : ndarray, shape (sites,), int8
            The next configuration, the same one where the move was rejected.
        log_target : float
            Its ``-(E - mu.N)/kT``.
        """
        y, log_ratio = self.propose(occupations)
        c = Configurations(self.lattice, self.conditions, torch.as_tensor(y)[None])
        log_target_y = float(self.ensemble.score(c).log_target)
        self.acceptance = float(np.exp(min(0.0, log_target_y - log_target + log_ratio)))
        if float(torch.rand(1, generator=self.rng, dtype=torch.float64)) >= self.acceptance:
            return False, occupations, log_target
        self.accepted()
        return True, y, log_target_y

    # ------------------------------------------------------------------ the block
    def _among(self, among: np.ndarray | None) -> Regions:
        key = b"" if among is None else np.sort(among).tobytes()
        if key not in self._blocks:
            free = self.free
            if among is not None:
                free = free[torch.isin(free, torch.as_tensor(np.sort(among)))]
            self._blocks[key] = Regions(self.lattice, free)
        return self._blocks[key]

    def _shuffled(self, sites: torch.Tensor) -> torch.Tensor:
        return sites[torch.randperm(len(sites), generator=self.rng)]

    def _check(self, x: np.ndarray, sites: torch.Tensor) -> None:
        wrong = np.flatnonzero(~self.reachable[sites.numpy(), x[sites.numpy()]])
        if len(wrong):
            site = int(sites[int(wrong[0])])
            raise ValueError(
                f"site {site} carries {self.lattice.species[int(x[site])]}, which moves may not "
                "put there; change the configuration or what is reachable"
            )

    def _quota(self, x: np.ndarray, sites: torch.Tensor) -> np.ndarray:
        """What a block has to place in each group, (groups, species)."""
        left = np.zeros((int(self._group.max()) + 1, self.lattice.n_species), dtype=np.int64)
        np.add.at(left, (self._group[sites.numpy()], x[sites.numpy()]), 1)
        return left

    def _draw(self, x: np.ndarray, orders: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
        """Redraw a block once in each order (rows, sites): configurations and ln q'."""
        n, rows = len(orders), torch.arange(len(orders))
        left = torch.as_tensor(self._quota(x, orders[0])).repeat(n, 1, 1)
        group = torch.as_tensor(self._group)
        now = torch.as_tensor(x).repeat(n, 1)
        now[:, orders[0]] = UNKNOWN
        total = torch.zeros(n, dtype=torch.float64)
        for site in orders.T:
            quota = left[rows, group[site]]
            drawn = quota.argmax(1)
            if bool(((quota > 0).sum(1) > 1).any()):  # else nothing is to be decided
                log_q = self._conditionals(now, site, quota)
                u = torch.rand(n, 1, generator=self.rng, dtype=torch.float64)
                cumulative = log_q.exp().cumsum(1)
                drawn = (u * cumulative[:, -1:] >= cumulative).sum(1)
                last = ((quota > 0) * torch.arange(quota.shape[1])).max(1).values
                drawn = torch.minimum(drawn, last)
                total += log_q[rows, drawn]
            now[rows, site] = drawn.to(torch.int8)
            left[rows, group[site], drawn] -= 1
        return now.numpy(), total

    def _score(self, x: np.ndarray, sites: torch.Tensor) -> float:
        """ln q' of the species that a block has, in the order of ``sites``; passes in batches."""
        left = self._quota(x, sites)
        given = torch.as_tensor(x).clone()
        given[sites] = UNKNOWN
        quotas, partials, at = [], [], []
        for site in sites.tolist():
            quota = left[self._group[site]]
            if (quota > 0).sum() > 1:
                quotas.append(quota.copy())
                partials.append(given.clone())
                at.append(site)
            given[site] = int(x[site])
            quota[x[site]] -= 1
        total = 0.0
        for k in range(0, len(at), _CHUNK):
            here = torch.as_tensor(at[k : k + _CHUNK])
            quota = torch.as_tensor(np.array(quotas[k : k + _CHUNK]))
            log_q = self._conditionals(torch.stack(partials[k : k + _CHUNK]), here, quota)
            total += float(log_q.gather(1, torch.as_tensor(x[here.numpy()]).long()[:, None]).sum())
        return total

    @torch.no_grad()
    def _conditionals(self, partial, site: torch.Tensor, quota: torch.Tensor) -> torch.Tensor:
        """ln q' of one site of each partial configuration, (rows, species)."""
        c = Configurations(self.lattice, self.conditions.repeat(len(partial)), partial)
        fields = None if self._fields is None else self._fields(c)
        training = self.model.training
        self.model.eval()
        try:
            log_q = self.model.log_conditionals(c, fields)
        finally:
            self.model.train(training)
        group = torch.as_tensor(self._group)
        waiting = (partial == UNKNOWN) & (group == group[site][:, None])
        return _tilted(log_q, waiting, quota)[torch.arange(len(site)), site]


def _tilted(log_q: torch.Tensor, waiting: torch.Tensor, quota: torch.Tensor) -> torch.Tensor:
    """Conditionals (rows, sites, species) with the means of the waiting sites near the quota."""
    left = (quota > 0)[:, None]
    log_q = log_q.to(torch.float64).clamp(min=_FLOOR).masked_fill(~left, -torch.inf)
    log_n = quota.to(torch.float64).log()[:, None]
    for _ in range(_TILTS):
        log_q = log_q.log_softmax(-1)
        expected = log_q.masked_fill(~waiting[:, :, None], -torch.inf).logsumexp(1, keepdim=True)
        log_q = log_q + torch.where(left, log_n - expected, 0.0)
    return log_q.log_softmax(-1)


def match_composition(
    trained: TrainedModel,
    lattice: Lattice,
    occupations: np.ndarray,
    temperature: float,
    rng: torch.Generator,
    fields: Fields | None = None,
) -> Conditions:
    """Conditions at which a model finds a configuration most likely.

    For an exact model ``ln q(x) = mu.N/kT - ln Z(mu) + const`` is largest where the mean
    composition is that of x. Any chemical potential is exact for moves at fixed composition; a
    matching one is accepted more often.

    Parameters
    ----------
    trained : TrainedModel
        Chemical potentials are looked for in its range, on a grid that is refined once.
    lattice : Lattice
    occupations : ndarray, shape (sites,), int8
    temperature : float
        K.
    rng : torch.Generator
        For the order of drawing, the same at all chemical potentials.
    fields : callable, optional
        ``ensemble.fields``, where the model needs them.

    Returns
    -------
    Conditions
        One row.

    Raises
    ------
    ValueError
        If the model has one order of drawing.
    """
    check_any_order(trained.model, "moves at fixed composition")
    box = trained.range
    low, high = box.low.copy(), box.high.copy()
    n = _GRID.get(box.n_axes, 3)
    x = torch.as_tensor(np.array(occupations, dtype=np.int8))
    steps = torch.randperm(lattice.n_sites, generator=rng).to(torch.int16)
    with torch.no_grad(), compute_policy(threads=1):
        for _ in range(_ROUNDS):
            sides = [np.linspace(a, b, n) for a, b in zip(low, high, strict=True)]
            points = np.stack([m.ravel() for m in np.meshgrid(*sides, indexing="ij")], 1)
            rows = Conditions(np.full(len(points), float(temperature)), points @ box.axes)
            c = Configurations(lattice, rows, x.repeat(len(points), 1))
            log_q = trained.model.log_prob(c, steps=steps.repeat(len(points), 1), fields=fields)
            best = int(log_q.argmax())
            width = (high - low) / (n - 1)
            low = np.maximum(points[best] - width, box.low)
            high = np.minimum(points[best] + width, box.high)
    return rows[best]
