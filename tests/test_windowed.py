"""Laws of models that draw a larger lattice window by window."""

import numpy as np
import pytest
import torch
from ase.build import bulk, fcc100, make_supercell
from toys import random_expansion

from clease_nn.conditions import ConditionRange
from clease_nn.configurations import Configurations
from clease_nn.energies.ising import ising_energy
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.io import TrainedModel
from clease_nn.lattice import UNKNOWN, Lattice
from clease_nn.models import (
    AbstractOccupationModel,
    AnyOrderARM,
    Coloured,
    FixedOrderARM,
    MarginalizationModel,
    WindowedModel,
)
from clease_nn.models.abstract import conditionals
from clease_nn.models.orders import random_order
from clease_nn.models.placement import place_windows, window_repeats
from clease_nn.networks import MLP, LatticeConvolution, LatticeTransformer, MaskedMLP
from clease_nn.sampling import sample
from clease_nn.statistics import log_mean_exp

BOX = ConditionRange((600, 2400), [-0.1], [0.1], [[1.0, -1.0]])
SPECIES = ("Au", "Cu")


class Tables(AbstractOccupationModel):
    """Conditionals in float64: random numbers for every pair of sites, bound to one cell."""

    needs_fields = False

    def __init__(self, lattice, strength=0.7, seed=0):
        super().__init__()
        n, k = lattice.n_sites, lattice.n_species
        generator = torch.Generator().manual_seed(seed)
        normal = torch.randn(n, k + 1, n, k, generator=generator, dtype=torch.float64)
        self.weights = torch.nn.Parameter(strength * normal)

    def log_conditionals(self, c, fields):
        """A sum over the known sites, stronger in the cold."""
        onehot = torch.nn.functional.one_hot(c.occupations.long() + 1, c.lattice.n_species + 1)
        logits = torch.einsum("bik,ikja->bja", onehot.to(torch.float64), self.weights)
        logits = logits * (1000.0 / c.conditions.temperature)[:, None, None]
        return conditionals(logits, c.lattice.allowed_mask(logits.device))

    def draw_steps(self, c, rng):
        return random_order(c.known, rng)

    def check_lattice(self, lattice):
        pass

    def config(self):
        raise NotImplementedError

    @classmethod
    def from_config(cls, config):
        raise NotImplementedError


def fcc(*repeats, cubic=False):
    return Lattice.uniform(bulk("Au", a=3.8, cubic=cubic) * repeats, SPECIES)


def slab(nx, ny, layers, vacuum=6.0):
    return Lattice.uniform(fcc100("Au", (nx, ny, layers), a=4.0, vacuum=vacuum), SPECIES)


def rocksalt(*repeats):
    atoms = bulk("NaCl", "rocksalt", a=4.2) * repeats
    first = np.array(atoms.symbols) == "Na"
    allowed = np.where(first[:, None], [[0, 1, 1, 0]], [[1, 0, 0, 1]]).astype(bool)
    return Lattice(atoms, np.arange(len(atoms)), ("Ag", "Au", "Cu", "X"), allowed)


def with_background(*repeats):
    """Wurtzite whose anions stay."""
    atoms = bulk("ZnS", "wurtzite", a=3.8) * repeats
    sites = np.flatnonzero(atoms.symbols == "Zn")
    return Lattice(atoms, sites, SPECIES, np.ones((len(sites), 2)))


def sheared():
    cell = make_supercell(bulk("Au", "sc", a=3.0), [[4, 0, 0], [1, 3, 0], [0, 0, 1]])
    return Lattice.uniform(cell, SPECIES)


def chain_slab(n, layers):
    """Layers above each other, open along the third cell vector."""
    atoms = bulk("Au", "sc", a=3.0) * (n, 1, layers)
    atoms.pbc = [True, True, False]
    return Lattice.uniform(atoms, SPECIES)


def moved(nx, ny):
    """A square lattice whose first site is not at the origin."""
    atoms = Lattice.square(nx, ny).template
    atoms.positions += [0.3, 0.4, 0.1]
    return Lattice.uniform(atoms, ("Cu", "Au"))


