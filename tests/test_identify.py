"""Phases are found by the structure of states."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import bulk
from phase_toys import CHECKER, LATTICE, LINE, exact, sampled

from clease_nn.errors import NotDeterminedError
from clease_nn.lattice import Lattice
from clease_nn.phases import ChemicalPotentialLine, Phases, identify
from clease_nn.symmetry import structure_variants
from clease_nn.thermodynamics import DensityOfStates, long_range_order

TEMPERATURES = np.arange(200, 1201, 100)


def fcc(size, species=("Cu", "Au")):
    """Primitive fcc supercell with L1_2 and L1_0 in it."""
    lattice = Lattice.uniform(bulk("Cu", a=3.6) * size, list(species))
    half = np.round(2 * lattice.positions / 3.6).astype(int) % 2
    return lattice, (half == 0).all(1).astype(np.int8), (half[:, 2] == 0).astype(np.int8)


def states(lattice, occupations, energy):
    """A density of states of chosen configurations."""
    x = torch.as_tensor(np.asarray(occupations, dtype=np.int8))
    counts = np.stack([(x == a).sum(1).numpy() for a in range(lattice.n_species)], 1).astype(float)
    return DensityOfStates(lattice, np.asarray(energy, float), counts, np.zeros(len(x)), x)


# ------------------------------------------------------------------ composition
def test_a_symmetric_gap_is_cut_in_the_middle():
    """Of an Ising ferromagnet the half-filled states alone belong to neither phase."""
    phases = identify(exact("gap"), LINE, TEMPERATURES)
    n = exact("gap").counts[:, 1]
    assert phases.names == ("Au-poor", "Au-rich")
    assert (phases.labels == np.select([n < 8, n > 8], [0, 1], -1)).all()
    assert phases.degeneracy.tolist() == [1, 1] and phases.kinds.tolist() == [0, 0]
    assert phases.composition.sum(1) == pytest.approx([1, 1])
    assert phases.composition[0, 1] == pytest.approx(phases.composition[1, 0])


def test_the_reasons_tell_where_a_gap_is_cut():
    """The cut is told as a composition, with the states that neither phase gets."""
    phases = identify(exact("gap"), LINE, [300, 600])
    assert (phases.labels == -1).sum() == 12870  # 16 over 8
    assert "cut at a site fraction of Au of 0.500; 12870 states at the cut" in str(phases)


def test_samples_give_the_same_cut():
    """Draws of the ferromagnet are labelled as the exact states are, up to the valley."""
    dos = sampled("gap", [400, 500, 600], [-0.02, 0.0, 0.02], 400, 1)
    phases = identify(dos, LINE)
    n = dos.counts[:, 1]
    clear = np.abs(n - 8) > 1
    assert phases.names == ("Au-poor", "Au-rich")
    assert (phases.labels[clear] == (n[clear] > 8)).all()


def test_nothing_is_found_where_nothing_is():
    """An ideal solution is one phase, and the reasons say so."""
    phases = identify(exact("ideal"), LINE, [300, 600])
    assert phases.names == ("disordered",) and (phases.labels == 0).all()
    assert "one phase only" in str(phases)


# ------------------------------------------------------------------ order
@pytest.mark.parametrize("structures", [None, {"CuAu": CHECKER}])
def test_order_is_found_with_and_without_its_structure(structures):
    """The checkerboard of an antiferromagnet and states near it are a phase of two variants."""
    dos = exact("order")
    phases = identify(dos, LINE, TEMPERATURES, structures=structures)
    assert phases.names == ("disordered", "CuAu")
    assert phases.degeneracy.tolist() == [1, 2]
    order = long_range_order(dos.occupations, LATTICE, CHECKER)
    assert phases.order[:, 0] == pytest.approx(order, abs=1e-6)
    ordered = phases.mask("CuAu")
    assert order[ordered].min() > order[~ordered].max() - 1e-6
    assert 0.25 < order[ordered].min() < 0.85


def test_order_leaves_no_gap_behind():
    """Where order takes the place of disorder, disorder is still one phase."""
    phases = identify(exact("order"), LINE, [100, 150, 200, 300, 600])
    assert phases.names == ("disordered", "CuAu")


def test_structures_that_share_waves_are_told_apart():
    """L1_0 has long-range order 1/2 in L1_2, yet every perfect structure gets its own name."""
    lattice, l12, l10 = fcc((4, 4, 4))
    names = {"Cu3Au": l12, "CuAu": l10, "CuAu3": 1 - l12}
    rng = np.random.default_rng(0)
    mixed = rng.permuted(np.repeat(np.arange(2), 32))
    rows, labels = [mixed, l12 * 0], [0, 0]
    for k, x in enumerate(names.values()):
        variants = structure_variants(lattice, x)
        rows += list(variants)
        # three antisite defects do not change the name
        defects = variants.copy()
        for row in defects:
            row[rng.choice(64, 3, replace=False)] ^= 1
        rows += list(defects)
        labels += [k + 1] * 2 * len(variants)
    dos = states(lattice, rows, np.zeros(len(rows)))
    line = ChemicalPotentialLine.exchange(lattice, "Au", "Cu")
    phases = identify(dos, line, [5000.0], structures=names)
    assert phases.labels.tolist() == labels
    assert phases.degeneracy.tolist() == [1, 4, 6, 4]
    assert phases.order[2, 1] == pytest.approx(0.5, abs=1e-6)


def test_a_long_supercell_hides_no_variant():
    """CuAu has six variants, also where the supercell's shape relates four of them only."""
    lattice, l12, l10 = fcc((2, 4, 4))
    assert len(structure_variants(lattice, l10)) == 6
    assert len(structure_variants(lattice, l12)) == 4
    assert (structure_variants(lattice, l10)[0] == l10).all()
    assert structure_variants(lattice, l10).sum(1).tolist() == [16] * 6


