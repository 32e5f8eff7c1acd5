"""Laws of block moves: regions blind to the configuration, detailed balance, adapted sizes."""

import numpy as np
import pytest
import torch
from ase.build import bulk
from refine_toys import TINY, coloured, six_binary, spoilt, state_numbers
from scipy.stats import chi2

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.configurations import Configurations
from clease_nn.energies.ising import ising_conditions, ising_energy
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.models import Coloured, FixedOrderARM, OneByOne
from clease_nn.montecarlo import Chains
from clease_nn.networks import MaskedMLP
from clease_nn.sampling.block_moves import BlockMoves
from clease_nn.sampling.regions import SHAPES, Regions


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(regions, size, shape, rows=64, seed=0, free=None):
    full = torch.full((rows,), size), torch.full((rows,), SHAPES.index(shape))
    return regions.draw(*full, generator(seed), free)


# ------------------------------------------------------------------ regions
FCC = Lattice.uniform(bulk("Au", a=3.8) * (4, 4, 4), ["Au", "Cu"])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 2, 13, 63, 64, 100])
def test_regions_have_the_size_asked_for(shape, size):
    """A region has its size, or all sites where it asks for more."""
    assert (drawn(Regions(FCC), size, shape).sum(1) == min(size, 64)).all()


def test_balls_are_the_nearest_sites():
    """No site outside a ball is nearer to its centre than one inside, images considered."""
    distances = FCC.template.get_all_distances(mic=True)
    for mask in drawn(Regions(FCC), 19, "ball", rows=16).numpy():
        gaps = [distances[i, ~mask].min() - distances[i, mask].max() for i in np.flatnonzero(mask)]
        assert max(gaps) > -1e-3


def test_balls_cross_the_boundary_of_a_skewed_cell():
    """Distances are those to the nearest image also in cells far from cubic."""
    lattice = Lattice.uniform(bulk("Au", a=3.8) * (2, 3, 6), ["Au", "Cu"])
    distances = lattice.template.get_all_distances(mic=True)
    found = Regions(lattice)._distance(torch.arange(lattice.n_sites)).numpy()
    assert np.abs(found - distances).max() < 1e-4


def test_a_plane_is_a_layer():
    """Sixteen sites of a 4 x 4 x 4 cell are one of its layers, in several directions."""
    fractional = np.round(FCC.template.get_scaled_positions() * 4).astype(int)
    normals = set()
    for mask in drawn(Regions(FCC), 16, "plane", rows=64).numpy():
        h = [
            n
            for n in np.ndindex(3, 3, 3)
            if any(np.array(n) - 1)
            and len(np.unique((fractional[mask] @ (np.array(n) - 1)) % 4)) == 1
        ]
        assert h
        normals.add(h[0])
    assert len(normals) > 5


@pytest.mark.parametrize("shape", SHAPES)
def test_every_site_is_chosen_equally_often(shape):
    """By translation every site is as likely as any other to be in a region."""
    counts = drawn(Regions(FCC), 8, shape, rows=4000).sum(0).double()
    z = (counts - 500) / np.sqrt(500 * 7 / 8)
    assert z.abs().max() < 4.8


@pytest.mark.parametrize("shape", SHAPES)
def test_regions_keep_to_the_sites_that_are_free(shape):
    """Sites of a single species and held sites of a row are never in its region."""
    lattice = TINY["sublattices"]()[0]
    regions = Regions(lattice)
    mask = drawn(regions, 9, shape)
    assert (mask == torch.as_tensor(lattice.allowed.sum(1) > 1)).all()
    free = torch.rand((64, 6), generator=generator()) < 0.5
    mask = drawn(regions, 2, shape, free=free)
    assert not (mask & ~free).any()
    assert torch.equal(mask.sum(1), free.sum(1).clamp(max=2))


def test_slabs_have_no_image_beyond_their_surfaces():
    """Along a direction without periodicity the two surfaces are not neighbours."""
    atoms = bulk("Cu", "sc", a=2.5) * (1, 1, 8)
    atoms.pbc = [True, True, False]
    regions = Regions(Lattice.uniform(atoms, ["Cu", "Au"]))
    for shape in ("ball", "plane"):
        for mask in drawn(regions, 3, shape, rows=32):
            assert np.ptp(mask.nonzero()[:, 0].numpy()) == 2