# small cell, larger lattice, strides, margin
CASES = {
    "square, stride 1": (Lattice.square(2), Lattice.square(4, 3), 1, 0),
    "square, stride 2": (Lattice.square(2), Lattice.square(3, 4), 2, 0),
    "square, two strides": (Lattice.square(3, 2), Lattice.square(4, 3), (2, 1, 1), 0),
    "square, margin": (Lattice.square(3, 3), Lattice.square(4, 3), 1, 1),
    "simple cubic": (
        Lattice.uniform(bulk("Au", "sc", a=3.0) * (2, 2, 2), SPECIES),
        Lattice.uniform(bulk("Au", "sc", a=3.0) * (3, 2, 2), SPECIES),
        1,
        0,
    ),
    "fcc": (fcc(2, 2, 1), fcc(3, 2, 2), 1, 0),
    "fcc, cubic in primitive": (fcc(1, 1, 1, cubic=True), fcc(3, 2, 2), 1, 0),
    "fcc, primitive in cubic": (fcc(2, 2, 1), fcc(1, 1, 3, cubic=True), (2, 1, 1), 0),
    "sheared": (Lattice.uniform(bulk("Au", "sc", a=3.0) * (2, 2, 1), SPECIES), sheared(), 2, 0),
    "slab": (slab(2, 1, 2), slab(3, 2, 2), 1, 0),
    "thicker slab": (chain_slab(2, 2), chain_slab(3, 4), 1, 0),
    "bulk in a slab": (
        Lattice.uniform(bulk("Au", "sc", a=3.0) * (2, 1, 3), SPECIES),
        chain_slab(3, 4),
        (1, 1, 2),
        0,
    ),
    "margin in a slab": (chain_slab(2, 3), chain_slab(2, 5), 1, (0, 0, 1)),
    "two sublattices": (rocksalt(2, 1, 1), rocksalt(3, 2, 1), 1, 0),
    "background": (with_background(2, 1, 1), with_background(3, 2, 1), 2, 0),
    "another origin": (Lattice.square(2), moved(4, 3), 1, 0),
}


@pytest.fixture(params=sorted(CASES))
def case(request):
    """Small cell, larger lattice, stride, margin, and one of the orders of windows."""
    position = sorted(CASES).index(request.param)
    return (*CASES[request.param], ("raster", "random")[position % 2])


@pytest.fixture(params=["raster", "random"])
def order(request):
    return request.param


def conditions_of(lattice, n, seed=0):
    """Random conditions for any number of species."""
    rng = np.random.default_rng(seed)
    box = ConditionRange(
        (600, 2400),
        [-0.1],
        [0.1],
        [[1.0, -1.0] + [0.0] * (lattice.n_species - 2)],
    )
    return box.at(rng.random((n, 2)))


def every_state(lattice):
    flat = SemiGrandCanonical(lambda lattice, occupations: torch.zeros(len(occupations)))
    return flat.enumerate(lattice).occupations


def network(make, small, seed=0, strength=0.4, fields=True):
    """Random numbers for every weight that starts at zero: normalised, and wrong."""
    torch.manual_seed(seed)
    model = make(small, fields)
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=strength)
    return model.eval()


INNER = {
    "mlp": lambda small, f: AnyOrderARM(MLP(small, BOX, width=16, layers=2, needs_fields=f)),
    "transformer": lambda small, f: AnyOrderARM(
        LatticeTransformer(small, BOX, width=8, blocks=1, heads=2, needs_fields=f)
    ),
    "convolution in few passes": lambda small, f: AnyOrderARM(
        LatticeConvolution(small, BOX, channels=4, blocks=1, needs_fields=f),
        order=Coloured(),
    ),
    "marginalization": lambda small, f: MarginalizationModel(
        MLP(small, BOX, width=16, layers=2, needs_fields=f),
        MLP(small, BOX, width=16, layers=2, needs_fields=False),
    ),
}


def fixed(small, strength=0.3):
    """A masked MLP that draws in raster order, spoilt."""
    return network(
        lambda small, f: FixedOrderARM(MaskedMLP(small, BOX, width=16, layers=2, needs_fields=f)),
        small,
        strength=strength,
        fields=False,
    )