def test_sublattices_keep_their_order_apart():
    """What sits on different sublattices by right is no order."""
    atoms = bulk("NaCl", "rocksalt", a=4.2) * (2, 2, 1)
    first = np.array(atoms.symbols) == "Na"
    allowed = np.where(first[:, None], [[1, 1, 0]], [[0, 0, 1]]).astype(bool)
    lattice = Lattice(atoms, np.arange(8), ("Au", "Cu", "X"), allowed)
    x = np.where(first, 0, 2)
    stripes = x.copy()
    stripes[np.flatnonzero(first)[:2]] = 1
    line = ChemicalPotentialLine.exchange(lattice, "Cu", "Au")
    with pytest.raises(ValueError, match="no order"):
        identify(states(lattice, [x, stripes], [0, 0]), line, [300.0], structures={"s": x})
    phases = identify(states(lattice, [x, stripes], [0, -0.2]), line, [300.0])
    assert phases.names == ("disordered", "AuCuX2") and phases.labels.tolist() == [0, 1]


def test_the_threshold_of_order_may_be_given():
    """Labels are those of the order itself; by default the threshold is told."""
    dos = exact("order")
    default = identify(dos, LINE, TEMPERATURES)
    [told] = [r for r in default.reasons if "within 0.05 of it is" in r]
    above = float(told.split("long-range order of ")[1].split(",")[0])
    order = long_range_order(dos.occupations, LATTICE, CHECKER)
    assert (default.mask("CuAu") == (order > above)).all()
    for threshold in (0.4, 0.6):
        phases = identify(dos, LINE, TEMPERATURES, threshold=threshold)
        assert (phases.mask("CuAu") == (order > threshold)).all()
    for bad in (0.0, 1.0, np.nan):
        with pytest.raises(ValueError, match="threshold"):
            identify(dos, LINE, TEMPERATURES, threshold=bad)


def test_fluctuations_are_no_structures():
    """The lowest states of hot data, or one with a defect, are not taken for ordered phases."""
    lattice, l12, _ = fcc((4, 4, 4))
    rng = np.random.default_rng(0)
    defect = l12.copy()
    defect[np.flatnonzero(l12)[0]] = 0
    rows = [0 * l12, defect, rng.permuted(np.repeat([0, 1], 32)).astype(np.int8), 1 + 0 * l12]
    line = ChemicalPotentialLine.exchange(lattice, "Au", "Cu")
    energy = np.array([0.0, -1.0, -1.5, 0.0])
    phases = identify(states(lattice, rows, energy), line, [300.0])
    assert not phases.structures
    assert sum("repeats nowhere within the supercell" in r for r in phases.reasons) == 2
    given = identify(states(lattice, rows, energy), line, [300.0], structures={"Cu3Au": l12})
    assert given.labels[1] == given.index("Cu3Au") and given.degeneracy[-1] == 4


