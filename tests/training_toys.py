"""Tiny models and ensembles whose gradients can be enumerated."""

import itertools
from dataclasses import replace

import torch

from clease_nn.conditions import ConditionRange
from clease_nn.configurations import Configurations
from clease_nn.energies.ising import ising_energy
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.models import AnyOrderARM, FixedOrderARM
from clease_nn.networks import MLP, MaskedMLP

BOX = ConditionRange((25000, 60000), [-0.5], [0.5], [[-1.0, 1.0]])


def ising(nx=2, ny=2):
    """A small Ising model in a field: lattice, ensemble, range."""
    lattice = Lattice.square(nx, ny)
    return lattice, SemiGrandCanonical(ising_energy(lattice)), BOX


def model(kind, lattice, width=16, layers=2, seed=0, spoilt=0.0):
    """A small model that needs no fields; ``spoilt``: standard deviation of its head."""
    torch.manual_seed(seed)
    network = {"any": MLP, "fixed": MaskedMLP}[kind](
        lattice, BOX, width=width, layers=layers, needs_fields=False
    )
    out = {"any": AnyOrderARM, "fixed": FixedOrderARM}[kind](network)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if name.startswith("head"):
                p.add_(torch.randn(p.shape) * spoilt)
    return out.eval()


def gradient(loss, of) -> torch.Tensor:
    """All gradients in one vector, float64; parameters that get none count as zero."""
    grads = torch.autograd.grad(loss, list(of.parameters()), allow_unused=True)
    parts = [
        torch.zeros(p.numel()) if g is None else g.reshape(-1)
        for g, p in zip(grads, of.parameters(), strict=True)
    ]
    return torch.cat(parts).double()


def every_row(of, ensemble, lattice, conditions) -> Configurations:
    """Each state in each order that the model may draw it in, at one condition, scored."""
    states = ensemble.enumerate(lattice).occupations
    n = lattice.n_sites
    orders = [list(range(n))] if not of.any_order else list(itertools.permutations(range(n)))
    steps = torch.tensor(orders, dtype=torch.int16)
    rows = len(states) * len(steps)
    c = Configurations(
        lattice,
        conditions.repeat(rows),
        states.repeat_interleave(len(steps), 0),
        step=steps.repeat(len(states), 1),
    )
    c = ensemble.score(c)
    with torch.no_grad():
        return replace(c, log_prob=of.log_prob(c, steps=c.step))


def directions(n: int, count: int = 10, seed: int = 0) -> torch.Tensor:
    """Random unit vectors, (count, n): gradients are compared along them."""
    rng = torch.Generator().manual_seed(seed)
    v = torch.randn(count, n, generator=rng, dtype=torch.float64)
    return v / v.norm(dim=1, keepdim=True)


def z_scores(estimates: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Deviation of the mean estimate (rows) from ``exact`` in errors, along fixed directions."""
    v = torch.cat([directions(len(exact)), (exact / exact.norm())[None]])
    x = (estimates - exact) @ v.T
    return x.mean(0) / (x.std(0) / len(x) ** 0.5)