# ------------------------------------------------------------------ windows
def test_windows_are_translated_copies_of_the_small_cell(case):
    """Distances between sites of a window are those of the small cell, up to its own wrapping."""
    small, large, stride, _, _ = case
    stride = (stride,) * 3 if isinstance(stride, int) else stride
    stride = tuple(min(s, n) for s, n in zip(stride, window_repeats(small), strict=True))
    windows = place_windows(small, large, stride)
    assert len(windows) > 1 and windows.core.all()
    atoms = large.template
    own = small.template.get_all_distances(mic=True)[np.ix_(small.site_indices, small.site_indices)]
    every = atoms.get_all_distances(mic=True)[np.ix_(large.site_indices, large.site_indices)]
    shortest = own[own > 1e-6].min()
    for sites in windows.sites:
        there = every[np.ix_(sites, sites)]
        assert (there[own > 1e-6] > shortest - 1e-3).all()  # no two on one
        assert (large.sublattices[sites] == small.sublattices).all()
    assert set(windows.sites.ravel()) == set(range(large.n_sites))


def test_published_windows_of_the_square_lattice():
    """10 x 10 windows 7 apart start at 0, 7 and 14 of a 20 x 20 lattice and wrap around."""
    small, large = Lattice.square(10), Lattice.square(20)
    windows = place_windows(small, large, (7, 7, 1))
    x, y = np.divmod(windows.sites, 20)
    starts = [(int(a), int(b)) for a, b in zip(x[:, 0], y[:, 0], strict=True)]
    assert starts == [(a, b) for a in (0, 7, 14) for b in (0, 7, 14)]
    i, j = np.divmod(np.arange(100), 10)
    for k, (a, b) in enumerate(starts):
        assert (x[k] == (a + i) % 20).all() and (y[k] == (b + j) % 20).all()


def test_windows_of_cubic_cells_fit_primitive_ones():
    """A window finds its sites whatever cell vectors describe the larger lattice."""
    small = fcc(2, 2, 2, cubic=True)
    assert window_repeats(small) == (2, 2, 2)
    for large in (fcc(6, 5, 4), fcc(3, 3, 3, cubic=True), fcc(8, 4, 4)):
        windows = place_windows(small, large, (2, 1, 2))
        every = large.template.get_all_distances(mic=True)
        near = small.template.get_all_distances(mic=False)
        for sites in windows.sites:
            there = every[np.ix_(sites, sites)]
            assert np.allclose(there[near < 3.9], near[near < 3.9])


def test_defaults_overlap_by_a_third_with_a_margin():
    """Where nothing is asked for, and what the stride leaves of the margin."""
    small = Lattice.square(10)
    for stride, expected in ((None, (7, 1)), (7, (7, 1)), (9, (9, 0)), (10, (10, 0))):
        model = WindowedModel(Tables(small), small, stride)
        assert model.stride == (expected[0],) * 2 + (1,)
        assert model.margin == (expected[1],) * 2 + (0,)
    whole = WindowedModel(fixed(Lattice.square(4)), Lattice.square(4), 1)
    assert whole.margin == (0, 0, 0)


# ------------------------------------------------------------------ densities
def test_probabilities_of_all_states_sum_to_one(case):
    """sum_x q(x) = 1 for the steps of one draw, and for any others."""
    small, large, stride, margin, order = case
    model = WindowedModel(Tables(small), small, stride, order, margin)
    states = every_state(large)
    c = Configurations(large, conditions_of(large, 1).repeat(len(states)), states)
    rng = torch.Generator().manual_seed(1)
    empty = Configurations.unknown(large, c.conditions[:1])
    for steps in (
        model.draw_steps(empty, rng),
        torch.randint(0, 4, (1, large.n_sites), generator=rng),
    ):
        with torch.no_grad():
            log_q = model.log_prob(c, steps=steps.expand(len(states), -1), chunk=4096)
        assert abs(torch.logsumexp(log_q, 0).item()) < 1e-10
        assert log_q.std() > 0.02


def test_drawn_log_prob_is_the_recomputed_one(case):
    """complete() and log_prob() agree to 1e-12 on the same configurations and steps."""
    small, large, stride, margin, order = case
    model = WindowedModel(Tables(small), small, stride, order, margin)
    partial = Configurations.unknown(large, conditions_of(large, 24))
    drawn = model.complete(partial, torch.Generator().manual_seed(3))
    with torch.no_grad():
        again = model.log_prob(drawn, steps=drawn.step, chunk=100)
    assert torch.allclose(drawn.log_prob, again, atol=1e-12, rtol=0)
    allowed = torch.tensor(large.allowed)[torch.arange(large.n_sites), drawn.occupations.long()]
    assert allowed.all()