@pytest.mark.parametrize("n", [1, 2])
def test_cells_of_one_and_two_sites_have_regions(n):
    """Tiny cells and chains of sites are served."""
    regions = Regions(Lattice.square(1, n))
    for shape in SHAPES:
        assert (drawn(regions, 1, shape).sum(1) == 1).all()


# ------------------------------------------------------------------ detailed balance
def balance_z(before, after, p):
    """z of detailed balance for all pairs of states with enough transitions.

    From equally many copies of every state, of n transitions between x and y those from x to y
    are binomial with probability p(y) / (p(x) + p(y)).
    """
    counts = torch.zeros(len(p), len(p), dtype=torch.float64)
    counts.index_put_((before, after), torch.ones(len(before), dtype=torch.float64), True)
    n, share = counts + counts.T, p / (p[:, None] + p)
    variance = n * share * (1 - share)
    return ((counts - n * share) / variance.sqrt())[torch.triu(variance > 4, diagonal=1)]


@pytest.mark.parametrize(
    ("shape", "make"), [*((shape, spoilt) for shape in SHAPES), ("ball", coloured)]
)
@pytest.mark.parametrize("system", sorted(TINY))
def test_every_shape_is_in_detailed_balance(system, shape, make):
    """As many go from x to y as from y to x in equilibrium, for all pairs of states."""
    lattice, ensemble, box = TINY[system]()
    states = ensemble.enumerate(lattice)
    mu = box.at([[0.9] + [0.4] * box.n_axes]).mu
    condition = Conditions([4000.0], mu)
    copies = 24000 // len(states.occupations)
    rows = states.occupations.repeat_interleave(copies, 0)
    start = ensemble.score(Configurations(lattice, condition.repeat(len(rows)), rows))
    moves = BlockMoves(
        make(lattice, box), ensemble, lattice, generator(5), size=2, shapes=shape, batch_size=40000
    )
    c, accepted = moves(start)
    assert 0.05 < accepted.double().mean() < 0.999
    assert torch.allclose(c.log_target, ensemble.score(c).log_target, rtol=0, atol=1e-9)
    before, after = (state_numbers(states.occupations, x) for x in (rows, c.occupations))
    z = balance_z(before, after, states.probabilities(condition))
    assert len(z) > 8
    assert z.abs().max() < 5
    assert (z**2).sum() < chi2.ppf(1 - 1e-5, len(z))
    assert (z**2).sum() > chi2.ppf(1e-5, len(z))


@pytest.mark.parametrize("size", [None, 1, 2])
def test_exact_samples_stay_exact(size):
    """One move of samples of three conditions leaves the probabilities of all states."""
    lattice, ensemble, box = six_binary()
    states = ensemble.enumerate(lattice)
    conditions = box.at([[0.0, 0.1], [0.3, 0.9], [1.0, 0.5]])
    rng = np.random.default_rng(3)
    p = np.stack([states.probabilities(conditions[k]).numpy() for k in range(3)])
    n = 4000
    rows = np.concatenate([rng.choice(64, n, p=row) for row in p])
    start = Configurations(lattice, conditions.repeat(n), states.occupations[rows])
    model = spoilt(lattice, box)
    moves = BlockMoves(model, ensemble, lattice, generator(1), size=size, batch_size=8000)
    c, accepted = moves(ensemble.score(start))
    assert 0.02 < accepted.double().mean() < 1
    found = state_numbers(states.occupations, c.occupations).view(3, n).numpy()
    for k in range(3):
        often = p[k] * n > 10
        seen = np.bincount(found[k], minlength=64)
        terms = ((seen - n * p[k]) ** 2 / (n * p[k]))[often]
        assert chi2.ppf(1e-5, often.sum()) < terms.sum() < chi2.ppf(1 - 1e-5, often.sum())


