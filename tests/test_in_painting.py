"""Laws of in-painting: what is held stays, the rest follows the exact conditional distribution."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from ase.build import bulk
from toys import SYSTEMS

from clease_nn import thermodynamics
from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.lattice import UNKNOWN, Lattice
from clease_nn.models import AnyOrderARM, FixedOrderARM, MarginalizationModel
from clease_nn.montecarlo import Chains
from clease_nn.networks import LatticeConvolution
from clease_nn.sampling import complete, complete_with_numbers, held, sample
from clease_nn.statistics import weighted_mean
from clease_nn.training import fit

pytestmark = [  # of models that were hardly trained
    pytest.mark.filterwarnings("ignore::clease_nn.warnings.TrainingWarning"),
    pytest.mark.filterwarnings("ignore::clease_nn.warnings.LostModeWarning"),
]

SYSTEM = {name: cache(SYSTEMS[name]) for name in ("binary", "two_sublattices")}
# what is held, by site number
MOTIFS = {
    "binary": [{0: "Cu", 3: "Au", 6: "Cu"}, {1: "Au"}, {2: "Cu", 5: "Cu", 7: "Cu"}],
    "two_sublattices": [{0: "Au", 1: "Ag"}, {4: "Cu", 3: "X", 7: "X"}, {2: "Cu"}],
}
CASES = [
    (system, kind)
    for system in SYSTEM
    for kind in ("any-trained", "any-spoilt", "marginalization-trained", "marginalization-spoilt")
]


def network(system, seed=0):
    lattice, _, box = SYSTEM[system]()
    torch.manual_seed(seed)
    return LatticeConvolution(lattice, box, channels=8, blocks=2)


@cache
def model_of(system, kind):
    """Trained for two seconds or less, or with random numbers in its head."""
    lattice, ensemble, box = SYSTEM[system]()
    family, _, state = kind.partition("-")
    if state == "trained":
        model = fit(
            ensemble,
            lattice,
            box,
            max_steps=60,
            seed=1,
            model=AnyOrderARM(network(system)),
            batch_size=64,
            validation_samples=2,
            progress=False,
        ).model
    else:
        model = AnyOrderARM(network(system))
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.detach().any():
                torch.nn.init.normal_(parameter, std=0.3)
    if family == "marginalization":
        model = MarginalizationModel(model.network, network(system, 1))
    return model.eval()


def conditions_of(system, n=3):
    box = SYSTEM[system]()[2]
    return box.at(np.random.default_rng(4).random((n, 1 + box.n_axes)))


@cache
def states_of(system):
    lattice, ensemble, _ = SYSTEM[system]()
    return ensemble.enumerate(lattice)


def agrees(system, motif):
    """(states,) bool: the state carries the motif."""
    lattice = SYSTEM[system]()[0]
    x = states_of(system).occupations
    rows = [x[:, i] == lattice.species.index(s) for i, s in motif.items()]
    return torch.stack(rows).all(0)


def number_of(occupations):
    """One whole number for each configuration."""
    return (occupations.long() + 1) @ (5 ** torch.arange(occupations.shape[1]))


def completed(system, kind, motif, conditions, n, seed):
    lattice, ensemble, _ = SYSTEM[system]()
    partial = held(lattice, conditions.repeat(n), sites=motif)
    return complete(
        model_of(system, kind),
        ensemble,
        partial,
        torch.Generator().manual_seed(seed),
        batch_size=4096,
    )


# ------------------------------------------------------------------ the distribution
@pytest.mark.parametrize(("system", "kind"), CASES)
@pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning")
def test_completions_follow_the_exact_conditional_distribution(system, kind):
    """The weighted share of every completion is p(x | held), and ln Z that of the restriction."""
    states, at, n = states_of(system), conditions_of(system), 1500
    z, z_of_log_z = [], []
    for seed, motif in enumerate(MOTIFS[system]):
        c = completed(system, kind, motif, at, n, seed)
        may = agrees(system, motif)
        index = {int(v): k for k, v in enumerate(number_of(states.occupations[may]))}
        column = np.array([index[int(v)] for v in number_of(c.occupations)])
        log_z = thermodynamics.log_z(c)
        for k in range(len(at)):
            rows = np.arange(len(c)) // n == k
            log_target = states.log_target(at[k])[may]
            exact = log_target.softmax(0).numpy()
            share = weighted_mean(np.eye(len(exact))[column[rows]], c.log_weight[rows])
            often = exact * n * share.ness > 25
            z.append((share.value - exact)[often] / share.error[often])
            z_of_log_z.append(log_z[k].z(log_target.logsumexp(0).item()))
    z = np.concatenate(z)
    assert len(z) > 50
    assert 0.8 < z.std() < 1.2
    assert np.abs(z).max() < 5
    assert np.abs(z_of_log_z).max() < 4.5


@pytest.mark.parametrize(("system", "kind"), CASES)
def test_probabilities_of_all_completions_sum_to_one(system, kind):
    """sum over completions of q(x | held) = 1 in a fixed order of drawing."""
    lattice, ensemble, _ = SYSTEM[system]()
    at = conditions_of(system, 1)
    motif = MOTIFS[system][0]
    model = model_of(system, kind)
    x = states_of(system).occupations[agrees(system, motif)]
    steps = model.draw_steps(held(lattice, at, sites=motif), torch.Generator().manual_seed(3))
    full = Configurations(lattice, at.repeat(len(x)), x)
    with torch.no_grad():
        log_q = model.log_prob(full, steps=steps.expand(len(x), -1), fields=ensemble.fields)
    assert abs(torch.logsumexp(log_q, 0).item()) < 1e-5


@pytest.mark.parametrize("system", SYSTEM)
@pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning")
def test_log_z_of_the_restriction_is_calibrated(system):
    """ln Z_c and ln P(motif) scatter about the exact values as their errors say."""
    lattice, ensemble, _ = SYSTEM[system]()
    at, states = conditions_of(system, 4), states_of(system)
    kind, n = "any-spoilt", 250
    exact = [
        torch.stack([states.log_target(at[k])[agrees(system, m)].logsumexp(0) for k in range(4)])
        for m in MOTIFS[system]
    ]
    all_of_it = states.log_z(at)
    z, zp = [], []
    for seed in range(10):
        rng = torch.Generator().manual_seed(1000 + seed)
        free = sample(model_of(system, kind), ensemble, lattice, at.repeat(n), rng, batch_size=4096)
        for j, motif in enumerate(MOTIFS[system]):
            c = completed(system, kind, motif, at, n, 50 * seed + j)
            z.append(thermodynamics.log_z(c).z(exact[j]))
            zp.append(thermodynamics.log_probability(c, free).z(exact[j] - all_of_it))
    for found in (np.concatenate(z), np.concatenate(zp)):
        assert 0.8 < found.std() < 1.2
        assert np.abs(found).max() < 5


@pytest.mark.parametrize(("system", "kind"), CASES)
def test_held_sites_never_change(system, kind):
    """Known sites keep their species and count as given; all others are drawn."""
    lattice = SYSTEM[system]()[0]
    for motif in MOTIFS[system]:
        c = completed(system, kind, motif, conditions_of(system, 5), 20, 8)
        for site in range(lattice.n_sites):
            if site in motif:
                assert (c.occupations[:, site] == lattice.species.index(motif[site])).all()
            assert ((c.step[:, site] < 0) == (site in motif)).all()
        assert c.same_given and len(c.by_given()) == 1


@pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning")
@pytest.mark.parametrize("system", SYSTEM)
def test_clamped_chains_agree(system):
    """Chains with the same sites clamped give the same averages, by another route."""
    lattice, ensemble, _ = SYSTEM[system]()
    motif, at = MOTIFS[system][0], conditions_of(system)
    c = completed(system, "any-trained", motif, at, 2000, 5)
    start = c[torch.arange(0, len(c), 200)]  # ten chains at each condition
    chains = Chains(
        ensemble, lattice, start.conditions, start.occupations, clamped=start.step < 0, seed=2
    )
    chains.sweep(20)
    parts = []
    for _ in range(300):
        chains.sweep(2)
        parts.append(chains.configurations())
    walked = Configurations.cat(parts)
    neural, chain = thermodynamics.averages(c), thermodynamics.averages(walked)
    for a, b in zip(neural, chain, strict=True):
        for quantity in ("energy", "sgc_energy"):
            x, y = getattr(a, quantity), getattr(b, quantity)
            assert abs(x.value - y.value) < 4.5 * np.hypot(x.error, y.error)
        x, y = a.composition, b.composition
        assert (np.abs(x.value - y.value) < 4.5 * np.hypot(x.error, y.error) + 1e-12).all()


@pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning")
def test_nothing_left_to_draw_is_scored():
    """With every site held there is one state, of weight one: Z_c is its Boltzmann weight."""
    lattice, ensemble, _ = SYSTEM["binary"]()
    at = conditions_of("binary", 1)
    partial = held(lattice, at.repeat(20), sublattices={0: "Cu"})
    c = complete(model_of("binary", "any-spoilt"), ensemble, partial, torch.Generator())
    found = thermodynamics.log_z(c)
    all_copper = agrees("binary", dict.fromkeys(range(8), "Cu"))
    assert found.value[0] == pytest.approx(states_of("binary").log_target(at)[all_copper].item())
    assert found.error[0] < 1e-9


# ------------------------------------------------------------------ several conditions together
@pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning")
def test_density_of_states_around_held_sites():
    """Draws around one motif at many conditions give ln Z_c at conditions never drawn at."""
    lattice, ensemble, box = SYSTEM["binary"]()
    motif = MOTIFS["binary"][0]
    at = box.grid(4, 3)
    c = completed("binary", "any-trained", motif, at, 400, 1)
    between = conditions_of("binary", 6)
    exact = torch.stack(
        [
            states_of("binary").log_target(between[k])[agrees("binary", motif)].logsumexp(0)
            for k in range(6)
        ]
    )
    dos = thermodynamics.density_of_states(c)
    assert np.abs(dos.log_z(between).z(exact)).max() < 4.5
    start = c[::400]
    chains = Chains(
        ensemble, lattice, start.conditions, start.occupations, clamped=start.step < 0, seed=1
    )
    walked = []
    for _ in range(200):
        chains.sweep(3)
        walked.append(chains.configurations())
    both = thermodynamics.density_of_states([c, Configurations.cat(walked)])
    assert np.abs(both.log_z(between).z(exact)).max() < 4.5
    free = sample(
        model_of("binary", "any-trained"), ensemble, lattice, at.repeat(400), torch.Generator()
    )
    p = thermodynamics.log_probability(c, thermodynamics.density_of_states(free))
    reference = torch.stack(
        [states_of("binary").probabilities(at[k])[agrees("binary", motif)].sum().log()
         for k in range(len(at))]
    )  # fmt: skip
    assert np.abs(p.z(reference)).max() < 4.5


def test_different_held_sites_are_not_one_ensemble():
    """Rows around different motifs are refused together, and served apart."""
    at = conditions_of("binary", 1)
    one, two = (completed("binary", "any-trained", m, at, 300, 1) for m in MOTIFS["binary"][:2])
    both = Configurations.cat([one, two])
    with pytest.raises(ValueError, match="by_given"):
        thermodynamics.averages(both)
    assert [len(thermodynamics.averages(part)) for part in both.by_given()] == [1, 1]
    with pytest.raises(ValueError, match="by_given"):
        thermodynamics.density_of_states([one, two])
    other = Conditions(at.temperature + 10, at.mu).repeat(300)
    moved = SYSTEM["binary"]()[1].score(replace(two, conditions=other))
    with pytest.raises(ValueError, match="by_given"):
        thermodynamics.density_of_states(Configurations.cat([one, moved]))
    loose = replace(two, log_prob=None, step=None, chain=torch.arange(300))
    with pytest.raises(ValueError, match="clamped"):
        thermodynamics.density_of_states([one, loose])


# ------------------------------------------------------------------ uncertain occupants
@pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning")
def test_shares_are_drawn_for_every_row():
    """Held species have the given shares; each realisation is a restricted ensemble of its own."""
    lattice, ensemble, _ = SYSTEM["two_sublattices"]()
    at = conditions_of("two_sublattices", 1)
    shares = {0: {"Au": 0.7, "Cu": 0.3}, 2: {"Cu": 1.0, "Au": 0.0}, 1: "X"}
    partial = held(lattice, at.repeat(6000), sites=shares, rng=torch.Generator().manual_seed(1))
    copper = (partial.occupations[:, 0] == lattice.species.index("Cu")).double().mean().item()
    assert abs(copper - 0.3) < 4.5 * np.sqrt(0.21 / 6000)
    assert (partial.occupations[:, 2] == lattice.species.index("Cu")).all()
    assert (partial.occupations[:, 1] == lattice.species.index("X")).all()
    rng = torch.Generator().manual_seed(2)
    c = complete(model_of("two_sublattices", "any-trained"), ensemble, partial, rng)
    parts = c.by_given()
    assert len(parts) == 2 and sum(len(p) for p in parts) == 6000
    for part in parts:
        species = lattice.species[part.occupations[0, 0]]
        may = agrees("two_sublattices", {0: species, 2: "Cu", 1: "X"})
        exact = states_of("two_sublattices").log_target(at)[may].logsumexp(0).item()
        assert abs(thermodynamics.log_z(part)[0].z(exact)) < 4.5


@pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning")
@pytest.mark.parametrize("kind", ["any-trained", "any-spoilt"])
def test_given_numbers_are_an_ensemble_of_their_own(kind):
    """Z and averages are those of all states with these numbers on these sites."""
    lattice, ensemble, _ = SYSTEM["two_sublattices"]()
    at = conditions_of("two_sublattices", 2)
    metal = np.flatnonzero(lattice.sublattices == lattice.sublattices[0])
    x = states_of("two_sublattices").occupations
    copper, free_site = lattice.species.index("Cu"), 1
    may = (x[:, metal] == copper).sum(1) == 1
    may &= x[:, free_site] == lattice.species.index("Ag")
    z, z_energy = [], []
    for seed in range(12):
        c = complete_with_numbers(
            model_of("two_sublattices", kind),
            ensemble,
            held(lattice, at.repeat(400), sites={free_site: "Ag"}),
            [(metal, {"Cu": 1, "Au": len(metal) - 1})],
            torch.Generator().manual_seed(seed),
            batch_size=4096,
        )
        assert (((c.occupations[:, metal] == copper).sum(1)) == 1).all()
        assert c.same_given and (c.step[:, metal] == 0).all() and (c.step[:, free_site] == -1).all()
        for k, a in enumerate(thermodynamics.averages(c)):
            log_target = states_of("two_sublattices").log_target(at[k])[may]
            z.append(a.log_z.z(log_target.logsumexp(0).item()))
            energy = states_of("two_sublattices").energy[may]
            z_energy.append(a.energy.z((log_target.softmax(0) @ energy).item()))
    for found in (z, z_energy):
        assert 0.6 < np.std(found) < 1.4  # 24 numbers
        assert np.abs(found).max() < 4.5


# ------------------------------------------------------------------ ways to say what is held
@pytest.fixture
def surface():
    """Fixed oxygen, two rows of metal: atom indices and site numbers differ."""
    atoms = bulk("NaCl", "rocksalt", a=4.2) * (2, 2, 1)
    active = np.flatnonzero(np.array(atoms.symbols) == "Cl")
    allowed = np.array([[1, 1, 0], [1, 1, 0], [0, 1, 1], [0, 1, 1]], dtype=bool)
    return Lattice(atoms, active, ("Ag", "Au", "Cu"), allowed)


AT = Conditions([300.0, 600.0], [[0.0, 0.0, 0.0]] * 2)


def test_all_ways_to_hold_say_the_same(surface):
    """Atoms with a mask or indices, mappings of atoms, sites and sublattices agree."""
    wanted = [[1, 1, UNKNOWN, 2]] * 2
    own = surface.atoms([1, 1, 1, 2])
    index = surface.site_indices[[0, 1, 3]]
    mask = np.zeros(len(own), dtype=bool)
    mask[index] = True
    mask[0] = True  # background
    assert 0 not in surface.site_indices
    sublattice = int(surface.sublattices[0])
    symbols = dict(zip(index.tolist(), ["Au", "Au", "Cu"], strict=True))
    for c in (
        held(surface, AT, atoms=own, keep=mask),
        held(surface, AT, atoms=own, keep=index),
        held(surface, AT, atoms=symbols),
        held(surface, AT, sites={0: "Au", 1: "Au", 3: "Cu"}),
        held(surface, AT, sublattices={sublattice: "Au"}, sites={3: "Cu"}),
        held(surface, AT, sublattices={sublattice: "Au"}, atoms={int(index[2]): "Cu"}),
    ):
        assert c.occupations.tolist() == wanted
        assert c.log_prob is None and c.step is None


def test_strained_atoms_are_recognised(surface):
    """Atoms of a strained or relaxed cell may be held; they are matched by index."""
    own = surface.atoms([0, 1, 2, 2])
    own.set_cell(own.cell * 1.04, scale_atoms=True)
    own.rattle(0.05, seed=1)
    c = held(surface, AT, atoms=own, keep=surface.site_indices)
    assert c.occupations.tolist() == [[0, 1, 2, 2]] * 2


def test_fixed_order_serves_the_first_sites_of_its_order_only():
    """Known sites that come late in a fixed order are refused with the site named."""
    lattice, ensemble, _ = SYSTEM["binary"]()
    model = FixedOrderARM(network("binary"), np.arange(8))
    at = conditions_of("binary", 1).repeat(50)
    c = complete(model, ensemble, held(lattice, at, sites={0: "Au", 1: "Cu"}), torch.Generator())
    assert (c.occupations[:, :2] == torch.tensor([0, 1])).all()
    with pytest.raises(ValueError, match="site 5 of row 0 is known, but site 0"):
        complete(model, ensemble, held(lattice, at, sites={5: "Au"}), torch.Generator())


# ------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({}, ValueError, "nothing is to be held"),
        ({"sites": {0: "Cu"}}, ValueError, r"\(site 0\) cannot hold 'Cu'.*\['Ag', 'Au'\]"),
        ({"sites": {0: "Zn"}}, ValueError, r"cannot hold 'Zn'.*\['Ag', 'Au'\]"),
        ({"sites": {4: "Au"}}, ValueError, "no site 4.*0 to 3.*atoms="),
        ({"sites": {-1: "Au"}}, ValueError, "no site -1"),
        ({"sites": {1.5: "Au"}}, ValueError, "whole numbers, got 1.5"),
        ({"sites": {True: "Au"}}, ValueError, "a mask belongs to keep"),
        ({"sites": {0: 1}}, TypeError, "holds a symbol"),
        ({"sites": {0: "Ag"}, "sublattices": {1: "Au"}}, ValueError, "hold 'Ag' and 'Au'"),
        ({"sublattices": {7: "Au"}}, ValueError, "no sublattice 7"),
        ({"atoms": {0: "Au"}}, ValueError, r"atom 0 \(Na\) is background"),
        ({"atoms": {99: "Au"}}, ValueError, "no atom 99"),
        ({"atoms": "Au4"}, TypeError, "ase.Atoms object or a mapping"),
        ({"keep": [1], "sites": {0: "Au"}}, ValueError, "Atoms object"),
        ({"sites": {0: {"Ag": 0.5, "Au": 0.4}}}, ValueError, "add up to 0.9"),
        ({"sites": {0: {"Ag": -0.5, "Au": 1.5}}}, ValueError, "share -0.5"),
        ({"sites": {0: {"Ag": 0.5, "Cu": 0.5}}}, ValueError, "cannot hold 'Cu'"),
        ({"sites": {0: {"Ag": 0.5, "Au": 0.5}}}, ValueError, "hand over rng"),
    ],
)
def test_what_the_lattice_forbids_is_refused(surface, asked, error, words):
    """The message names the atom, the species and what is allowed."""
    with pytest.raises(error, match=words):
        held(surface, AT, **asked)


def test_atoms_that_do_not_fit_are_refused(surface):
    """Another number of atoms, another order, a wrong mask, another background, no choice."""
    own = surface.atoms([1, 1, 1, 2])
    index = surface.site_indices
    mask = np.ones(len(own), dtype=bool)
    with pytest.raises(ValueError, match="has 7 atoms, the supercell of this lattice 8"):
        held(surface, AT, atoms=own[:7], keep=index[:1])
    with pytest.raises(ValueError, match="which atoms are held"):
        held(surface, AT, atoms=own)
    with pytest.raises(ValueError, match=r"shape \(8,\)"):
        held(surface, AT, atoms=own, keep=mask[:5])
    with pytest.raises(ValueError, match="atom 0 .Na. is background"):
        held(surface, AT, atoms=own, keep=[0])
    with pytest.raises(ValueError, match="in another order"):
        held(surface, AT, atoms=own[::-1], keep=index)
    with pytest.raises(ValueError, match="nothing is to be held"):
        held(surface, AT, atoms=own, keep=np.zeros(len(own), dtype=bool))
    own.symbols[0] = "K"
    with pytest.raises(ValueError, match="background atom 0 is K, the lattice has Na"):
        held(surface, AT, atoms=own, keep=mask)
    own.symbols[int(index[3])] = "Zn"
    with pytest.raises(ValueError, match=r"\(site 3\) cannot hold 'Zn'"):
        held(surface, AT, atoms=own, keep=index[3:])


def test_numbers_that_do_not_fit_are_refused():
    """Numbers must fill their sites, which must be free, distinct and may carry the species."""
    lattice, ensemble, _ = SYSTEM["two_sublattices"]()
    partial = held(lattice, conditions_of("two_sublattices", 1), sites={0: "Au"})
    model = model_of("two_sublattices", "any-spoilt")

    def ask(*numbers):
        complete_with_numbers(model, ensemble, partial, numbers, torch.Generator())

    with pytest.raises(ValueError, match="make 3, but there are 2 sites"):
        ask(([2, 4], {"Au": 1, "Cu": 2}))
    with pytest.raises(ValueError, match="already held"):
        ask(([0, 2], {"Au": 1, "Cu": 1}))
    with pytest.raises(ValueError, match="named twice"):
        ask(([2, 2], {"Au": 1, "Cu": 1}))
    with pytest.raises(ValueError, match="no site in common"):
        ask(([2, 4], {"Au": 1, "Cu": 1}), ([4, 6], {"Au": 1, "Cu": 1}))
    with pytest.raises(ValueError, match="cannot hold 'Ag'"):
        ask(([2, 4], {"Au": 1, "Ag": 1}))
    with pytest.raises(ValueError, match="whole numbers, got 0.5"):
        ask(([2], {"Au": 0.5, "Cu": 0.5}))
    with pytest.raises(ValueError, match="must not be negative"):
        ask(([2], {"Au": 2, "Cu": -1}))


@pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning")
def test_probabilities_need_fitting_denominators():
    """Other lattices, missing conditions, other held sites and chains are refused."""
    lattice, ensemble, _ = SYSTEM["binary"]()
    at = conditions_of("binary", 2)
    one, two = (completed("binary", "any-trained", m, at, 50, 1) for m in MOTIFS["binary"][:2])
    free = sample(
        model_of("binary", "any-trained"), ensemble, lattice, at.repeat(50), torch.Generator()
    )
    ln_p = thermodynamics.log_probability
    assert ln_p(one, free).value.shape == (2,)
    with pytest.raises(ValueError, match="no free draws at"):
        ln_p(one, free[:50])
    with pytest.raises(ValueError, match="hold site 1"):
        ln_p(one, two)
    with pytest.raises(TypeError, match="got Estimate"):
        ln_p(one, thermodynamics.log_z(free))
    with pytest.raises(ValueError, match="no partition function"):
        ln_p(one, replace(free, log_prob=None, chain=torch.arange(len(free))))
    other = completed(
        "two_sublattices", "any-spoilt", {0: "Au"}, conditions_of("two_sublattices", 1), 50, 1
    )
    with pytest.raises(ValueError, match="different lattices"):
        ln_p(one, other)
    chains = thermodynamics.density_of_states(
        replace(free, log_prob=None, step=None, chain=torch.arange(len(free)))
    )
    with pytest.raises(ValueError, match="up to a constant"):
        ln_p(one, chains)


@pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning")
def test_held_in_stages_multiplies_probabilities():
    """P(motif) = P(part) P(motif | part): free draws may hold a part of the motif."""
    motif = MOTIFS["binary"][0]
    part = dict(list(motif.items())[:2])
    at, states = conditions_of("binary", 3), states_of("binary")
    whole, some = (completed("binary", "any-trained", m, at, 1000, 3) for m in (motif, part))
    found = thermodynamics.log_probability(whole, some)
    exact = [
        (p[agrees("binary", motif)].sum() / p[agrees("binary", part)].sum()).log().item()
        for p in (states.probabilities(at[k]) for k in range(3))
    ]
    assert np.abs(found.z(exact)).max() < 4.5
