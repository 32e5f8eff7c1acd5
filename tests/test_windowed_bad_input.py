"""What a model of windows refuses, and what it says."""

import numpy as np
import pytest
import torch
from ase.build import bulk, fcc100

import clease_nn.models.windowed as windowed_module
from clease_nn.conditions import ConditionRange
from clease_nn.configurations import Configurations
from clease_nn.lattice import Lattice
from clease_nn.models import AnyOrderARM, FixedOrderARM, WindowedModel, model_from_config
from clease_nn.networks import MLP, MaskedMLP

SPECIES = ("Cu", "Au")
BOX = ConditionRange((600, 2400), [-0.1], [0.1], [[1.0, -1.0]])
SMALL = Lattice.square(4)
UNKNOWN_36 = Configurations.unknown(Lattice.square(6), BOX.grid(1, 1))


def inner(small=SMALL, fields=False):
    return AnyOrderARM(MLP(small, BOX, width=4, layers=1, needs_fields=fields))


def windowed(small=SMALL, **settings):
    return WindowedModel(inner(small), small, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stride": 5}, r"stride must be 1 to 4 repeats .* got 5: .* between windows"),
        ({"stride": 0}, "stride must be 1 to 4 repeats"),
        ({"stride": (4, 5, 1)}, r"1 to \(4, 4, 1\) repeats .* got \(4, 5, 1\)"),
        ({"stride": (2, 2)}, "stride must be one number or three, got 2"),
        ({"stride": 4, "margin": 1}, r"1 to 2 repeats .* and a margin of \(1, 1, 0\), got 4"),
        ({"margin": 2}, "margin must be 0 to 1 repeats .* no site to draw"),
        ({"margin": -1}, "margin must be 0 to 1"),
        ({"order": "spiral"}, 'must be "raster" or "random", got \'spiral\''),
    ],
)
def test_settings_that_cannot_work(settings, message):
    """Strides with gaps, margins without room, and unknown orders say what would do."""
    with pytest.raises(ValueError, match=message):
        windowed(**settings)


@pytest.mark.parametrize("settings", [{"stride": 2.5}, {"stride": (2.5, 2, 1)}, {"margin": "1"}])
def test_strides_are_integers(settings):
    """Fractions are refused, not cut; integers of numpy are integers."""
    with pytest.raises(TypeError, match="must be an integer or three integers, got"):
        windowed(**settings)
    assert windowed(stride=np.int64(2)).stride == windowed(stride=2).stride


def test_more_passes_than_can_be_numbered(monkeypatch):
    """A pass that has no number is refused, not wrapped round to a known site."""
    passes = int(windowed().draw_steps(UNKNOWN_36, torch.Generator().manual_seed(0)).max()) + 1
    monkeypatch.setattr(windowed_module, "_LAST", passes - 1)
    windowed().draw_steps(UNKNOWN_36, torch.Generator().manual_seed(0))
    monkeypatch.setattr(windowed_module, "_LAST", passes - 2)
    with pytest.raises(ValueError, match=rf"{passes} passes, more than can be .* larger stride"):
        windowed().draw_steps(UNKNOWN_36, torch.Generator().manual_seed(0))


def test_a_fixed_order_has_no_margin():
    """A fixed order cannot leave sites out."""
    network = MaskedMLP(SMALL, BOX, width=4, layers=2, needs_fields=False)
    with pytest.raises(ValueError, match="margin must be 0, got 1; or use AnyOrderARM"):
        WindowedModel(FixedOrderARM(network), SMALL, 2, margin=1)


def test_a_model_of_another_cell():
    """The small lattice must be that of the model."""
    with pytest.raises(ValueError, match="made for the cell"):
        WindowedModel(inner(), Lattice.square(3))


def cubic(a=4.0, species=SPECIES):
    return Lattice.uniform(bulk("Au", a=a, cubic=True) * 2, species)


def one_species_less():
    allowed = np.ones((36, 2), dtype=bool)
    allowed[7, 1] = False
    return Lattice(Lattice.square(6).template, range(36), SPECIES, allowed, np.zeros(36))


def two_sublattices():
    allowed = np.ones((36, 2))
    return Lattice(Lattice.square(6).template, range(36), SPECIES, allowed, np.arange(36) % 2)


def open_square():
    atoms = Lattice.square(6, 3).template
    atoms.pbc = [True, False, False]
    return Lattice.uniform(atoms, SPECIES)