def test_held_sites_stay_and_the_others_follow_the_constrained_distribution():
    """With sites held the long-run distribution is the Boltzmann distribution of the others."""
    lattice, ensemble, box = six_binary()
    states = ensemble.enumerate(lattice)
    condition = box.at([[0.3, 0.4]])
    n = 384
    clamped = torch.tensor([[True, False, False, True, False, False]])
    start = torch.zeros(n, 6, dtype=torch.int8)
    start[:, 0] = 1
    c = ensemble.score(Configurations(lattice, condition.repeat(n), start))
    moves = BlockMoves(
        spoilt(lattice, box), ensemble, lattice, generator(2), size=3, clamped=clamped
    )
    kept = []
    for step in range(30):
        c, _ = moves(c)
        if step >= 16 and step % 4 == 0:
            kept.append(c.occupations)
    kept = torch.stack(kept)
    assert (kept[:, :, 0] == 1).all() and (kept[:, :, 3] == 0).all()
    inside = (states.occupations[:, 0] == 1) & (states.occupations[:, 3] == 0)
    p = torch.where(inside, states.probabilities(condition), 0.0)
    p = (p / p.sum())[inside]
    number = state_numbers(states.occupations, kept.view(-1, 6)).view(len(kept), n)
    share = torch.stack([(number == s).double().mean(0) for s in inside.nonzero()[:, 0]])
    z = (share.mean(1) - p) / (share.std(1) / np.sqrt(n))  # chains are independent of each other
    assert z.abs().max() < 4.5


def test_an_order_of_its_own_replaces_that_of_the_model():
    """Far sites of a region share passes, whatever the order of the model."""
    lattice, ensemble, box = six_binary()
    c = Configurations(lattice, box.grid(1, 1), torch.zeros(1, 6, dtype=torch.int8))
    passes = []
    for order in (None, Coloured(distance=0.0, neighbours=1)):
        moves = BlockMoves(spoilt(lattice, box), ensemble, lattice, generator(), order=order)
        moves(ensemble.score(c))
        passes.append(moves.network_passes)
    assert passes[1] < passes[0]


def test_rows_that_are_not_asked_for_stay():
    """Only the rows asked for are moved."""
    lattice, ensemble, box = six_binary()
    conditions = box.at([[1.0, 0.5]]).repeat(4)
    start = Configurations(lattice, conditions, torch.zeros(4, 6, dtype=torch.int8))
    moves = BlockMoves(spoilt(lattice, box), ensemble, lattice, generator(), size=6)
    c = ensemble.score(start)
    moved = torch.zeros(4, dtype=torch.bool)
    for _ in range(20):
        c, accepted = moves(c, torch.tensor([1, 3]))
        moved |= accepted
    assert moved.tolist() == [False, True, False, True]
    assert (c.occupations[[0, 2]] == 0).all()
    assert sum(r["attempted"] for r in moves.report()) == 40


def test_a_fixed_order_redraws_whole_cells():
    """A model of one order serves as an independence move, also of sites with one species."""
    lattice, ensemble, box = TINY["sublattices"]()
    states = ensemble.enumerate(lattice)
    condition = box.at([[0.4, 0.4]])
    torch.manual_seed(0)
    model = FixedOrderARM(MaskedMLP(lattice, box, width=16))
    n = 6000
    rng = np.random.default_rng(0)
    p = states.probabilities(condition).numpy()
    rows = torch.as_tensor(rng.choice(len(p), n, p=p))
    start = Configurations(lattice, condition.repeat(n), states.occupations[rows])
    c, accepted = BlockMoves(model, ensemble, lattice, generator(), batch_size=n)(
        ensemble.score(start)
    )
    assert 0.02 < accepted.double().mean() < 1
    seen = np.bincount(state_numbers(states.occupations, c.occupations).numpy(), minlength=len(p))
    often = n * p > 10
    terms = ((seen - n * p) ** 2 / (n * p))[often]
    assert chi2.ppf(1e-5, often.sum()) < terms.sum() < chi2.ppf(1 - 1e-5, often.sum())