def test_drawn_frequencies_are_the_probabilities():
    """Chi-square of 40,000 draws in one order against exp(log_prob) of every state."""
    small, large = Lattice.square(2), Lattice.square(3, 2)
    model = WindowedModel(Tables(small), small, 1)
    states = every_state(large)
    c = Configurations(large, conditions_of(large, 1).repeat(len(states)), states)
    steps = model.draw_steps(Configurations.unknown(large, c.conditions[:1]), torch.Generator())
    with torch.no_grad():
        p = model.log_prob(c, steps=steps.expand(len(states), -1)).exp()
    n = 40000
    empty = Configurations.unknown(large, c.conditions[:1].repeat(n))
    drawn = model.complete(
        empty, torch.Generator().manual_seed(0), steps=steps.expand(n, -1).contiguous()
    )
    code = 2 ** torch.arange(large.n_sites)
    seen = torch.bincount((drawn.occupations.long() * code).sum(1), minlength=64)
    expected = n * p[torch.argsort((states.long() * code).sum(1))]
    often = expected > 10
    chi2 = ((seen[often] - expected[often]) ** 2 / expected[often]).sum().item()
    degrees = int(often.sum()) - 1
    assert abs(chi2 - degrees) < 5 * np.sqrt(2 * degrees)


def test_known_sites_stay_and_the_rest_is_normalised(order):
    """sum over the unknown sites of q(x | known) = 1 for any known sites, and they stay."""
    small, large = Lattice.square(2), Lattice.square(4, 3)
    model = WindowedModel(Tables(small), small, 2, order)
    states = every_state(large)
    rng = np.random.default_rng(2)
    for seed in range(4):
        given = torch.tensor(rng.random(large.n_sites) < 0.5)
        some = states[(states[:, given] == states[rng.integers(len(states))][given]).all(1)]
        c = Configurations(large, conditions_of(large, 1).repeat(len(some)), some)
        partial = Configurations(
            large, c.conditions[:1], torch.where(given, some[:1], UNKNOWN).to(torch.int8)
        )
        drawn = model.complete(partial, torch.Generator().manual_seed(seed))
        assert torch.equal(drawn.occupations[:, given], partial.occupations[:, given])
        assert torch.equal(drawn.step[0] < 0, given)
        with torch.no_grad():
            log_q = model.log_prob(c, steps=drawn.step.expand(len(some), -1))
        assert abs(torch.logsumexp(log_q, 0).item()) < 1e-10


def test_rows_may_differ_in_what_is_known(order):
    """Rows with different known sites, none and all, are drawn together as they are alone."""
    small, large = Lattice.square(3), Lattice.square(5, 4)
    model = WindowedModel(Tables(small), small, 2, order)
    rng = np.random.default_rng(0)
    occupations = torch.tensor(rng.integers(0, 2, (12, 20)), dtype=torch.int8)
    occupations[torch.tensor(rng.random((12, 20)) < rng.random((12, 1)))] = UNKNOWN
    occupations[0], occupations[1, :] = UNKNOWN, 1
    partial = Configurations(large, conditions_of(large, 12), occupations)
    drawn = model.complete(partial, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.occupations[partial.known], occupations[partial.known])
    with torch.no_grad():
        again = model.log_prob(drawn, steps=drawn.step)
        alone = [model.log_prob(drawn[k], steps=drawn.step[k][None]) for k in range(12)]
    assert torch.allclose(drawn.log_prob, again, atol=1e-12, rtol=0)
    assert torch.allclose(torch.cat(alone), again, atol=1e-12, rtol=0)
    assert drawn.log_prob[1] == 0.0


@pytest.mark.parametrize(("order", "stride"), [("raster", 1), ("raster", 2), ("random", 3)])
def test_each_window_is_completed_as_the_small_cell(order, stride):
    """Window by window by hand: the model of the small cell, given what is known in the window."""
    small, large = Lattice.square(3), Lattice.square(5, 4)
    inner = Tables(small)
    model = WindowedModel(inner, small, stride, order, margin=0)
    empty = Configurations.unknown(large, conditions_of(large, 1))
    for seed in range(5):
        drawn = model.complete(empty, torch.Generator().manual_seed(seed))
        sites = torch.tensor(model.windows(large).sites)
        done = torch.zeros(20, dtype=torch.bool)
        total = 0.0
        while not done.all():
            # the window that begins now: complete first among those with sites to draw
            open_windows = [w for w in range(len(sites)) if not done[sites[w]].all()]
            w = min(open_windows, key=lambda w: (int(drawn.step[0, sites[w]].max()), w))
            steps = drawn.step[:, sites[w]].long()
            steps = torch.where(done[sites[w]], -1, steps)
            window = Configurations(small, drawn.conditions, drawn.occupations[:, sites[w]])
            with torch.no_grad():
                total += inner.log_prob(window, steps=steps).item()
            done[sites[w]] = True
        assert abs(total - drawn.log_prob.item()) < 1e-12


