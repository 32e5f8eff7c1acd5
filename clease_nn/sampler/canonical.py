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
"""

from __future__ import annotations

import numpy as np
import torch

from clease_nn.compute import compute_policy
from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.io import TrainedModel
from clease_nn.lattice import UNKNOWN, Lattice
from clease_nn.models import AbstractOccupationModel, Fields
from clease_nn.sampler.blocks import Blocks

__all__ = ["CanonicalBlockMoves", "match_composition"]

_TILTS = 6  # Sinkhorn iterations; more would only change the acceptance
_FLOOR = -60.0  # ln q of a species that the model rules out but the block may need
_GRID = {1: 11, 2: 5}  # chemical potentials tried along each axis; more axes: 3
_ROUNDS = 2


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
    block_size : int
        Sites redrawn in one move, at least 2; all, where fewer can move.
    reachable : ndarray of bool, shape (sites, species), optional
        Species that the chain may put on each site; sites with fewer than two stay. Default:
        what the lattice allows.
    groups : array_like of int, shape (sites,), optional
        Finer groups to keep the composition of, such as the sublattices of a host.

    Attributes
    ----------
    acceptance : float
        Acceptance probability of the last :meth:`step`.

    Raises
    ------
    ValueError
        If there is not one condition, the block is smaller than 2, or shapes do not match.

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
        block_size: int,
        *,
        reachable: np.ndarray | None = None,
        groups=None,
    ):
        if len(conditions) != 1:
            raise ValueError(f"neural moves need one condition, got {len(conditions)}")
        if block_size < 2:
            raise ValueError(
                f"block_size must be at least 2, got {block_size}: one site alone has nothing to "
                "exchange at fixed composition"
            )
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
        self._blocks: dict[bytes, Blocks] = {}
        self._fields: Fields | None = ensemble.fields if model.needs_fields else None
        self.acceptance = 0.0

    def propose(
        self, occupations: np.ndarray, among: np.ndarray | None = None
    ) -> tuple[np.ndarray, float]:
        """A proposal from a configuration x (sites,), for a chain that decides by itself.

        No energy is evaluated.

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
        x = torch.as_tensor(np.array(occupations, dtype=np.int8))
        sites = self._choose(among)
        inside = self.reachable[sites, x[sites].numpy()]
        if not inside.all():
            site = int(sites[int(np.flatnonzero(~inside)[0])])
            raise ValueError(
                f"site {site} carries {self.lattice.species[int(x[site])]}, which moves may not "
                "put there; change the configuration or what is reachable"
            )
        with compute_policy(threads=1):
            y, log_q_y = self._draw(x, sites)
            if torch.equal(y, x):
                return y.numpy(), 0.0
            return y.numpy(), self._score(x, sites) - log_q_y

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
        return True, y, log_target_y

    # ------------------------------------------------------------------ the block
    def _choose(self, among: np.ndarray | None) -> torch.Tensor:
        """Sites of a block in the order of drawing."""
        key = b"" if among is None else np.sort(among).tobytes()
        if key not in self._blocks:
            free = self.free
            if among is not None:
                free = free[torch.isin(free, torch.as_tensor(np.sort(among)))]
            self._blocks[key] = Blocks(self.lattice, free)
        block = self._blocks[key].draw(self.block_size, self.rng)
        return block[torch.randperm(len(block), generator=self.rng)]

    def _quota(self, x: torch.Tensor, sites: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Row of each site of a block and what each row has to place, (rows, species)."""
        _, row = np.unique(self._group[sites.numpy()], return_inverse=True)
        left = np.zeros((row.max(initial=-1) + 1, self.lattice.n_species), dtype=np.int64)
        np.add.at(left, (row, x[sites].numpy()), 1)
        return row, left

    def _draw(self, x: torch.Tensor, sites: torch.Tensor) -> tuple[torch.Tensor, float]:
        row, left = self._quota(x, sites)
        now = x.clone()
        now[sites] = UNKNOWN
        total = 0.0
        for t in range(len(sites)):
            quota = left[row[t]]
            if (quota > 0).sum() == 1:  # one species left: nothing to decide
                a = int(quota.argmax())
            else:
                log_q = self._conditionals(now[None], sites, row, [t], quota[None])[0]
                u = torch.rand(1, generator=self.rng, dtype=torch.float64)
                cumulative = log_q.exp().cumsum(0)
                a = int((u * cumulative[-1] >= cumulative).sum())
                a = min(a, int(np.flatnonzero(quota)[-1]))
                total += float(log_q[a])
            now[sites[t]] = a
            quota[a] -= 1
        return now, total

    def _score(self, x: torch.Tensor, sites: torch.Tensor) -> float:
        """ln q' of the species that a block has, in the order of ``sites``; one network pass."""
        row, left = self._quota(x, sites)
        given = x.clone()
        given[sites] = UNKNOWN
        quotas, partials, at = [], [], []
        for t, site in enumerate(sites):
            quota = left[row[t]]
            if (quota > 0).sum() > 1:
                quotas.append(quota.copy())
                partials.append(given.clone())
                at.append(t)
            given[site] = x[site]
            quota[int(x[site])] -= 1
        if not at:
            return 0.0
        log_q = self._conditionals(torch.stack(partials), sites, row, at, np.array(quotas))
        return float(log_q.gather(1, x[sites[torch.as_tensor(at)]].long()[:, None]).sum())

    @torch.no_grad()
    def _conditionals(self, partial, sites, row, at: list[int], quota: np.ndarray) -> torch.Tensor:
        """ln q' of the site drawn in pass ``at`` of each partial configuration, (rows, species)."""
        c = Configurations(self.lattice, self.conditions.repeat(len(partial)), partial)
        fields = None if self._fields is None else self._fields(c)
        training = self.model.training
        self.model.eval()
        try:
            log_q = self.model.log_conditionals(c, fields)[:, sites]
        finally:
            self.model.train(training)
        passes = np.arange(len(row))
        waiting = torch.as_tensor(np.array([(passes >= t) & (row == row[t]) for t in at]))
        return _tilted(log_q, waiting, torch.as_tensor(quota))[torch.arange(len(at)), at]


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
    """
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
