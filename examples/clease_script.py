"""A usual CLEASE script, changed in its import and with a training added.

Cools a 16-site Cu-Au cell at several chemical potentials, as one would with ``SGCMonteCarlo``,
then asks for what Monte Carlo cannot give: absolute free energies, and samples at a condition in
between.
"""

import argparse
import random
import tempfile
from pathlib import Path

from clease.montecarlo.observers import ConcentrationObserver

from clease_nn import NeuralSGCSampler as SGCMonteCarlo  # was: from clease.montecarlo import ...
from clease_nn.hosts.clease.examples import cuau_emt_atoms

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--short", action="store_true", help="a few seconds only")
parser.add_argument("--model", type=Path, help="where to keep the model; default a new folder")
args = parser.parse_args()

random.seed(1)
atoms = cuau_emt_atoms((2, 2, 4))  # any Atoms with a Clease calculator
model = args.model or Path(tempfile.mkdtemp()) / "cuau.nn"

mc = SGCMonteCarlo(
    atoms, 800, symbols=["Au", "Cu"], observe_singlets=True, model=model if model.exists() else None
)
if not model.exists():  # new: once
    mc.fit(
        temps=(300, 1000),
        chem_pots={"c1_0": (-0.08, 0.04)},
        max_seconds=5 if args.short else 60,
        seed=1,
    )
    mc.save(model)

mc.attach(ConcentrationObserver(atoms, element="Au"))
print(
    f"{'T (K)':>6} {'c1_0':>7} {'E - mu N (eV)':>14} {'C (eV/K)':>10} {'x(Au)':>7} {'accepted':>8}"
)
for chem_pot in (-0.03, 0.0, 0.02):
    for temperature in (800, 600, 400):
        mc.temperature = temperature
        mc.run(500, chem_pot={"c1_0": chem_pot}, call_observers=False)  # equilibrate
        mc.run(2_000 if args.short else 50_000, chem_pot={"c1_0": chem_pot})
        q = mc.get_thermodynamic_quantities()
        print(
            f"{temperature:6d} {chem_pot:7.3f} {q['sgc_energy']:14.4f} "
            f"{q['sgc_heat_capacity']:10.2e} {q['Au_conc']:7.3f} {q['accept_rate']:8.3f}"
        )

# new: at any condition of the trained range, without a run
n = 200 if args.short else 2000
f = mc.free_energy(temp=550, chem_pot={"c1_0": -0.01}, n=n)
print(f"-kT ln Z at 550 K, c1_0 = -0.01 eV: {f} eV per supercell")
drawn = mc.sample(n, temp=550, chem_pot={"c1_0": -0.01}, weighted=True)
print(f"the first of {len(drawn)} independent samples: {drawn.atoms(0).get_chemical_formula()}")