# ------------------------------------------------------------------ what is not there
def test_a_structure_never_sampled_is_named():
    """Its phase has no states, the reasons say so, and its density of states is refused."""
    dos = exact("order")
    disordered = dos.restricted(long_range_order(dos.occupations, LATTICE, CHECKER) < 0.2)
    phases = identify(disordered, LINE, TEMPERATURES, structures={"CuAu": CHECKER})
    assert phases.names == ("disordered", "CuAu") and not phases.mask("CuAu").any()
    assert np.isnan(phases.composition[1]).all()
    assert any("never sampled" in r for r in phases.reasons)
    with pytest.raises(ValueError, match="never sampled"):
        phases.restricted(disordered, "CuAu")


def test_own_labels():
    """Labels of any origin serve; a part of the states may stay undecided."""
    dos = exact("gap")
    n = dos.counts[:, 1]
    phases = Phases.given(dos, np.select([n < 8, n > 8], [0, 1], -1), ["a", "b"])
    assert phases.mask("b").sum() == (n > 8).sum()
    assert len(phases.restricted(dos, "a")) == (n < 8).sum()
    assert phases.degeneracy.tolist() == [1, 1] and phases.kinds.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        (np.zeros(5, int), ["a"], "one label for each of the 65536 states"),
        (np.full(65536, 2), ["a", "b"], "between -1"),
        (np.full(65536, -2), ["a", "b"], "between -1"),
        (np.zeros(65536), ["a"], "whole number"),
        (np.zeros(65536, int), ["a", "a"], "distinct names"),
        (np.zeros(65536, int), [], "distinct names"),
    ],
)
def test_wrong_labels_are_refused(labels, names, message):
    """The message says what labels must be."""
    with pytest.raises(ValueError, match=message):
        Phases.given(exact("gap"), labels, names)


def test_wrong_degeneracies_are_refused():
    """One positive number for each phase."""
    dos = exact("gap")
    labels = np.zeros(len(dos), int)
    for g in ([1, 1], [0.0], [np.nan]):
        with pytest.raises(ValueError, match="degeneracy"):
            Phases.given(dos, labels, ["a"], degeneracy=g)


def test_unknown_phase_is_refused():
    """The message lists those there are."""
    phases = Phases.given(exact("gap"), np.zeros(65536, int), ["a"])
    with pytest.raises(ValueError, match="there are a"):
        phases.mask("b")


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (np.zeros(9, int), "16 sites"),
        (np.zeros(16, int), "no order"),
        (np.full(16, 3), "may carry only"),
        (CHECKER * 0.5, "must be integers"),
    ],
)
def test_wrong_structures_are_refused(structure, message):
    """The message names the structure and says what is wrong with it."""
    with pytest.raises(ValueError, match=f"'s'.*{message}"):
        identify(exact("gap"), LINE, [300], structures={"s": structure})


def test_a_species_where_it_may_not_be_is_refused():
    """Structures obey the lattice."""
    allowed = np.ones((16, 2), bool)
    allowed[0, 1] = False
    lattice = Lattice(LATTICE.template, np.arange(16), ("Cu", "Au"), allowed, np.zeros(16, int))
    dos = states(lattice, [CHECKER, 0 * CHECKER], [0, 0])
    line = ChemicalPotentialLine.exchange(lattice, "Au", "Cu")
    with pytest.raises(ValueError, match="may carry only"):
        identify(dos, line, [300], structures={"s": 1 - CHECKER})


def test_what_cannot_be_identified_is_refused():
    """No occupations, no temperatures, no support: each with its remedy."""
    dos = exact("gap")
    with pytest.raises(NotDeterminedError, match=r"Phases\.given"):
        identify(replace(dos, occupations=None), LINE, [300])
    with pytest.raises(ValueError, match="at which temperatures"):
        identify(dos, LINE)
    with pytest.raises(ValueError, match="positive"):
        identify(dos, LINE, [-300])
    with pytest.raises(ValueError, match="kept for states without order"):
        identify(dos, LINE, [300], structures={"disordered": CHECKER})
    few = sampled("gap", [1200.0], [0.0, 0.01], 60, 0)
    with pytest.raises(NotDeterminedError, match="sample along"):
        identify(few, LINE, [30.0])
    other = ChemicalPotentialLine.exchange(Lattice.square(2, species=("Cu", "Ag")), "Ag", "Cu")
    with pytest.raises(ValueError, match="the line is for"):
        identify(dos, other, [300])