@pytest.mark.parametrize(
    ("small", "large", "message"),
    [
        (
            SMALL,
            Lattice.square(6, 3),
            r"16 sites is \(4, 4, 1\) repeats .* 18 sites .* \(6, 3, 1\)",
        ),
        (SMALL, Lattice.square(3), r"two sites of a window would be one; use a larger cell"),
        (cubic(), Lattice.uniform(bulk("Au", a=4.0) * 3, SPECIES), "two sites of a window"),
        (cubic(), cubic(4.05), "lattice constant"),
        (cubic(), Lattice.uniform(bulk("Au", "bcc", a=4.0) * 4, SPECIES), "another parent lattice"),
        (cubic(), Lattice.uniform(bulk("Au", "sc", a=4.0) * 4, SPECIES), "at best 8 of its 32"),
        (SMALL, Lattice.square(6, species=("Cu", "Ag")), "has the species"),
        (SMALL, Lattice.square(6, species=("Au", "Cu")), "has the species"),
        (SMALL, one_species_less(), "site 7 of this lattice may carry other species"),
        (SMALL, two_sublattices(), "find one of their kind"),
        (SMALL, open_square(), "not periodic"),
        (
            Lattice.uniform(fcc100("Au", (2, 2, 1), a=4.0, vacuum=6), SPECIES),
            Lattice.uniform(fcc100("Au", (4, 4, 3), a=4.0, vacuum=6), SPECIES),
            "32 of the 48 sites .* in no window",
        ),
    ],
)
def test_lattices_that_windows_do_not_cover(small, large, message):
    """Too narrow, of another parent, or too thick: the message names the numbers."""
    model = windowed(small, stride=1)
    with pytest.raises(ValueError, match=message):
        model.check_lattice(large)
    unknown = Configurations.unknown(large, BOX.grid(1, 1))
    with pytest.raises(ValueError, match=message):
        model.complete(unknown, torch.Generator())


def test_a_rotated_lattice():
    """The same parent in another orientation is another lattice for windows."""
    atoms = Lattice.square(6).template
    atoms.rotate(30, "z", rotate_cell=True)
    with pytest.raises(ValueError, match="orientation"):
        windowed().check_lattice(Lattice.uniform(atoms, SPECIES))


def test_fields_that_are_missing():
    """A model with fields needs those of the larger lattice."""
    model = WindowedModel(inner(fields=True), SMALL, 2)
    assert model.needs_fields
    with pytest.raises(ValueError, match="fields=ensemble.fields"):
        model.complete(Configurations.unknown(Lattice.square(6), BOX.grid(1, 1)), torch.Generator())


def fixed(stride):
    network = MaskedMLP(SMALL, BOX, width=4, layers=2, needs_fields=False)
    return WindowedModel(FixedOrderARM(network), SMALL, stride)


def test_windows_that_a_fixed_order_cannot_complete():
    """Overlaps that are no prefix of the order are refused with the window and the site."""
    unknown = Configurations.unknown(Lattice.square(8), BOX.grid(1, 1))
    assert not fixed(3).any_order
    with pytest.raises(ValueError, match="complete window 1 .* first of its order"):
        fixed(3).complete(unknown, torch.Generator())
    drawn = fixed(4).complete(unknown, torch.Generator())
    assert drawn.known.all()


def test_steps_that_a_fixed_order_does_not_have():
    """Scoring refuses steps in which the model could not have drawn."""
    lattice = Lattice.square(8)
    full = Configurations(lattice, BOX.grid(1, 1), torch.zeros(1, 64))
    model = fixed(4)
    steps = model.draw_steps(Configurations.unknown(lattice, full.conditions), torch.Generator())
    assert model.log_prob(full, steps=steps).isfinite().all()
    with pytest.raises(ValueError, match="order"):
        model.log_prob(full, steps=63 - torch.arange(64)[None])


def test_unfinished_configurations_have_no_likelihood():
    """log_prob wants every site."""
    model, lattice = windowed(stride=2), Lattice.square(6)
    unknown = Configurations.unknown(lattice, BOX.grid(1, 1))
    with pytest.raises(ValueError, match="full configurations"):
        model.log_prob(unknown, steps=torch.arange(36)[None])
    with pytest.raises(ValueError, match="-1 where a site is known"):
        model.complete(unknown, torch.Generator(), steps=torch.full((1, 36), -1))


def test_files_of_a_newer_version():
    """A class this version does not have is named."""
    config = windowed(stride=2).config()
    with pytest.raises(ValueError, match="update clease_nn"):
        model_from_config({**config, "model": {**config["model"], "class": "Unheard"}})