def test_windows_without_common_sites_share_passes():
    """Passes grow with the longest chain of overlapping windows, not with their number."""
    small, large = Lattice.square(4), Lattice.square(16)
    model = WindowedModel(Tables(small), small, 4)
    empty = Configurations.unknown(large, conditions_of(large, 2))
    assert int(model.draw_steps(empty, torch.Generator()).max()) + 1 == 16
    overlapping = WindowedModel(Tables(small), small, 3)
    steps = overlapping.draw_steps(empty, torch.Generator())
    assert 16 < int(steps.max()) + 1 < 256


def test_the_whole_lattice_as_window_is_the_model_itself():
    """With one window, draws and likelihoods are those of the model of the small cell."""
    lattice = Lattice.square(4)
    inner = network(INNER["mlp"], lattice, fields=False)
    model = WindowedModel(inner, lattice)
    empty = Configurations.unknown(lattice, conditions_of(lattice, 8))
    a, b = (m.complete(empty, torch.Generator().manual_seed(0)) for m in (inner, model))
    assert torch.equal(a.occupations, b.occupations) and torch.equal(a.step, b.step)
    assert torch.allclose(a.log_prob, b.log_prob, atol=1e-12, rtol=0)


def test_conditionals_of_one_site_are_those_of_its_window():
    """log_conditionals, log_conditionals_at and a draw of the last unknown site agree."""
    small, large = Lattice.square(3), Lattice.square(5, 4)
    model = WindowedModel(Tables(small), small, 2)
    occupations = torch.tensor(np.random.default_rng(0).integers(0, 2, (20, 20)), dtype=torch.int8)
    site = torch.arange(20)
    truth = occupations[site, site].long()
    occupations[site, site] = UNKNOWN
    c = Configurations(large, conditions_of(large, 20), occupations)
    with torch.no_grad():
        every = model.log_conditionals(c, None)
    at = model.log_conditionals_at(c, None, site)
    assert torch.allclose(every[site, site], at, atol=1e-12, rtol=0)
    drawn = model.complete(c, torch.Generator().manual_seed(0))
    chosen = drawn.occupations[site, site].long()
    assert torch.allclose(drawn.log_prob, at[site, chosen], atol=1e-12, rtol=0)
    assert (chosen != truth).any()


@pytest.mark.parametrize("inner", sorted(INNER))
def test_networks_draw_as_they_score(inner, order):
    """With fields of the larger lattice: drawn and recomputed likelihoods agree."""
    small, large = Lattice.square(2), Lattice.square(4, 3)
    ensemble = SemiGrandCanonical(random_expansion(large))
    model = WindowedModel(network(INNER[inner], small), small, 1, order)
    empty = Configurations.unknown(large, conditions_of(large, 40))
    drawn = model.complete(empty, torch.Generator().manual_seed(0), ensemble.fields)
    with torch.no_grad():
        again = model.log_prob(drawn, steps=drawn.step, fields=ensemble.fields)
    assert torch.allclose(drawn.log_prob, again, atol=1e-4, rtol=0)


