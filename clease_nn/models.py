"""Models of configurations with exact likelihoods: the conditional is all a model has to say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from clease_nn.configurations import Configurations
from clease_nn.lattice import UNKNOWN, Lattice
from clease_nn.networks import AbstractNetwork, network_from_config

__all__ = ["AbstractOccupationModel", "AnyOrderARM", "model_from_config"]

Fields = Callable[[Configurations], Tensor]


class AbstractOccupationModel(nn.Module, ABC):
    """A normalised distribution of configurations, drawn pass by pass.

    A subclass says which sites are drawn in which pass (:meth:`draw_steps`) and the conditional
    of every unknown site (:meth:`log_conditionals`); drawing and scoring follow, once for all::

        ln q(x | given) = sum over drawn sites i of  ln q(x_i | given, sites of earlier passes)

    Sites of one pass are drawn independently of each other given the earlier ones.

    Attributes
    ----------
    needs_fields : bool
        Whether ``fields`` must be handed to :meth:`complete` and :meth:`log_prob`.
    """

    needs_fields: bool

    @abstractmethod
    def log_conditionals(self, c: Configurations, fields: Tensor | None) -> Tensor:
        """ln q(species | known sites) of every site, (batch, sites, species), float64.

        Species not allowed on a site have -inf. Rows of known sites carry no meaning.
        """

    def log_conditionals_at(self, c: Configurations, fields: Tensor | None, site: Tensor) -> Tensor:
        """:meth:`log_conditionals` of one site of each row, (batch, species), without gradients.

        Models that can compute it faster than for all sites do so.
        """
        with torch.no_grad():
            log_q = self.log_conditionals(c, fields)
        return log_q[torch.arange(len(c), device=log_q.device), site]

    @abstractmethod
    def draw_steps(self, c: Configurations, rng: torch.Generator) -> Tensor:
        """Pass in which each site is to be drawn, (batch, sites) int16, -1 where known."""

    @torch.no_grad()
    def complete(
        self,
        partial: Configurations,
        rng: torch.Generator,
        fields: Fields | None = None,
        steps: Tensor | None = None,
    ) -> Configurations:
        """Draw every unknown site; known sites stay.

        Parameters
        ----------
        partial : Configurations
            Any sites known, none, or all.
        rng : torch.Generator
            Source of all randomness, on the CPU.
        fields : callable, optional
            ``ensemble.fields``; needed where ``needs_fields``.
        steps : Tensor (batch, sites), optional
            Passes to use instead of :meth:`draw_steps`.

        Returns
        -------
        Configurations
            With ``occupations``, ``step`` and ``log_prob`` (ln q of the drawn sites given the
            given ones).

        Raises
        ------
        ValueError
            If fields are needed and absent.
        """
        device = partial.occupations.device
        if steps is None:
            steps = self.draw_steps(partial, rng)
        occupations = partial.occupations.clone()
        log_prob = torch.zeros(len(partial), dtype=torch.float64, device=device)
        n_passes = int(steps.max()) + 1 if steps.numel() else 0
        for t in range(n_passes):
            now = steps == t
            rows = now.any(1).nonzero()[:, 0]
            if len(rows) == 0:
                continue
            everyone = len(rows) == len(partial)
            c = replace(partial, occupations=occupations)
            c = c if everyone else c[rows]
            row, site = (now if everyone else now[rows]).nonzero(as_tuple=True)
            if len(row) == len(c):  # one site a row
                log_q = self.log_conditionals_at(c, self._fields(c, fields), site)
            else:
                log_q = self.log_conditionals(c, self._fields(c, fields))[row, site]
            u = torch.rand(len(row), generator=rng, dtype=torch.float64).to(device)
            cumulative = log_q.exp().cumsum(-1)
            drawn = (u[:, None] * cumulative[:, -1:] >= cumulative).sum(-1)
            last = (log_q > -torch.inf).long() * torch.arange(log_q.shape[1], device=device)
            drawn = torch.minimum(drawn, last.max(-1).values)
            target = rows[row]
            occupations[target, site] = drawn.to(torch.int8)
            log_prob.index_add_(0, target, log_q.gather(1, drawn[:, None])[:, 0])
        return replace(
            partial,
            occupations=occupations,
            step=steps,
            log_prob=log_prob,
            energy=None,
            log_target=None,
        )

    def log_prob(
        self,
        full: Configurations,
        *,
        steps: Tensor,
        fields: Fields | None = None,
        chunk: int = 512,
    ) -> Tensor:
        """ln q of the sites with ``steps >= 0`` given the others, shape (batch,), float64.

        Differentiable with respect to the parameters. All passes of all rows are independent
        given ``steps`` and are evaluated ``chunk`` at a time.

        Raises
        ------
        ValueError
            If a site is unknown, or fields are needed and absent.
        """
        if not bool(full.known.all()):
            raise ValueError("log_prob needs full configurations; complete them first")
        device = full.occupations.device
        steps = steps.to(device)
        out = torch.zeros(len(full), dtype=torch.float64, device=device)
        n_passes = int(steps.max()) + 1 if steps.numel() else 0
        used = torch.zeros(len(full), max(n_passes, 1), dtype=torch.bool, device=device)
        drawn_row, drawn_site = (steps >= 0).nonzero(as_tuple=True)
        used[drawn_row, steps[drawn_row, drawn_site].long()] = True
        pairs = used.nonzero()
        for k in range(0, len(pairs), chunk):
            rows, passes = pairs[k : k + chunk].T
            known = steps[rows] < passes[:, None]
            truth = full.occupations[rows].long()
            c = replace(full, log_prob=None, energy=None, log_target=None, step=None)[rows]
            c = replace(c, occupations=torch.where(known, c.occupations, UNKNOWN).to(torch.int8))
            log_q = self.log_conditionals(c, self._fields(c, fields)).gather(2, truth[:, :, None])[
                :, :, 0
            ]
            now = steps[rows] == passes[:, None]
            out = out.index_add(0, rows, torch.where(now, log_q, 0.0).sum(1))
        return out

    def _fields(self, c: Configurations, fields: Fields | None) -> Tensor | None:
        if not self.needs_fields:
            return None
        if fields is None:
            raise ValueError(
                "this model was trained with conditional fields of its energy; hand it "
                "`fields=ensemble.fields`"
            )
        return fields(c)

    @abstractmethod
    def config(self) -> dict:
        """JSON-ready description from which :func:`model_from_config` rebuilds the model."""


class AnyOrderARM(AbstractOccupationModel):
    """Any-order autoregressive model: one network for every order of drawing.

    The network gives the conditional of each unknown site for any set of known sites; sites are
    drawn one by one in an order that is uniformly random for every configuration (Uria et al.,
    ICML 2014; Hoogeboom et al., ICLR 2022). ``log_prob`` is that of the order in ``step``.

    With ``gate``, sites whose whole interaction range is known take the physical conditional,
    which is then exact, and a random maximal set of mutually non-interacting sites is drawn last
    in one pass: fewer passes on lattices with short-ranged interactions, no change on others.

    Parameters
    ----------
    network : AbstractNetwork
    gate : sequence of (sublattice, sublattice, distance), optional
        Pair shells that contain every interaction (``ClusterTables.interaction_shells``).

    Raises
    ------
    ValueError
        If a gate is given to a network without fields: it would toss a coin for the last sites.

    Examples
    --------
    >>> from clease_nn.conditions import ConditionRange
    >>> from clease_nn.lattice import Lattice
    >>> from clease_nn.networks import LatticeConvolution
    >>> lattice = Lattice.square(2)
    >>> box = ConditionRange((300, 900), [-0.1], [0.1], [[-1.0, 1.0]])
    >>> model = AnyOrderARM(LatticeConvolution(lattice, box, needs_fields=False))
    >>> c = Configurations.unknown(lattice, box.grid(1, 2))
    >>> model.complete(c, torch.Generator().manual_seed(0)).log_prob
    tensor([-2.7726, -2.7726], dtype=torch.float64)
    """

    def __init__(
        self,
        network: AbstractNetwork,
        gate: Sequence[tuple[int, int, float]] | None = None,
    ):
        super().__init__()
        if gate is not None and not network.needs_fields:
            raise ValueError(
                "a gate needs the physical conditionals; make the network with needs_fields=True"
            )
        self.network = network
        self.gate = None if gate is None else [(int(a), int(b), float(d)) for a, b, d in gate]
        self._linked: dict[str, Tensor] = {}

    def _interacting(self, lattice: Lattice, device) -> Tensor:
        """(sites, sites) float32: 1 where two different sites interact."""
        if lattice.fingerprint not in self._linked:
            linked = torch.as_tensor(lattice.relation_matrices(self.gate).sum(0) > 0)
            self._linked[lattice.fingerprint] = linked.fill_diagonal_(False).to(torch.float32)
        return self._linked[lattice.fingerprint].to(device)

    def _gated(self, c: Configurations, logits: Tensor, fields: Tensor | None, site=None):
        """Logits with the physical ones wherever a site's whole interaction range is known."""
        if self.gate is None:
            return logits
        linked = self._interacting(c.lattice, logits.device)
        unknown = (~c.known).to(torch.float32)
        if site is None:
            open_range = unknown @ linked > 0
            return torch.where(open_range[..., None], logits, fields.to(logits))
        open_range = (unknown * linked[site]).sum(1) > 0
        own = fields[torch.arange(len(c), device=site.device), site]
        return torch.where(open_range[:, None], logits, own.to(logits))

    @property
    def needs_fields(self) -> bool:
        """Whether fields must be handed to :meth:`complete` and :meth:`log_prob`."""
        return self.network.needs_fields

    def log_conditionals(self, c: Configurations, fields: Tensor | None) -> Tensor:
        """ln q(species | known sites) of every site, (batch, sites, species), float64."""
        logits = self._gated(c, self.network(c, fields).to(torch.float64), fields)
        allowed = c.lattice.allowed_mask(logits.device)
        return logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)

    def log_conditionals_at(self, c: Configurations, fields: Tensor | None, site: Tensor) -> Tensor:
        """ln q(species | known sites) of one site of each row, (batch, species), float64."""
        logits = self.network.at(c, fields, site).to(torch.float64)
        logits = self._gated(c, logits, fields, site)
        allowed = c.lattice.allowed_mask(logits.device)[site]
        return logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)

    def draw_steps(self, c: Configurations, rng: torch.Generator) -> Tensor:
        """A uniformly random order of the unknown sites of every row, (batch, sites) int16.

        With a gate, a random maximal set of non-interacting sites shares the last pass.
        """
        known = c.known
        key = torch.rand(known.shape, generator=rng).to(known.device)
        if self.gate is not None:
            key = key + self._last_together(c, key)
        rank = key.masked_fill(known, 3.0).argsort(1).argsort(1)
        if self.gate is not None:
            first = (key < 1.0) & ~known
            rank = torch.minimum(rank, first.sum(1, keepdim=True))
        return torch.where(known, -1, rank).to(torch.int16)

    def _last_together(self, c: Configurations, key: Tensor) -> Tensor:
        """(batch, sites) float32: 1 on a random maximal set of non-interacting unknown sites."""
        linked = self._interacting(c.lattice, key.device)
        free = (~c.known).to(torch.float32)
        chosen = torch.zeros_like(free)
        rows = torch.arange(len(c), device=key.device)
        for site in key.argsort(1).flip(1).T:  # the sites that would come last, first
            take = free[rows, site]
            chosen[rows, site] = take
            free = free * (1 - take[:, None] * linked[site])
        return chosen

    def config(self) -> dict:
        """JSON-ready description."""
        gate = None if self.gate is None else [list(k) for k in self.gate]
        return {"class": "AnyOrderARM", "network": self.network.config(), "gate": gate}


def model_from_config(config: dict) -> AbstractOccupationModel:
    """Rebuild a model from its ``config()``; weights are loaded apart.

    Raises
    ------
    ValueError
        If the class is not one of this package.
    """
    if config.get("class") != "AnyOrderARM":
        raise ValueError(
            f"model class {config.get('class')!r} is not known to this version of clease_nn; "
            "update clease_nn"
        )
    return AnyOrderARM(network_from_config(config["network"]), config["gate"])
