"""Block moves: regions redrawn by a model, accepted so that the Boltzmann weight is exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from clease_nn.compute import compute_policy
from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import UNKNOWN, Lattice
from clease_nn.models import AbstractOccupationModel, AbstractOrder
from clease_nn.sampling.memory import rows_at_once
from clease_nn.sampling.regions import SHAPES, Regions

__all__ = ["BlockMoves", "rows_together"]

_TARGET = 0.4
_GAIN, _DECAY = 3.0, 0.6  # Robbins-Monro: steps of ln(size) of 3 / n^0.6 times what is missing
_SCORED = 65536  # sites scored at once by log_prob


class BlockMoves:
    """Exact moves of many chains: a region of every row is redrawn by a model.

    Each row, at its own conditions, clears a region that is chosen without looking at the
    configuration, the model draws it anew given the rest, ``y ~ q(. | rest)``, and the way back,
    ``q(x | rest)``, is scored in the same passes. Accepted is with probability::

        min(1, w(y) q(x | rest) / (w(x) q(y | rest))),   w = exp(-(E - mu.N)/kT)

    (Metropolis-Hastings). Region and passes depend on which sites are known, never on what they
    carry, so that the way back would choose them as often and they cancel. Detailed balance holds
    for every shape and size whatever the model; the model decides how often a move is accepted.
    With all sites in the region this is an independence move.

    :meth:`adapt` also steers the size of the regions towards an acceptance of 0.4, for every
    condition and shape on its own (Robbins and Monro, Ann. Math. Stat. 22, 400 (1951), on the
    logarithm of the size, from one site to the whole cell; what it ends at is the mean of the
    sizes tried, Polyak and Juditsky, SIAM J. Control Optim. 30, 838 (1992)). Use it during
    burn-in only: a size that follows the past of the chain breaks detailed balance. Calls of the
    object itself never change a size.

    Parameters
    ----------
    model : AbstractOccupationModel
        Normalised proposals; need not be good.
    ensemble : SemiGrandCanonical
    lattice : Lattice
    rng : torch.Generator
        On the CPU; its state fixes the moves.
    size : int, optional
        Sites of a region, where :meth:`adapt` starts. Default: the whole cell.
    shapes : sequence of str
        Some of ``"ball"``, ``"random"`` and ``"plane"`` (:class:`Regions`); every move of every
        row takes one of them at random.
    clamped : Tensor of bool, shape (rows, sites) or (1, sites), optional
        Sites that never change, of each of the rows to come. Default: none.
    order : AbstractOrder, optional
        Which sites of a region share a pass. Default: as the model draws them.
    batch_size : int, optional
        Rows drawn together. Default: 256, fewer in cells of more than 256 sites.
    precision : str
        As in :func:`clease_nn.sampling.sample`.

    Raises
    ------
    ValueError
        If ``size`` is not in 1 ... sites, a shape is unknown, ``clamped`` has another shape, or
        the model has one order of drawing and ``size`` or ``order`` is given.
    MemoryError
        If the memory that is free has no room for the rows of a batch; the message says how many
        fit.

    Examples
    --------
    >>> from clease_nn.conditions import ConditionRange
    >>> from clease_nn.models import AnyOrderARM
    >>> from clease_nn.networks import LatticeConvolution
    >>> lattice = Lattice.square(4)
    >>> box = ConditionRange((300, 900), [-0.1], [0.1], [[-1.0, 1.0]])
    >>> model = AnyOrderARM(LatticeConvolution(lattice, box, needs_fields=False))
    >>> flat = SemiGrandCanonical(lambda lattice, occupations: torch.zeros(len(occupations)))
    >>> start = Configurations(lattice, box.grid(1, 1).repeat(3), torch.zeros(3, 16))
    >>> moves = BlockMoves(model, flat, lattice, torch.Generator().manual_seed(0), size=5)
    >>> c, accepted = moves(flat.score(start))
    >>> accepted.tolist(), bool(((c.occupations != 0).sum(1) <= 5).all())
    ([True, True, True], True)
    """

    def __init__(
        self,
        model: AbstractOccupationModel,
        ensemble: SemiGrandCanonical,
        lattice: Lattice,
        rng: torch.Generator,
        *,
        size: int | None = None,
        shapes: Sequence[str] = SHAPES,
        clamped: Tensor | None = None,
        order: AbstractOrder | None = None,
        batch_size: int | None = None,
        precision: str = "float32",
    ):
        n = lattice.n_sites
        if size is not None and not 1 <= size <= n:
            raise ValueError(f"size must be 1 ... {n} sites of this lattice, got {size}")
        shapes = (shapes,) if isinstance(shapes, str) else tuple(shapes)
        unknown = [s for s in shapes if s not in SHAPES]
        if unknown or not shapes:
            raise ValueError(f"shapes must be some of {SHAPES}, got {unknown or shapes}")
        batch_size = rows_together(lattice) if batch_size is None else batch_size
        rows_at_once(model, lattice, batch_size)
        if (size is not None or order is not None) and not model.any_order:
            raise ValueError(
                f"{type(model).__name__} has one order of drawing and cannot redraw a block around "
                "the other sites; leave size and order out (the whole cell), or use a model of any "
                "order (AnyOrderARM, MarginalizationModel)"
            )
        self.model, self.ensemble, self.lattice, self.rng = model, ensemble, lattice, rng
        self.shapes, self.order = shapes, order
        self.batch_size, self.precision = int(batch_size), precision
        self.regions = Regions(lattice)
        # a fixed order starts with the held sites; those of a single species are drawn like others
        free = self.regions.free if model.any_order else torch.ones(n, dtype=torch.bool)
        self.free = free[None]
        if clamped is not None:
            clamped = torch.as_tensor(clamped).to(torch.bool)
            if clamped.ndim != 2 or clamped.shape[1] != n:
                raise ValueError(
                    f"clamped must have shape (rows, {n}) or (1, {n}), got {tuple(clamped.shape)}"
                )
            self.free = self.free & ~clamped
        self.size = n if size is None else int(size)
        self.network_passes = 0
        self.energy_evaluations = 0
        self._table: dict[bytes, _Tally] = {}
        self._shape_index = torch.tensor([SHAPES.index(s) for s in shapes])

    # ------------------------------------------------------------------ moves
    def __call__(
        self, c: Configurations, rows: Tensor | None = None
    ) -> tuple[Configurations, Tensor]:
        """One move of every row, or of some, each at its own conditions.

        Parameters
        ----------
        c : Configurations
            Complete and scored (``energy``, ``log_target``).
        rows : Tensor of int, shape (k,), optional
            Rows to move; the others stay. Default: all.

        Returns
        -------
        Configurations
            Scored; rows that rejected are as they were.
        Tensor, shape (batch,), bool
            Rows that accepted.

        Raises
        ------
        ValueError
            If ``c`` is not scored or its rows are not those of ``clamped``.
        """
        c, accepted, _ = self._move(c, rows, trial=False)
        return c, accepted

    def adapt(self, c: Configurations, rows: Tensor | None = None) -> tuple[Configurations, Tensor]:
        """As a call, and then towards an acceptance of 0.4: for burn-in only.

        Raises
        ------
        ValueError
            As a call, or if the model has one order of drawing.
        """
        if not self.model.any_order:
            raise ValueError(
                f"{type(self.model).__name__} has one order of drawing: it redraws whole cells, "
                "their size cannot adapt; use a model of any order"
            )
        c, accepted, seen = self._move(c, rows, trial=True)
        largest = np.log(max(int(self.free.sum(1).max()), 1))
        for tally, shape, mean in seen:
            tally.steps[shape] += 1
            change = _GAIN / tally.steps[shape] ** _DECAY * (mean - _TARGET)
            tally.trial[shape] = np.clip(tally.trial[shape] + change, 0.0, largest)
            share = min(1.0, 3.0 / tally.steps[shape])  # later trials weigh more
            tally.log_size[shape] += share * (tally.trial[shape] - tally.log_size[shape])
        return c, accepted

    def _move(self, c: Configurations, rows: Tensor | None, *, trial: bool):
        if c.energy is None or c.log_target is None:
            raise ValueError("block moves need scored configurations: ensemble.score(c)")
        if len(self.free) not in (1, len(c)):
            raise ValueError(f"clamped has {len(self.free)} rows, the configurations {len(c)}")
        if c.lattice.fingerprint != self.lattice.fingerprint:
            raise ValueError("these block moves were made for another lattice")
        at = torch.arange(len(c)) if rows is None else torch.as_tensor(rows, dtype=torch.int64)
        tallies = self._tallies(c.conditions[at])
        pick = torch.randint(len(self.shapes), (len(at),), generator=self.rng)
        size = torch.tensor(
            [t.size(s, trial) for t, s in zip(tallies, pick.tolist(), strict=True)],
            dtype=torch.int64,
        )
        free = self.free.expand(len(c), -1)[at]
        region = self.regions.draw(size, self._shape_index[pick], self.rng, free)
        parts = [
            self._propose(c[at[k : k + self.batch_size]], region[k : k + self.batch_size])
            for k in range(0, len(at), self.batch_size)
        ]
        if not parts:
            return c, torch.zeros(len(c), dtype=torch.bool), []
        y, log_ratio = Configurations.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
        passes = y.step.amax(1) + 1
        probability = log_ratio.clamp(max=0.0).exp()
        take = torch.rand(len(at), generator=self.rng, dtype=torch.float64) < probability
        accepted = torch.zeros(len(c), dtype=torch.bool)
        accepted[at] = take
        columns = {"log_prob": None, "step": None}
        for name in ("occupations", "energy", "log_target"):
            column = getattr(c, name).clone()
            column[at[take]] = getattr(y, name)[take].to(column)
            columns[name] = column
        return replace(c, **columns), accepted, self._count(tallies, pick, probability, passes)

    @torch.no_grad()
    def _propose(self, x: Configurations, region: Tensor) -> tuple[Configurations, Tensor]:
        """Proposals and the logarithm of their acceptance ratios."""
        fields = self.ensemble.fields if self.model.needs_fields else None
        x = replace(x, log_prob=None, step=None)
        occupations = torch.where(region, UNKNOWN, x.occupations).to(torch.int8)
        was_training = self.model.training
        self.model.eval()
        try:
            with compute_policy(threads=1, precision=self.precision):
                steps = None
                if self.order is not None:
                    steps = self.order.steps(~region, self.lattice, self.rng)
                partial = replace(x, occupations=occupations)
                y = self.model.complete(partial, self.rng, fields, steps)
                moved = (y.occupations != x.occupations).any(1)
                log_ratio = torch.zeros(len(x), dtype=torch.float64)
                passes = int(y.step.max()) + 1
                # drawn as it was: accepted, and nothing to score
                if bool(moved.any()):
                    chunk = max(1, _SCORED // self.lattice.n_sites)
                    back = self.model.log_prob(
                        x[moved], steps=y.step[moved], fields=fields, chunk=chunk
                    )
                    scored = self.ensemble.score(y[moved])
                    self.energy_evaluations += len(scored)
                    passes *= 2
        finally:
            self.model.train(was_training)
        self.network_passes += passes
        energy, log_target = x.energy.clone(), x.log_target.clone()
        if bool(moved.any()):
            energy[moved], log_target[moved] = scored.energy, scored.log_target
            log_ratio[moved] = (log_target - x.log_target - y.log_prob)[moved] + back
        return replace(y, energy=energy, log_target=log_target), log_ratio

    # ------------------------------------------------------------------ sizes and counts
    def _tallies(self, conditions: Conditions) -> list[_Tally]:
        """The tally of every row's condition."""
        rows = torch.cat([conditions.temperature[:, None], conditions.mu], 1).numpy()
        out = []
        for row in rows:
            key = row.tobytes()
            if key not in self._table:
                self._table[key] = _Tally.new(row, self.size, len(self.shapes))
            out.append(self._table[key])
        return out

    @staticmethod
    def _count(tallies, pick: Tensor, probability: Tensor, passes: Tensor) -> list:
        """Note acceptance probabilities; the means of this move for every condition and shape."""
        sums: dict[tuple[int, int], list] = {}
        columns = (x.tolist() for x in (pick, probability, passes))
        for tally, shape, p, n in zip(tallies, *columns, strict=True):
            entry = sums.setdefault((id(tally), shape), [tally, 0, 0.0, 0])
            entry[1:] = [entry[1] + 1, entry[2] + p, entry[3] + n]
        for (_, shape), (tally, rows, p, n) in sums.items():
            tally.attempted[shape] += rows
            tally.accepted[shape] += p
            tally.passes[shape] += n
        return [(tally, shape, p / rows) for (_, shape), (tally, rows, p, _) in sums.items()]

    def reset_counts(self) -> None:
        """Forget the acceptance up to now; sizes stay."""
        for tally in self._table.values():
            tally.attempted[:] = tally.accepted[:] = tally.passes[:] = 0.0

    def report(self) -> list[dict]:
        """Size, moves attempted and mean acceptance probability of every condition and shape.

        JSON-ready: ``temperature`` in K, ``mu`` in eV, ``shape``, ``size`` in sites,
        ``attempted``, ``acceptance`` and ``passes`` of the model one way, both means (None where
        nothing was attempted).
        """
        rows = []
        for t in self._table.values():
            for s, name in enumerate(self.shapes):
                n = t.attempted[s]
                rows.append(
                    {
                        "temperature": float(t.condition[0]),
                        "mu": t.condition[1:].tolist(),
                        "shape": name,
                        "size": t.size(s),
                        "attempted": int(n),
                        "acceptance": float(t.accepted[s] / n) if n else None,
                        "passes": float(t.passes[s] / n) if n else None,
                    }
                )
        return rows

    def state_dict(self) -> dict:
        """Everything that a bitwise continuation needs: sizes, counts and the generator."""
        return {
            "rng": self.rng.get_state().clone(),
            "network_passes": self.network_passes,
            "energy_evaluations": self.energy_evaluations,
            "table": [
                np.stack(column)
                for column in zip(*(vars(t).values() for t in self._table.values()), strict=True)
            ],
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from a state written by :meth:`state_dict` of moves with the same shapes."""
        self.rng.set_state(state["rng"])
        self.network_passes = int(state["network_passes"])
        self.energy_evaluations = int(state["energy_evaluations"])
        rows = zip(*(np.array(column, dtype=float) for column in state["table"]), strict=True)
        tallies = [_Tally(*(a.copy() for a in row)) for row in rows]
        self._table = {t.condition.tobytes(): t for t in tallies}


def rows_together(lattice: Lattice) -> int:
    """Rows drawn together: by the lattice alone, so that a seed means the same on all machines."""
    return max(1, min(256, _SCORED // lattice.n_sites))


@dataclass
class _Tally:
    """Sizes and counts at one condition, an entry a shape."""

    condition: np.ndarray  # temperature, chemical potentials
    log_size: np.ndarray
    trial: np.ndarray  # ln of the size that is tried next in burn-in
    steps: np.ndarray
    attempted: np.ndarray
    accepted: np.ndarray  # sum of acceptance probabilities
    passes: np.ndarray  # sum of the passes of the rows, one way

    @classmethod
    def new(cls, condition: np.ndarray, size: int, n_shapes: int) -> _Tally:
        start, zero = np.full(n_shapes, np.log(size)), np.zeros(n_shapes)
        return cls(condition.copy(), start, *(a.copy() for a in (start, zero, zero, zero, zero)))

    def size(self, shape: int, trial: bool = False) -> int:
        log_size = self.trial if trial else self.log_size
        return max(1, round(float(np.exp(log_size[shape]))))
