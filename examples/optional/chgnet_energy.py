"""Au-Cu by CHGNet, a pretrained graph network: semi-grand canonical averages of a small cell.

By hand only; needs ``pip install 'clease_nn[chgnet]'``, whose wheel contains the weights. The
network is evaluated once for each symmetry-distinct configuration, and kept in ``--cache``.
"""

import argparse
import importlib.util
import sys
import time

import torch
from ase.build import bulk
from ase.filters import FrechetCellFilter

from clease_nn import CalculatorEnergy, Conditions, Lattice, SemiGrandCanonical
from clease_nn.energies import Relaxation


def make_calculator():
    """The pretrained network as an ASE calculator on the CPU; workers call this themselves."""
    from chgnet.model import CHGNet, CHGNetCalculator

    return CHGNetCalculator(CHGNet.load(use_device="cpu", verbose=False), use_device="cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="4 sites instead of 8")
    parser.add_argument("--relax", action="store_true", help="energies of relaxed cells")
    parser.add_argument("--cache", help="file of energies, for instance chgnet.db")
    args = parser.parse_args()
    if importlib.util.find_spec("chgnet") is None:
        print("chgnet is not installed (pip install 'clease_nn[chgnet]'): nothing to do")
        sys.exit(0)

    cell = bulk("Cu", a=3.9, cubic=True)
    lattice = Lattice.uniform(cell if args.short else cell * (1, 1, 2), ["Au", "Cu"])
    n = lattice.n_sites
    energy = CalculatorEnergy(
        make_calculator,
        relax=Relaxation(filter=FrechetCellFilter, fmax=0.05) if args.relax else None,
        cache=args.cache,
        progress=True,
    )
    start = time.perf_counter()
    states = SemiGrandCanonical(energy).enumerate(lattice)
    print(
        f"{len(states.energy)} configurations of {n} sites by {energy.calls} energies of CHGNet in "
        f"{time.perf_counter() - start:.0f} s"
    )
    how = "relaxed" if args.relax else "fixed at a = 3.9 angstrom"
    gold = (states.occupations == 0).double().mean(1)
    copper, pure_gold = states.energy[gold == 0], states.energy[gold == 1]
    mixing = (states.energy - gold * pure_gold - (1 - gold) * copper) / n
    best = int(mixing.argmin())
    print(
        f"lowest mixing energy (all cells {how}): {1e3 * mixing[best]:.1f} meV/site, "
        f"{lattice.atoms(states.occupations[best]).get_chemical_formula()}"
    )
    mu = float(pure_gold - copper) / n
    print(f"share of Au at mu(Au) - mu(Cu) = {mu:.3f} eV")
    for temperature in (400.0, 800.0, 1200.0):
        share = states.mean(Conditions([temperature], [[mu, 0.0]]), gold)
        print(f"{temperature:6.0f} K {float(share[0]):.4f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
