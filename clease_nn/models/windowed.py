"""A model of a small cell draws a larger one window by window: out-painting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from operator import index

import numpy as np
import torch
from torch import Tensor

from clease_nn.configurations import Configurations
from clease_nn.lattice import UNKNOWN, Lattice
from clease_nn.models.abstract import AbstractOccupationModel, Fields
from clease_nn.models.placement import Windows, place_windows, window_repeats

__all__ = ["WindowedModel"]

_LAST = torch.iinfo(torch.int16).max  # number of the last pass


class WindowedModel(AbstractOccupationModel):
    """A model of one supercell makes a model of larger ones, by out-painting.

    Windows of the shape of the small cell lie over the larger lattice, ``stride`` repeats of the
    parent lattice apart, and wrap around where it is periodic. Window after window is completed
    by the model of the small cell given the sites already known in it, as if the window were the
    periodic small cell (Du, Liu, Gomez-Bombarelli, AI4Mat, NeurIPS 2024). So even a network bound
    to one supercell (MLP, Transformer) serves larger ones. The likelihood is exact::

        ln q(x | given) = sum over drawn sites i of  ln q_small(x_i | known sites of its window)

    The window of a site follows from ``steps`` alone: of the windows that may draw the site, the
    one that is complete first (ties: the first in raster order). Drawing and scoring both read
    it from there, so that any ``steps`` give a normalised distribution, and those of
    :meth:`draw_steps` the windows one after another. Windows that share no site share passes.

    What it costs is likelihood: each window takes its far side for the neighbour of its near
    side. Most of that is regained if sites at the rim of a window are left to the windows beside
    it (``margin``).

    Conditions are those of the larger lattice. Fields, where the model uses them, are those of
    the larger lattice at the sites of the window: they see all known sites, the window's and
    others.

    Parameters
    ----------
    model : AbstractOccupationModel
        Of the small cell. One with a fixed order draws in windows only where the sites already
        known are the first of its order, and says so otherwise.
    small : Lattice
        The cell of a window. Larger lattices must be of the same parent lattice, in the same
        orientation; they need be no multiple of it.
    stride : int or sequence of 3 int, optional
        From window to window, in repeats of the parent lattice along each cell vector of
        ``small`` (:func:`~clease_nn.models.placement.window_repeats`). A single number is cut to
        the window where that is narrower. Default: so that neighbours overlap by a third.
    order : "raster" or "random"
        Windows in raster order, or in a random order for every row.
    margin : int or sequence of 3 int, optional
        Outermost repeats of a window that are looked at, but not drawn there, so that no site is
        drawn next to one that is its neighbour in the small cell only. A single number is cut
        where the window is too narrow. Default: one where the stride leaves room for it and the
        model has no fixed order; published: none.

    Raises
    ------
    ValueError
        If a stride leaves gaps between windows, a margin leaves no room or the model has a fixed
        order, the order of windows is unknown, or the model does not serve ``small``.
    TypeError
        If a stride or a margin is not an integer.

    Examples
    --------
    >>> from clease_nn.conditions import ConditionRange
    >>> from clease_nn.models import AnyOrderARM
    >>> from clease_nn.networks import MLP
    >>> small, large = Lattice.square(4), Lattice.square(9, 6)
    >>> box = ConditionRange((300, 900), [-0.1], [0.1], [[-1.0, 1.0]])
    >>> model = WindowedModel(AnyOrderARM(MLP(small, box, needs_fields=False)), small, stride=3)
    >>> c = Configurations.unknown(large, box.grid(1, 1))
    >>> drawn = model.complete(c, torch.Generator().manual_seed(0))
    >>> drawn.occupations.shape, drawn.log_prob / 54
    (torch.Size([1, 54]), tensor([-0.6931], dtype=torch.float64))
    """

    def __init__(
        self,
        model: AbstractOccupationModel,
        small: Lattice,
        stride: int | Sequence[int] | None = None,
        order: str = "raster",
        margin: int | Sequence[int] | None = None,
    ):
        super().__init__()
        if order not in ("raster", "random"):
            raise ValueError(f'the order of windows must be "raster" or "random", got {order!r}')
        stride, margin = _integers("stride", stride), _integers("margin", margin)
        model.check_lattice(small)
        self.model = model
        self.small = small
        self.order = order
        self.repeats = window_repeats(small)
        fixed = not model.any_order
        if margin is None:
            margin = [0] * 3 if fixed else self._room(stride)
        self.margin = self._along_each("margin", margin, [(n - 1) // 2 for n in self.repeats], 0)
        if fixed and any(self.margin):
            raise ValueError(
                f"{type(model).__name__} draws every site of a window in one order and leaves out "
                f"none: margin must be 0, got {margin}; or use AnyOrderARM"
            )
        widths = [n - 2 * m for n, m in zip(self.repeats, self.margin, strict=True)]
        if stride is None:
            thirds = [max(1, n - max(1, n // 3)) for n in self.repeats]
            stride = [min(w, third) for w, third in zip(widths, thirds, strict=True)]
        self.stride = self._along_each("stride", stride, widths, 1)
        self._placed: dict[str, tuple[Tensor, Tensor]] = {}

    def _room(self, stride: int | Sequence[int] | None) -> list[int]:
        """A margin of one repeat along each cell vector where the stride leaves room for it."""
        given = [stride] * 3 if stride is None or isinstance(stride, int) else list(stride)
        if len(given) != 3:
            return [0] * 3
        steps = [1 if s is None else s for s in given]
        return [int(1 <= s <= n - 2) for n, s in zip(self.repeats, steps, strict=True)]

    def _along_each(self, name: str, value, limits: list[int], least: int) -> tuple[int, ...]:
        """``value`` along the three cell vectors, checked."""
        if isinstance(value, int):
            values, limit = [min(value, n) for n in limits], max(limits)
            wrong = not least <= value <= limit
        else:
            values, limit = list(value), tuple(limits)
            if len(values) != 3:
                raise ValueError(f"{name} must be one number or three, got {len(values)}")
            wrong = any(not least <= v <= n for v, n in zip(values, limits, strict=True))
        if wrong:
            reason = (
                "a larger stride leaves sites between windows that none of them covers"
                if name == "stride"
                else "a larger margin leaves no site to draw"
            )
            raise ValueError(
                f"{name} must be {least} to {limit} repeats of the parent lattice for a window of "
                f"{self.repeats} repeats{self._with_margin(name)}, got {value}: {reason}"
            )
        return tuple(values)

    def _with_margin(self, name: str) -> str:
        return f" and a margin of {self.margin}" if name == "stride" and any(self.margin) else ""

    @property
    def needs_fields(self) -> bool:
        """Whether fields must be handed to :meth:`complete` and :meth:`log_prob`."""
        return self.model.needs_fields

    @property
    def any_order(self) -> bool:
        """Whether any set of sites may be known, as for the model of the small cell."""
        return self.model.any_order

    # ------------------------------------------------------------------ windows
    def windows(self, lattice: Lattice) -> Windows:
        """Where the windows lie on a larger lattice, in raster order.

        In raster order windows that never draw a site, as those before cover theirs, are left out.

        Raises
        ------
        ValueError
            As :func:`~clease_nn.models.placement.place_windows`.
        """
        placed = place_windows(self.small, lattice, self.stride, self.margin)
        if self.order == "random":
            return placed
        kept, drawn = [], torch.zeros(lattice.n_sites, dtype=torch.bool)
        for k, (sites, core) in enumerate(zip(placed.sites, placed.core, strict=True)):
            if not bool(drawn[sites[core]].all()):
                kept.append(k)
                drawn[sites[core]] = True
        return Windows(placed.sites[kept], placed.core[kept])

    def _tables(self, lattice: Lattice, device) -> tuple[Tensor, Tensor]:
        """Sites and core of the windows on a lattice, each (windows, small sites)."""
        if lattice.fingerprint not in self._placed:
            windows = self.windows(lattice)
            self._placed[lattice.fingerprint] = (
                torch.as_tensor(windows.sites),
                torch.as_tensor(windows.core),
            )
        sites, core = self._placed[lattice.fingerprint]
        return sites.to(device), core.to(device)

    def _homes(self, steps: Tensor, lattice: Lattice) -> Tensor:
        """Window in which each site is drawn, (batch, sites) int64; see the class."""
        steps = steps.to(torch.int32)
        first = torch.full_like(steps, torch.iinfo(torch.int32).max)
        home = torch.zeros(steps.shape, dtype=torch.int64, device=steps.device)
        for w, (sites, core) in enumerate(zip(*self._tables(lattice, steps.device), strict=True)):
            own = sites[core]
            complete = steps[:, own].amax(1, keepdim=True)
            sooner = complete < first[:, own]
            first[:, own] = torch.where(sooner, complete, first[:, own])
            home[:, own] = home[:, own].masked_fill(sooner, w)
        return home

    # ------------------------------------------------------------------ conditionals
    def log_conditionals(self, c: Configurations, fields: Tensor | None) -> Tensor:
        """ln q(species | known sites of a window), (batch, sites, species), float64.

        Each site in the first window in raster order that may draw it.
        """
        row, site = (~c.known).nonzero(as_tuple=True)
        allowed = c.lattice.allowed_mask(c.occupations.device)
        out = torch.zeros(allowed.shape, dtype=torch.float64, device=allowed.device)
        out = out.masked_fill(~allowed, -torch.inf).repeat(len(c), 1, 1)
        if len(row) == 0:
            return out
        return out.index_put(
            (row, site), self._in_windows(c, fields, row, site, self._first(c, site))
        )

    def log_conditionals_at(self, c: Configurations, fields: Tensor | None, site: Tensor) -> Tensor:
        """ln q(species | known sites of a window) of one site of each row, (batch, species)."""
        row = torch.arange(len(c), device=site.device)
        with torch.no_grad():
            return self._in_windows(c, fields, row, site, self._first(c, site))

    def _first(self, c: Configurations, site: Tensor) -> Tensor:
        """First window in raster order that may draw each of some sites."""
        return self._homes(c.occupations.new_full((1, c.lattice.n_sites), -1), c.lattice)[0][site]

    def _in_windows(
        self, c: Configurations, fields: Tensor | None, row: Tensor, site: Tensor, window: Tensor
    ) -> Tensor:
        """ln q of some sites of some rows, each in a window of its own, (len(row), species)."""
        sites, _ = self._tables(c.lattice, c.occupations.device)
        key, which = torch.unique(row * len(sites) + window, return_inverse=True)
        rows = key // len(sites)
        under = sites[key % len(sites)]
        small = Configurations(self.small, c.conditions[rows], c.occupations[rows[:, None], under])
        if fields is not None:
            fields = fields[rows[:, None], under]
        local = (under[which] == site[:, None]).to(torch.int8).argmax(1)
        if len(key) == len(row) and not torch.is_grad_enabled():
            place = torch.empty_like(local)
            place[which] = local
            return self.model.log_conditionals_at(small, fields, place)[which]
        return self.model.log_conditionals(small, fields)[which, local]

    # ------------------------------------------------------------------ drawing and scoring
    def draw_steps(self, c: Configurations, rng: torch.Generator) -> Tensor:
        """Windows one after another, each in the steps of the model of the small cell.

        Shape (batch, sites), int16, -1 where known. A window waits for those before it that it
        overlaps, and for no others.

        Raises
        ------
        ValueError
            If the model has a fixed order and the known sites of a window are not its first, or
            there are more passes than can be numbered.
        """
        device = c.occupations.device
        sites, core = self._tables(c.lattice, device)
        batch, n_windows = len(c), len(sites)
        order = torch.arange(n_windows, device=device).expand(batch, -1)
        if self.order == "random":
            order = torch.rand(batch, n_windows, generator=rng).argsort(1).to(device)
        steps = torch.full(c.occupations.shape, -1, dtype=torch.int64, device=device)
        ends = steps.clone()  # last pass of the window that draws a site
        taken = c.known.clone()
        filler = torch.as_tensor(self.small.allowed.argmax(1), dtype=torch.int8, device=device)
        for k in range(n_windows):
            under, known = sites[order[:, k]], taken.gather(1, sites[order[:, k]])
            now = core[order[:, k]] & ~known
            rows = now.any(1).nonzero()[:, 0]
            if len(rows) == 0:
                continue
            under, known, now = under[rows], known[rows], now[rows]
            stand_in = torch.where(known, filler, UNKNOWN)
            window = Configurations(self.small, c.conditions[rows], stand_in)
            inner = self._steps_of_window(window, rng, int(order[rows[0], k]))
            start = ends[rows].gather(1, under).amax(1, keepdim=True) + 1
            inner = torch.where(now, inner.to(device).long() + start, -1)
            row = rows[:, None].expand_as(under)[now]
            steps[row, under[now]] = inner[now]
            ends[row, under[now]] = inner.amax(1, keepdim=True).expand_as(inner)[now]
            taken[row, under[now]] = True
        steps = _without_gaps(steps)
        if steps.numel() and int(steps.max()) > _LAST:
            raise ValueError(
                f"{int(steps.max()) + 1} passes, more than can be numbered ({_LAST + 1}); take a "
                f"larger stride than {self.stride}, or a model of the small cell that draws more "
                "sites a pass"
            )
        return steps.to(torch.int16)

    def _steps_of_window(self, window: Configurations, rng, number: int) -> Tensor:
        try:
            return self.model.draw_steps(window, rng)
        except ValueError as error:
            raise ValueError(
                f"the model of the small cell cannot complete window {number} of this lattice "
                f"around the sites known there: {error}"
            ) from error

    def log_prob(
        self,
        full: Configurations,
        *,
        steps: Tensor,
        fields: Fields | None = None,
        passes: Tensor | None = None,
        chunk: int = 512,
    ) -> Tensor:
        """ln q of the sites with ``steps >= 0`` given the others, shape (batch,), float64.

        As :meth:`AbstractOccupationModel.log_prob`.

        Raises
        ------
        ValueError
            If a site is unknown, fields are needed and absent, or a model with a fixed order
            could not have drawn in these steps.
        """
        self._check_steps(full, steps.to(full.occupations.device))
        return super().log_prob(full, steps=steps, fields=fields, passes=passes, chunk=chunk)

    def _log_q_of_passes(self, full, rows: Tensor, steps: Tensor, at: Tensor, fields) -> Tensor:
        """ln q of what pass ``at`` of each of some rows draws given earlier passes, (rows,)."""
        c = replace(full, log_prob=None, energy=None, log_target=None, step=None)[rows]
        row, site = (steps == at[:, None]).nonzero(as_tuple=True)
        truth = c.occupations[row, site].long()
        known = steps < at[:, None]
        c = replace(c, occupations=torch.where(known, c.occupations, UNKNOWN).to(torch.int8))
        window = self._homes(steps, c.lattice)[row, site]
        log_q = self._in_windows(c, self._fields(c, fields), row, site, window)
        out = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        return out.index_add(0, row, log_q.gather(1, truth[:, None])[:, 0])

    def _evaluator(self, partial: Configurations, steps: Tensor, fields: Fields | None) -> Callable:
        """Conditionals of one pass after another, each site in its window."""
        self._check_steps(partial, steps)
        homes = self._homes(steps, partial.lattice)
        turns = _rows_of_passes(steps)

        def evaluate(c: Configurations, row: Tensor, site: Tensor) -> Tensor:
            window = homes[next(turns)[row], site]
            return self._in_windows(c, self._fields(c, fields), row, site, window)

        return evaluate

    def _check_steps(self, c: Configurations, steps: Tensor) -> None:
        """Refuse steps that a model with a fixed order does not have."""
        if self.model.any_order:
            return
        home = self._homes(steps, c.lattice)
        filler = torch.as_tensor(self.small.allowed.argmax(1), device=steps.device)
        tables = self._tables(c.lattice, steps.device)
        for w, (sites, core) in enumerate(zip(*tables, strict=True)):
            own = core & (home[:, sites] == w) & (steps[:, sites] >= 0)
            rows = own.any(1).nonzero()[:, 0]
            if len(rows) == 0:
                continue
            own, inner = own[rows], steps[rows][:, sites].long()
            begin = torch.where(own, inner, torch.iinfo(torch.int64).max).amin(1, keepdim=True)
            stand_in = torch.where(inner < begin, filler, UNKNOWN)
            window = Configurations(self.small, c.conditions[rows], stand_in)
            expected = self._steps_of_window(window, torch.Generator().manual_seed(0), w).long()
            rank = _without_gaps(torch.where(own, inner, -1))
            if not torch.equal(torch.where(own, expected, -1), rank):
                raise ValueError(
                    f"the steps of window {w} are not those of the order of this model; use the "
                    "steps that draw_steps gives, or AnyOrderARM for other orders"
                )

    # ------------------------------------------------------------------ lattices and files
    def check_lattice(self, lattice: Lattice) -> None:
        """Raise ValueError if windows of the small cell do not cover a lattice."""
        self._tables(lattice, "cpu")

    def config(self) -> dict:
        """JSON-ready description."""
        return {
            "class": "WindowedModel",
            "model": self.model.config(),
            "small": self.small.to_dict(),
            "stride": list(self.stride),
            "order": self.order,
            "margin": list(self.margin),
        }

    @classmethod
    def from_config(cls, config: dict) -> WindowedModel:
        """Rebuild from :meth:`config` without ``class``."""
        from clease_nn.models import model_from_config

        return cls(
            model_from_config(config["model"]),
            Lattice.from_dict(config["small"]),
            config["stride"],
            config["order"],
            config["margin"],
        )


def _integers(name: str, value):
    """One integer, several, or None."""
    try:
        if value is None:
            return None
        return index(value) if np.ndim(value) == 0 else tuple(index(v) for v in value)
    except TypeError:
        raise TypeError(f"{name} must be an integer or three integers, got {value!r}") from None


def _rows_of_passes(steps: Tensor) -> Iterator[Tensor]:
    """Rows that draw something, pass by pass, as :meth:`WindowedModel.complete` goes."""
    for t in range(int(steps.max()) + 1 if steps.numel() else 0):
        rows = (steps == t).any(1).nonzero()[:, 0]
        if len(rows):
            yield rows


def _without_gaps(steps: Tensor) -> Tensor:
    """The same order in each row, without passes in which nothing is drawn; -1 stays -1."""
    ordered, order = steps.sort(1)
    new = torch.zeros_like(ordered)
    new[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).long()
    new[:, 0] = (ordered[:, 0] >= 0).long()
    return torch.empty_like(steps).scatter_(1, order, new.cumsum(1) - 1)