# ------------------------------------------------------------------ sizes
def test_sizes_reach_the_wanted_acceptance():
    """Adapted sizes are accepted with 0.4 +- 0.1 unless one site or the whole cell is reached."""
    lattice = Lattice.square(6)
    ensemble = SemiGrandCanonical(ising_energy(lattice))
    conditions = ising_conditions([2.6, 4.0, 1e3], [0.0] * 3).repeat(24)
    chains = Chains(ensemble, lattice, conditions, seed=1)
    chains.sweep(100)
    box = ConditionRange((2e4, 5e4), [-0.4], [0.4], [[-1.0, 1.0]])
    model = coloured(lattice, box, strength=0.1)
    moves = BlockMoves(model, ensemble, lattice, generator(3), size=6)
    c = chains.configurations()
    for _ in range(40):
        c, _ = moves.adapt(c)
    sizes = [r["size"] for r in moves.report()]
    moves.reset_counts()
    for _ in range(16):
        c, _ = moves(c)
    report = moves.report()
    assert [r["size"] for r in report] == sizes, "calls must not change a size"
    within = [r for r in report if 3 < r["size"] < 36]
    assert len(within) >= 4
    for r in within:
        assert abs(r["acceptance"] - 0.4) < 0.1, r
    assert all(r["acceptance"] > 0.3 for r in report if r["size"] == 36)
    assert len(set(sizes)) > 2


def test_moves_are_determined_by_their_seed_and_state():
    """The same seed gives the same moves, and a loaded state continues them."""
    lattice, ensemble, box = six_binary()
    model = spoilt(lattice, box)
    c = ensemble.score(Configurations(lattice, box.grid(3, 3), torch.zeros(9, 6, dtype=torch.int8)))

    def run(moves, c, n):
        for _ in range(n):
            c, _ = moves.adapt(c)
        return c

    first = BlockMoves(model, ensemble, lattice, generator(7), size=3)
    half = run(first, c, 5)
    state = first.state_dict()
    end = run(first, half, 5)
    second = BlockMoves(model, ensemble, lattice, generator(), size=3)
    second.load_state_dict(state)
    assert torch.equal(run(second, half, 5).occupations, end.occupations)
    assert second.report() == first.report()


# ------------------------------------------------------------------ bad input
def test_bad_input_is_refused():
    """Errors name the value and the remedy."""
    lattice, ensemble, box = six_binary()
    model = spoilt(lattice, box)
    parts = model, ensemble, lattice, generator()
    with pytest.raises(MemoryError, match="rows of 6 sites drawn together need"):
        BlockMoves(*parts, batch_size=10**9)
    for size in (0, 7):
        with pytest.raises(ValueError, match=r"size must be 1 \.\.\. 6 sites"):
            BlockMoves(*parts, size=size)
    with pytest.raises(ValueError, match="shapes must be some of"):
        BlockMoves(*parts, shapes=("cube",))
    with pytest.raises(ValueError, match="shapes must be some of"):
        BlockMoves(*parts, shapes=())
    with pytest.raises(ValueError, match="batch_size"):
        BlockMoves(*parts, batch_size=0)
    with pytest.raises(ValueError, match="clamped must have shape"):
        BlockMoves(*parts, clamped=torch.zeros(6, dtype=torch.bool))
    fixed = FixedOrderARM(MaskedMLP(lattice, box, width=8))
    with pytest.raises(ValueError, match="one order of drawing and cannot"):
        BlockMoves(fixed, ensemble, lattice, generator(), order=OneByOne())
    with pytest.raises(ValueError, match="one order of drawing and cannot"):
        BlockMoves(fixed, ensemble, lattice, generator(), size=2)
    c = Configurations(lattice, Conditions([900.0], [[0.0, 0.0]]), torch.zeros(1, 6))
    moves = BlockMoves(*parts, size=2)
    with pytest.raises(ValueError, match="scored"):
        moves(c)
    with pytest.raises(ValueError, match="one order of drawing"):
        BlockMoves(fixed, ensemble, lattice, generator()).adapt(ensemble.score(c))
    other = Configurations(Lattice.square(2, 3), c.conditions, torch.zeros(1, 6))
    with pytest.raises(ValueError, match="another lattice"):
        moves(SemiGrandCanonical(lambda la, o: torch.zeros(len(o))).score(other))
    held = BlockMoves(*parts, size=2, clamped=torch.zeros(3, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="clamped has 3 rows"):
        held(ensemble.score(c))
