"""A crystal-graph network, trained on EMT energies, as the energy of a Monte Carlo simulation.

Learns the energies of a few fcc Au-Cu cells, samples the semi-grand canonical ensemble of the
network, and corrects the averages with EMT energies of the configurations drawn. The cell is so
small that EMT itself can be summed over all configurations: the last column is exact.
"""

import argparse
import time

import numpy as np
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.data import atomic_numbers
from ase.units import kB
from torch import nn

from clease_nn import (
    CalculatorEnergy,
    CallableEnergy,
    Chains,
    Conditions,
    Lattice,
    SemiGrandCanonical,
    check_energy_model,
)
from clease_nn.statistics import log_mean_exp, weighted_mean
from clease_nn.symmetry import canonical_occupations, site_permutations

SPECIES = ["Au", "Cu"]
NUMBERS = [atomic_numbers[s] for s in SPECIES]


class CrystalGraph(nn.Module):
    """Sum of atomic energies from messages along the bonds of a fixed lattice.

    A message is filtered by a function of the bond length (continuous-filter convolution,
    Schuett et al., J. Chem. Phys. 148, 241722 (2018)), so that the energy has the symmetry of the
    lattice. The linear part in the composition is fitted before the training.
    """

    def __init__(self, lattice: Lattice, shells: int = 3, width: int = 24, layers: int = 2):
        super().__init__()
        keys = lattice.pair_shells(shells)
        lengths = torch.tensor([k[2] for k in keys], dtype=torch.float32)
        centres = torch.linspace(2.0, float(lengths.max()) + 0.5, 8)
        elements = sorted(NUMBERS)
        self.register_buffer("bonds", torch.as_tensor(lattice.relation_matrices(keys)))
        self.register_buffer("radial", torch.exp(-4 * (lengths[:, None] - centres) ** 2))
        self.register_buffer("elements", torch.tensor(elements))
        self.register_buffer("linear", torch.zeros(len(elements)))
        self.register_buffer("scale", torch.ones(()))
        self.embedding = nn.Embedding(len(elements), width)
        self.filters = nn.ModuleList(
            nn.Sequential(nn.Linear(8, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(layers)
        )
        self.updates = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(layers)
        )
        self.readout = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        """Energies (batch,) in eV from atomic numbers (batch, atoms)."""
        index = torch.searchsorted(self.elements, numbers)
        h = self.embedding(index)
        for make_filter, update in zip(self.filters, self.updates, strict=True):
            message = torch.einsum("sij,bjc,sc->bic", self.bonds / 12, h, make_filter(self.radial))
            h = h + update(torch.cat([h, message], -1))
        per_atom = self.linear[index] + self.scale * self.readout(h)[..., 0]
        return per_atom.double().sum(1)

    def learn(self, numbers, energies, steps: int, seed: int) -> None:
        """Least squares by Adam on energies per atom, full batches."""
        torch.manual_seed(seed)
        for module in self.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        n = numbers.shape[1]
        counts = torch.stack([(numbers == z).sum(1) for z in self.elements], 1).double()
        solution = torch.linalg.lstsq(counts, energies).solution
        self.linear.copy_(solution)
        spread = ((energies - counts @ solution) / n).std()
        self.scale.copy_(spread)
        optimizer = torch.optim.AdamW(self.parameters(), 1e-2, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (((self(numbers) - energies) / (n * spread)) ** 2).mean()
            loss.backward()
            optimizer.step()
            schedule.step()


def structures(lattice: Lattice, n: int, rng: np.random.Generator) -> torch.Tensor:
    """Random configurations with compositions spread evenly."""
    share = rng.random((n, 1))
    return torch.from_numpy((rng.random((n, lattice.n_sites)) < share).astype(np.int8))


def learn(lattice: Lattice, emt: CalculatorEnergy, n: int, steps: int, rng) -> CallableEnergy:
    """A network taught by the energies of ``n`` random cells, its error on others printed."""
    start = time.perf_counter()
    sites = lattice.n_sites
    pure = torch.tensor([[0] * sites, [1] * sites], dtype=torch.int8)
    train = torch.cat([pure, structures(lattice, n, rng)])
    energies = emt(lattice, train)
    network = CrystalGraph(lattice)
    network.learn(torch.tensor(NUMBERS)[train.long()], energies, steps, int(rng.integers(2**31)))
    learned = CallableEnergy(network, name="crystal graph, Au-Cu, EMT")
    check_energy_model(learned, lattice, tolerance=1e-5)
    print(
        f"{emt.calls} distinct cells of {sites} atoms learned in "
        f"{time.perf_counter() - start:.1f} s, {sum(p.numel() for p in network.parameters())} "
        "parameters"
    )

    seen = {row.tobytes() for row in distinct(lattice, train)}
    cells = distinct(lattice, structures(lattice, 100, rng))
    new = torch.from_numpy(np.stack([row for row in cells if row.tobytes() not in seen]))
    truth = emt(lattice, new)
    error = 1e3 * (learned(lattice, new) - truth) / sites
    counts = torch.stack([(new == k).sum(1) for k in (0, 1)], 1).double()
    mixing = 1e3 * (truth - counts @ energies[:2] / sites) / sites
    print(
        f"held out: {len(new)} cells, none a symmetry image of a learned one; error RMS "
        f"{error.square().mean().sqrt():.2f}, largest {error.abs().max():.2f} meV/atom; their "
        f"mixing energies spread over {mixing.std():.1f} meV/atom"
    )
    return learned


def distinct(lattice: Lattice, x: torch.Tensor) -> np.ndarray:
    """Representatives of the configurations in ``x`` up to symmetry."""
    return np.unique(canonical_occupations(x.numpy(), site_permutations(lattice)), axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="about fifteen seconds")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    short = args.short
    torch.set_num_threads(1)
    rng = np.random.default_rng(args.seed)

    lattice = Lattice.uniform(bulk("Cu", a=3.8) * (2, 2, 4), SPECIES)
    emt = CalculatorEnergy(EMT())
    learned = learn(lattice, emt, 120 if short else 160, 300 if short else 3000, rng)

    by_network = SemiGrandCanonical(learned).enumerate(lattice).energy
    exact = SemiGrandCanonical(emt).enumerate(lattice)
    gold = (exact.occupations == 0).double().mean(1)
    n_chains = 200 if short else 500
    print(
        f"\n{n_chains} chains of the learned energy a condition: share of Au as sampled, after "
        "EMT weights, and exact by EMT;\ndifference of the grand potentials, EMT less learned, "
        "from the weights and exact"
    )
    print(f"{'T (K)':>6} {'mu':>6} {'sampled':>17} {'weighted':>17} {'exact':>8} {'NESS':>5} "
          f"{'EMT calls':>9} {'difference (eV)':>18} {'exact':>8}")  # fmt: skip
    n = lattice.n_sites
    middle = float(exact.energy[gold == 1] - exact.energy[gold == 0]) / n
    for temperature in (1200.0, 700.0):
        for shift in (-0.1, 0.1) if short else (-0.1, 0.0, 0.1):
            one = Conditions([temperature], [[middle + shift, 0.0]])
            chains = Chains(
                SemiGrandCanonical(learned), lattice, one.repeat(n_chains), seed=rng.integers(2**31)
            )
            chains.sweep(20 if short else 50)
            x = torch.from_numpy(chains.occupations)
            kT = kB * temperature
            log_w = (learned(lattice, x) - emt(lattice, x)) / kT
            share = (x == 0).double().mean(1)
            sampled = weighted_mean(share, torch.zeros_like(log_w))
            weighted = weighted_mean(share, log_w)
            log_weight = exact.log_target(one)
            difference = -kT * (
                torch.logsumexp(log_weight, 0)
                - torch.logsumexp(log_weight + (exact.energy - by_network) / kT, 0)
            )
            print(
                f"{temperature:6.0f} {shift:6.2f} {_text(sampled):>17} {_text(weighted):>17} "
                f"{float(exact.mean(one, gold)[0]):8.4f} {weighted.ness:5.2f} "
                f"{len(distinct(lattice, x)):9d} {_text(-kT * log_mean_exp(log_w)):>18} "
                f"{float(difference):8.4f}"
            )
    print(
        f"\nmu: of Au relative to Cu, in eV above {middle:.3f} eV, where the pure cells balance. "
        f"The exact column took {emt.calls} EMT energies, the distinct ones of all 2^{n} "
        "configurations: a cell this small needs no network. In larger ones the weights alone "
        "must tell whether the learned energy is good enough; their logarithms spread like the "
        "square root of the number of atoms."
    )


def _text(e) -> str:
    return f"{float(e.value):.4f} +- {float(e.error):.4f}"


if __name__ == "__main__":
    main()
