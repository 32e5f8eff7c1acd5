"""Pictures of samples show what is probable, flat lattices flat."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from matplotlib.figure import Figure

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.lattice import Lattice
from clease_nn.plotting import pick_samples, sampled_configurations


def drawn(lattice, temperatures=(300.0, 600.0), n=8, weighted=True):
    """Random configurations with random weights, or a chain."""
    at = Conditions(temperatures, np.zeros((len(temperatures), lattice.n_species))).repeat(n)
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(lattice.n_species, (len(at), lattice.n_sites), generator=rng)
    if not weighted:
        return Configurations(lattice, at, x, chain=torch.zeros(len(at), dtype=torch.int64))
    q, p = torch.randn(2, len(at), dtype=torch.float64, generator=rng)
    return Configurations(lattice, at, x, log_prob=0.1 * q, log_target=0.1 * p)


def test_square_lattices_are_images_of_their_sites():
    """Every pixel is the species of the site at its place."""
    lattice = Lattice.square(5, 3)
    c = drawn(lattice, weighted=False, n=2)
    axes = sampled_configurations(
        Figure().subplots(2, 2), c, labels=["cold", "warm"], names=["up", "down"]
    )
    for k, ax in enumerate(axes.ravel()):
        image = ax.images[0]
        for site, (x, y, _) in enumerate(lattice.positions):
            assert image.get_array()[round(y), round(x)] == c.occupations[k, site]
        left, right, low, high = image.get_extent()
        assert (left, right, low, high) == (-0.5, 4.5, -0.5, 2.5)
    assert [row[0].texts[0].get_text() for row in axes] == ["cold", "warm"]
    assert [t.get_text() for t in axes[0, -1].get_legend().get_texts()] == ["up", "down"]


def test_other_planes_are_circles_and_background_is_grey():
    """A triangular lattice is drawn with a circle an atom, each in the colour of its species."""
    atoms = Atoms("H", cell=[[1, 0, 0], [0.5, 0.75**0.5, 0], [0, 0, 9]], pbc=[1, 1, 0]) * (3, 3, 1)
    lattice = Lattice(atoms, np.arange(1, 9), ["Au", "Cu"], np.ones((8, 2)))
    [[ax]] = sampled_configurations(Figure().subplots(1, 1), drawn(lattice, (300.0,), 1, False))
    [circles] = ax.collections
    assert len(circles.get_offsets()) == 9
    assert np.allclose(circles.get_facecolors()[0, :3], 0.8157, atol=1e-3)


def test_cells_in_space_are_balls():
    """A row a condition, its temperature at the left, one legend."""
    lattice = Lattice.uniform(bulk("Au", a=4.0) * (2, 2, 2), ["Au", "Cu"])
    axes = sampled_configurations(Figure().subplots(2, 3), drawn(lattice))
    assert axes.shape == (2, 3)
    assert [row[0].texts[0].get_text() for row in axes] == ["300 K", "600 K"]
    assert sum(ax.get_legend() is not None for ax in axes.ravel()) == 1
    assert all(len(ax.patches) >= 8 for ax in axes.ravel())


def test_weighted_draws_are_shown_by_their_weights():
    """Draws without weight are never shown; the rest in proportion to their weights."""
    lattice = Lattice.square(2)
    at = Conditions([300.0], [[0.0, 0.0]]).repeat(40)
    log_w = torch.where(torch.arange(40) % 2 == 0, 0.0, -np.inf).to(torch.float64)
    x = (torch.arange(40) % 2)[:, None].expand(-1, 4)
    c = Configurations(lattice, at, x, log_prob=torch.zeros(40), log_target=log_w)
    [part] = pick_samples(c, 5)
    assert (part.occupations == 0).all()
    assert len(pick_samples(c, 30)[0]) == 30  # with repeats


def test_chains_are_looked_at_in_even_intervals():
    """First and last row of a chain are shown, and those between."""
    c = drawn(Lattice.square(2), (300.0,), 9, weighted=False)
    [part] = pick_samples(c, 3)
    assert torch.equal(part.occupations, c.occupations[[0, 4, 8]])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"labels": ["one"]}, "2 conditions need as many labels"),
        ({"names": ["one"]}, "2 species need as many names"),
    ],
)
def test_what_cannot_be_drawn_is_refused(change, match):
    """Labels, names, axes and configurations must fit one another."""
    lattice = Lattice.square(2)
    c = drawn(lattice)
    with pytest.raises(ValueError, match=match):
        sampled_configurations(Figure().subplots(2, 2), c, **change)
    with pytest.raises(ValueError, match="2 conditions need as many rows of axes, got 3"):
        sampled_configurations(Figure().subplots(3, 2), c)
    with pytest.raises(ValueError, match="no configurations"):
        sampled_configurations(Figure().subplots(2, 2), c[:0])
    unknown = Configurations.unknown(lattice, c.conditions)
    with pytest.raises(ValueError, match="unknown sites"):
        sampled_configurations(Figure().subplots(2, 2), unknown)
    with pytest.raises(ValueError, match="at least 1 configuration"):
        pick_samples(c, 0)
    with pytest.raises(ValueError, match="9 configurations a condition are wanted, one has 8"):
        pick_samples(drawn(lattice, weighted=False), 9)
