"""Constraints and generators of CLEASE: clamped, masked or rejected, never redrawn."""

import numpy as np
import pytest
from clease.montecarlo import RandomFlip, RandomFlipWithinBasis, RandomSwap
from clease.montecarlo.constraints import (
    ConstrainElementInserts,
    ConstrainSwapByBasis,
    FixedElement,
    FixedIndices,
    MCConstraint,
)
from sampler_helpers import binary_atoms, exact, pooled_z, rocksalt_atoms, ternary_atoms, trained

from clease_nn.hosts.clease.sampler import NeuralSGCSampler
from clease_nn.warnings import NoModelWarning

CHEM_POT = {"c1_0": 0.02}
pytestmark = [
    pytest.mark.usefixtures("nowhere"),
    pytest.mark.filterwarnings("ignore::clease_nn.warnings.NoModelWarning"),
]


def energies(mc, n=12, steps=1500, chem_pot=CHEM_POT):
    """Mean energies of consecutive runs."""
    mc.run(300, call_observers=False, chem_pot=chem_pot)
    out = []
    for _ in range(n):
        mc.run(steps)
        out.append(mc.get_thermodynamic_quantities()["energy"])
    return out


def restricted(p, e, inside):
    """Mean energy over some of the states."""
    w = p * inside
    return float((w * e).sum() / w.sum())


@pytest.mark.parametrize("interval", [None, 1])
def test_fixed_sites(tmp_path, interval):
    """Fixed sites never change; the others have the conditional distribution."""
    atoms = binary_atoms(tmp_path)
    atoms.symbols[3] = "Au"
    _, x, p, e = exact(atoms, 900, CHEM_POT)
    mc = NeuralSGCSampler(
        atoms, 900, ["Au", "Cu"], model=trained(atoms), neural_interval=interval, seed=1
    )
    mc.generator.add_constraint(FixedIndices([0, 3]))
    out = energies(mc, steps=1500 if interval is None else 300)
    assert atoms.symbols[0] == "Cu" and atoms.symbols[3] == "Au"
    inside = ((x[:, 0] == 1) & (x[:, 3] == 0)).double()
    assert abs(pooled_z(out, restricted(p, e, inside))) < 4
    with pytest.raises(ValueError, match="restrict the configurations"):
        mc.free_energy()


@pytest.mark.parametrize("interval", [None, 1])
def test_fixed_element(tmp_path, interval):
    """Atoms of a fixed element stay where they are and none are added."""
    atoms = ternary_atoms(tmp_path)
    atoms.symbols[2] = "Pd"
    chem_pot = {"c1_0": 0.03, "c1_1": -0.02}
    _, x, p, e = exact(atoms, 1200, chem_pot)
    model = trained(atoms, ("c1_0", "c1_1"))
    mc = NeuralSGCSampler(
        atoms, 1200, ["Au", "Cu", "Pd"], model=model, neural_interval=interval, seed=1
    )
    mc.generator.add_constraint(FixedElement("Pd"))
    out = energies(mc, steps=1500 if interval is None else 300, chem_pot=chem_pot)
    assert (atoms.symbols == "Pd").sum() == 1 and atoms.symbols[2] == "Pd"
    inside = ((x[:, 2] == 2) & ((x == 2).sum(1) == 1)).double()
    assert abs(pooled_z(out, restricted(p, e, inside))) < 4


@pytest.mark.parametrize("way", ["inserts", "basis"])
def test_two_sublattices(tmp_path, way):
    """Elements stay on their sublattices, by constraint or by generator; averages are exact."""
    atoms = rocksalt_atoms(tmp_path)
    settings = atoms.calc.settings
    elements = [["Li", "V"], ["O", "X"]]
    chem_pot = {"c1_0": 0.05}
    _, _, p, e = exact(atoms, 1000, chem_pot)
    if way == "inserts":
        mc = NeuralSGCSampler(
            atoms, 1000, ["Li", "V", "O", "X"], model=trained(atoms), neural_interval=5, seed=1
        )
        mc.generator.add_constraint(
            ConstrainElementInserts(atoms, settings.index_by_basis, elements)
        )
    else:
        generator = RandomFlipWithinBasis(elements, atoms, settings.index_by_basis)
        mc = NeuralSGCSampler(
            atoms, 1000, generator=generator, model=trained(atoms), neural_interval=5, seed=1
        )
    assert abs(pooled_z(energies(mc, steps=3000, chem_pot=chem_pot), float((p * e).sum()))) < 4
    assert mc.neural_schedule is not None