def test_gradients_are_those_of_differences():
    """log_prob is differentiable: its slope along a direction is the difference quotient."""
    small, large = Lattice.square(2), Lattice.square(4, 3)
    inner = Tables(small)
    model = WindowedModel(inner, small, 1)
    drawn = model.complete(
        Configurations.unknown(large, conditions_of(large, 6)), torch.Generator().manual_seed(0)
    )
    log_q = model.log_prob(drawn, steps=drawn.step).sum()
    (gradient,) = torch.autograd.grad(log_q, inner.weights)
    direction = torch.randn(
        gradient.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    values = []
    for sign in (-1, 1):
        with torch.no_grad():
            inner.weights += sign * 1e-5 * direction
            values.append(model.log_prob(drawn, steps=drawn.step).sum())
            inner.weights -= sign * 1e-5 * direction
    slope = ((values[1] - values[0]) / 2e-5).item()
    assert slope == pytest.approx((gradient * direction).sum().item(), rel=1e-6)


# ------------------------------------------------------------------ estimates
def z_scores(model, ensemble, lattice, n=300, replicas=10):
    """z-scores of ln Z at mild conditions, replica by replica, where the weights have support."""
    box = ConditionRange((1800, 2400), [-0.02], [0.02], [[1.0, -1.0]])
    grid = box.grid(2, 2)
    exact = ensemble.enumerate(lattice).log_z(grid)
    rng = torch.Generator().manual_seed(5)
    drawn = sample(model, ensemble, lattice, grid.repeat(n * replicas), rng, batch_size=4096)
    z = []
    for k, rows in enumerate(drawn.log_weight.view(len(grid), replicas, n).numpy()):
        estimates = [log_mean_exp(row) for row in rows]
        z += [e.z(float(exact[k])) for e in estimates if e.ness * n >= 100]
    assert len(z) >= 20
    return np.array(z)


@pytest.mark.parametrize(
    ("inner", "chosen"),
    [("mlp", "raster"), ("transformer", "random"), ("marginalization", "random")],
)
def test_log_z_agrees_with_enumeration(inner, chosen):
    """Importance weights of a spoilt model give ln Z of the larger cell within its errors."""
    small, large = Lattice.square(2), Lattice.square(4, 3)
    ensemble = SemiGrandCanonical(ising_energy(large, 0.01))
    model = WindowedModel(network(INNER[inner], small, strength=0.05), small, 1, chosen)
    z = z_scores(model, ensemble, large)
    assert abs(z.mean()) < 4 / np.sqrt(len(z))
    assert abs(z.std() - 1) < 4 / np.sqrt(2 * len(z)) + 0.05


def test_log_z_of_a_fixed_order_agrees_with_enumeration():
    """A fixed order draws windows side by side, and is exact there."""
    small, large = Lattice.square(2, 3), Lattice.square(4, 3)
    model = WindowedModel(fixed(small, strength=0.1), small, (2, 3, 1))
    z = z_scores(model, SemiGrandCanonical(ising_energy(large, 0.01)), large)
    assert abs(z.mean()) < 4 / np.sqrt(len(z))
    assert abs(z.std() - 1) < 4 / np.sqrt(2 * len(z)) + 0.05


def test_a_fixed_order_continues_its_prefix():
    """Raster windows that grow along the first cell vector know a prefix; the order goes on."""
    small = Lattice.square(3, 2)
    atoms = Lattice.square(5, 2).template
    atoms.pbc = [False, True, False]
    large = Lattice.uniform(atoms, ("Cu", "Au"))
    model = WindowedModel(fixed(small), small, (2, 2, 1))
    drawn = model.complete(
        Configurations.unknown(large, conditions_of(large, 5)), torch.Generator().manual_seed(0)
    )
    assert drawn.step[0].tolist() == list(range(10))
    with torch.no_grad():
        again = model.log_prob(drawn, steps=drawn.step)
    assert torch.allclose(drawn.log_prob, again, atol=1e-5, rtol=0)


# ------------------------------------------------------------------ files
@pytest.mark.parametrize("inner", sorted(INNER))
def test_saved_models_draw_the_same(inner, tmp_path):
    """The file holds the small cell: a model read from it draws the same on the larger one."""
    small, large = fcc(2, 2, 2), fcc(3, 3, 2)
    ensemble = SemiGrandCanonical(random_expansion(large))
    model = WindowedModel(network(INNER[inner], small), small, 1, "random")
    TrainedModel(model, BOX).save(tmp_path / "model.nn")
    loaded = TrainedModel.load(tmp_path / "model.nn").model
    assert type(loaded) is WindowedModel and loaded.config() == model.config()
    empty = Configurations.unknown(large, conditions_of(large, 4))
    a, b = (
        m.complete(empty, torch.Generator().manual_seed(0), ensemble.fields)
        for m in (model, loaded)
    )
    assert torch.equal(a.occupations, b.occupations) and torch.equal(a.log_prob, b.log_prob)


def test_lattices_survive_json():
    """from_dict(to_dict) is the same lattice: fingerprint, sites, sublattices, background."""
    for lattice in (rocksalt(2, 1, 1), with_background(1, 2, 1), slab(2, 2, 2), fcc(2, 2, 2)):
        again = Lattice.from_dict(lattice.to_dict())
        assert again.fingerprint == lattice.fingerprint
        assert (again.sublattices == lattice.sublattices).all()
