"""A usual icet script, changed in its import and with a training added.

Runs the semi-grand canonical ensemble over a loop of temperatures and chemical potentials, as the
tutorials of mchammer do, then asks for what Monte Carlo cannot give: absolute free energies, and
samples at a condition in between.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from ase.build import bulk
from icet import ClusterExpansion, ClusterSpace
from icet.input_output.logging_tools import set_log_config
from mchammer.calculators import ClusterExpansionCalculator

from clease_nn import NeuralSGCEnsemble as SemiGrandCanonicalEnsemble  # was: mchammer.ensembles

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--short", action="store_true", help="a few seconds only")
parser.add_argument("--folder", type=Path, help="where to keep the files; default a new folder")
args = parser.parse_args()
set_log_config(level="WARNING")
folder = args.folder or Path(tempfile.mkdtemp())

# a small ordering alloy; usually: expansion = ClusterExpansion.read("agpd.ce")
primitive = bulk("Ag", a=4.0)
space = ClusterSpace(primitive, cutoffs=[4.1], chemical_symbols=["Ag", "Pd"])
expansion = ClusterExpansion(space, [-0.05, 0.02, 0.03, -0.01])
structure = primitive.repeat(3)
calculator = ClusterExpansionCalculator(structure, expansion)
temperatures, differences = (900, 600, 300), np.linspace(-0.2, 0.2, 3 if args.short else 9)

# new: once
first = SemiGrandCanonicalEnsemble(structure, calculator, 600, {"Ag": 0, "Pd": 0}, random_seed=1)
first.fit(
    temps=(250, 1000),
    chem_pots={"Pd": (-0.3, 0.3)},
    max_seconds=5 if args.short else 60,
    seed=1,
)
first.save(folder / "agpd.nn")

print(f"{'T (K)':>6} {'dmu (eV)':>9} {'E (eV)':>9} {'x(Pd)':>7} {'+-':>6} {'accepted':>8}")
for temperature in temperatures:
    for dmu in differences:
        mc = SemiGrandCanonicalEnsemble(
            structure=structure,
            calculator=calculator,
            temperature=temperature,
            chemical_potentials={"Ag": 0, "Pd": float(dmu)},
            dc_filename=str(folder / f"sgc-T{temperature}-dmu{dmu:+.3f}.dc"),
            random_seed=1,
        )
        mc.run(number_of_trial_steps=len(structure) * (100 if args.short else 3000))
        data, start = mc.data_container, 10 * len(structure)
        pd = data.analyze_data("Pd_count", start=start)
        print(
            f"{temperature:6d} {dmu:9.3f} {data.get_average('potential', start=start):9.4f} "
            f"{pd['mean'] / len(structure):7.3f} {pd['error_estimate'] / len(structure):6.3f} "
            f"{data.get_average('acceptance_ratio', start=start):8.3f}"
        )

# new: at any condition of the trained range, without a run
n = 400 if args.short else 2000
f = first.free_energy(temperature=450, chemical_potentials={"Ag": 0, "Pd": 0.07}, n=n)
print(f"-kT ln Z at 450 K, dmu = 0.07 eV: {f} eV per supercell")
drawn = first.sample(n, temperature=450, chemical_potentials={"Ag": 0, "Pd": 0.07})
print(f"the first of {len(drawn)} independent samples: {drawn.atoms(0).get_chemical_formula()}")
print(f"files of mchammer: {folder}")