def test_any_other_constraint_rejects(tmp_path):
    """A constraint of one's own is not redrawn: the Boltzmann weights of the allowed states."""

    class AtMostThreeGold(MCConstraint):
        def __init__(self, atoms):
            super().__init__()
            self.atoms = atoms

        def __call__(self, changes):
            gold = (self.atoms.symbols == "Au").sum()
            gold += sum((c.new_symb == "Au") - (c.old_symb == "Au") for c in changes)
            return gold <= 3

    atoms = binary_atoms(tmp_path)
    _, x, p, e = exact(atoms, 1500, CHEM_POT)
    mc = NeuralSGCSampler(atoms, 1500, ["Au", "Cu"], model=trained(atoms), seed=1)
    mc.generator.add_constraint(AtMostThreeGold(atoms))
    with pytest.warns(NoModelWarning, match="AtMostThreeGold"):
        out = energies(mc, steps=2500)
    inside = ((x == 0).sum(1) <= 3).double()
    assert abs(pooled_z(out, restricted(p, e, inside))) < 4


def test_a_subset_of_sites(tmp_path):
    """A RandomFlip generator on some sites leaves the others alone."""
    atoms = binary_atoms(tmp_path)
    _, x, p, e = exact(atoms, 900, CHEM_POT)
    generator = RandomFlip(["Au", "Cu"], atoms, indices=[1, 2, 3, 4])
    mc = NeuralSGCSampler(
        atoms, 900, generator=generator, model=trained(atoms), neural_interval=1, seed=1
    )
    out = energies(mc, steps=300)
    inside = (x[:, [0, 5, 6, 7]] == 1).all(1).double()
    assert abs(pooled_z(out, restricted(p, e, inside))) < 4


def test_swaps_keep_the_composition(tmp_path):
    """A swap generator runs at the host's speed, without neural moves, and says so."""
    atoms = binary_atoms(tmp_path)
    atoms.symbols[:4] = "Au"
    atoms.get_potential_energy()
    mc = NeuralSGCSampler(atoms, 900, generator=RandomSwap(atoms), model=trained(atoms), seed=1)
    with pytest.warns(NoModelWarning, match="RandomSwap"):
        mc.run(300, chem_pot=CHEM_POT)
    assert (atoms.symbols == "Au").sum() == 4 and mc.current_accept_rate > 0


def test_swap_constraint_is_refused(tmp_path):
    """ConstrainSwapByBasis has no meaning for flips; the remedy is named."""
    atoms = binary_atoms(tmp_path)
    mc = NeuralSGCSampler(atoms, 900, ["Au", "Cu"])
    mc.generator.add_constraint(ConstrainSwapByBasis(atoms, [list(range(8))]))
    with pytest.raises(ValueError, match="ConstrainElementInserts"):
        mc.run(10, chem_pot=CHEM_POT)


def test_impossible_constraints(tmp_path):
    """Nothing left to move, or a present element that moves may not touch."""
    atoms = binary_atoms(tmp_path)
    mc = NeuralSGCSampler(atoms, 900, ["Au", "Cu"])
    mc.generator.add_constraint(FixedIndices(range(8)))
    with pytest.raises(ValueError, match="loosen the constraints"):
        mc.run(10, chem_pot=CHEM_POT)
    mc.reset_eci()
    ternary = ternary_atoms(tmp_path)
    ternary.symbols[5] = "Pd"
    mc = NeuralSGCSampler(ternary, 900, ["Au", "Cu"])
    with pytest.raises(ValueError, match="atom 5 is Pd"):
        mc.run(10, chem_pot=CHEM_POT)


def test_removed_constraints_are_gone(tmp_path):
    """remove_constraints frees all sites again."""
    atoms = binary_atoms(tmp_path)
    mc = NeuralSGCSampler(atoms, 900, ["Au", "Cu"], seed=1)
    mc.generator.add_constraint(FixedIndices(range(7)))
    mc.run(200, chem_pot=CHEM_POT)
    assert (atoms.symbols[:7] == "Cu").all()
    mc.generator.remove_constraints()
    mc.run(500)
    assert np.any(atoms.symbols[:7] == "Au")
