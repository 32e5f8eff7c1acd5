"""Calculators that misbehave, importable by worker processes."""

import os
import time

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter


class Pairs(Calculator):
    """Sum over close pairs of z_i z_j exp(-d^2), without parameters to recognise it by."""

    implemented_properties = ["energy"]

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        d = self.atoms.get_all_distances(mic=True)
        z = 0.1 * self.atoms.numbers
        terms = np.outer(z, z) * np.exp(-(d**2))
        self.results["energy"] = float(terms.sum() - np.trace(terms))


class Refusing(EMT):
    """EMT that raises for structures with exactly ``gold`` Au atoms, the first ``times`` times."""

    def __init__(self, gold=2, times=10**9):
        super().__init__()
        self.gold, self.times = gold, times

    def calculate(self, atoms=None, *args, **kwargs):
        if (atoms.numbers == 79).sum() == self.gold and self.times > 0:
            self.times -= 1
            raise RuntimeError("the density did not converge")
        super().calculate(atoms, *args, **kwargs)


class NotANumber(EMT):
    """EMT whose energy is NaN for structures with exactly 2 Au atoms."""

    def calculate(self, atoms=None, *args, **kwargs):
        super().calculate(atoms, *args, **kwargs)
        if (atoms.numbers == 79).sum() == 2:
            self.results["energy"] = np.nan


class Meddling(EMT):
    """EMT that changes one property of the very Atoms it is given."""

    def __init__(self, what):
        super().__init__()
        self.what = what

    def get_property(self, name, atoms=None, allow_calculation=True):
        out = super().get_property(name, atoms, allow_calculation)
        if self.what == "numbers":
            atoms.numbers[0] = 28
        elif self.what == "positions":
            atoms.positions[0] += 0.1
        elif self.what == "cell":
            atoms.cell[0, 0] += 0.1
        elif self.what == "length":
            del atoms[0]
        return out


class Deadly(EMT):
    """EMT that kills the process at structures with exactly 2 Au atoms."""

    def calculate(self, atoms=None, *args, **kwargs):
        if (atoms.numbers == 79).sum() == 2:
            time.sleep(1.0)  # what others have computed is on its way
            os._exit(1)
        super().calculate(atoms, *args, **kwargs)


class Unpicklable(EMT):
    """EMT with an open resource that cannot be sent or copied."""

    def __init__(self):
        super().__init__()
        self.resource = (k for k in range(3))


class Interrupted(EMT):
    """EMT during whose third structure the user presses Ctrl-C."""

    done = 0

    def calculate(self, *args, **kwargs):
        if self.done == 3:
            raise KeyboardInterrupt
        self.done += 1
        super().calculate(*args, **kwargs)


class Drifting(Calculator):
    """Springs that pull Au atoms to x = y = 1.6 angstrom; the others feel nothing."""

    implemented_properties = ["energy", "forces"]
    default_parameters = {"target": 1.6}

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        gold = (atoms.numbers == 79)[:, None]
        pull = np.where(gold, self.parameters.target - atoms.positions[:, :2], 0.0)
        self.results["energy"] = float((pull**2).sum() / 2)
        self.results["forces"] = np.pad(pull, ((0, 0), (0, 1)))


def unpicklable():
    """A factory of calculators that cannot be pickled themselves."""
    return Unpicklable()


def deadly():
    return Deadly()


class Slow(EMT):
    """EMT that takes its time, and fails at once for structures with exactly 2 Au atoms."""

    def calculate(self, atoms=None, *args, **kwargs):
        if (atoms.numbers == 79).sum() == 2:
            time.sleep(0.2)  # the others have begun
            raise RuntimeError("the density did not converge")
        time.sleep(0.8)
        super().calculate(atoms, *args, **kwargs)


def stretch_z(atoms):
    """A filter that relaxes the cell along z alone."""
    return FrechetCellFilter(atoms, mask=[0, 0, 1, 0, 0, 0])
