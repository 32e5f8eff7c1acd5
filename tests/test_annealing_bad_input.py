"""Bad input of annealing: clear errors before anything is drawn."""

import pytest
import torch
from annealing_toys import Blind, MeanField
from toys import binary, ternary

from clease_nn.conditions import Conditions
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.sampling import anneal

LATTICE, ENSEMBLE, BOX = binary()
TARGET = BOX.at([[0.2, 0.5]])


def run(**kwargs):
    arguments = {"model": MeanField(BOX), "ensemble": ENSEMBLE, "conditions": TARGET} | kwargs
    model, ensemble = arguments.pop("model"), arguments.pop("ensemble")
    conditions = arguments.pop("conditions")
    return anneal(
        model, ensemble, LATTICE, conditions, torch.Generator(), progress=False, **arguments
    )


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"n": 1}, "n must be at least 2"),
        ({"steps": 0}, "at least one step, the target itself, got steps=0"),
        ({"steps": []}, "at least one step"),
        ({"steps": [0.5, 0.4, 1.0]}, "ascending fractions above 0, the last one 1"),
        ({"steps": [0.5, 0.9]}, "ascending fractions"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"sweeps": 0}, "sweeps must be at least 1, or 0 with moves"),
        ({"sweeps": -1}, "sweeps must be at least 1"),
        ({"population": 0}, "population must be at least 1"),
        ({"ness": 1.0}, "ness must lie between 0 and 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(given, text):
    """Each number names itself, its value and its limit."""
    with pytest.raises(ValueError, match=text):
        run(**given)


def test_starts_outside_the_trained_range_are_refused():
    """A model's draws outside its range are extrapolations; targets may lie there."""
    hotter = Conditions(TARGET.temperature * 10, TARGET.mu)
    with pytest.raises(ValueError, match="lies outside the trained range, 600 to 2400 K"):
        run(start=hotter)
    assert len(run(conditions=hotter, start=TARGET, steps=3, n=10)) == 10


def test_starts_must_be_one_or_one_a_target():
    """Three starts for one target say nothing."""
    with pytest.raises(ValueError, match="one for each of the 1 targets, got 3"):
        run(start=TARGET.repeat(3))


def test_a_start_without_a_model_is_refused():
    """Random configurations begin at infinite temperature and nowhere else."""
    with pytest.raises(ValueError, match="begin at infinite temperature"):
        run(model=None, start=TARGET)


def test_conditions_of_another_lattice_are_refused():
    """As many chemical potentials as the lattice has species, at targets and starts."""
    other = ternary()[2].at([[0.5, 0.5, 0.5]])
    with pytest.raises(ValueError, match="conditions have 3 chemical potentials, the lattice 2"):
        run(conditions=other)
    with pytest.raises(ValueError, match="start have 3 chemical potentials"):
        run(start=other)


def test_no_conditions_are_refused():
    """Nothing to anneal to is no result."""
    with pytest.raises(ValueError, match="no conditions"):
        run(conditions=TARGET[torch.arange(0)])


@pytest.mark.parametrize("bad_from", [0, 5])
def test_energies_that_are_not_finite_are_refused(bad_from):
    """At the start and in the middle of a path alike."""
    calls = []

    def energy(lattice, x):
        calls.append(len(x))
        e = ENSEMBLE.energy(lattice, x)
        return e * float("nan") if len(calls) > bad_from else e

    with pytest.raises(ValueError, match="not finite|is nan"):
        run(model=Blind(BOX), ensemble=SemiGrandCanonical(energy), steps=5, n=10, start=TARGET)
