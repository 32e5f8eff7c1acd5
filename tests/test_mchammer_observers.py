"""Every observer of mchammer, by name: values by direct evaluation, averages by enumeration."""

import importlib
import inspect
import itertools
import pkgutil

import numpy as np
import pytest
from ase.build import bulk
from ase.neighborlist import neighbor_list

icet = pytest.importorskip("icet")

from icet import ClusterExpansion, ClusterSpace  # noqa: E402
from icet.tools import ConstituentStrain  # noqa: E402
from mchammer import observers as module  # noqa: E402
from mchammer.calculators import ClusterExpansionCalculator  # noqa: E402
from mchammer.ensembles import SemiGrandCanonicalEnsemble  # noqa: E402
from mchammer.observers import (  # noqa: E402
    ClusterCountObserver,
    ClusterExpansionObserver,
    ConstituentStrainObserver,
    ShortRangeOrderObserver,
    SiteOccupancyObserver,
    StructureFactorObserver,
)
from mchammer.observers.base_observer import BaseObserver  # noqa: E402
from sampler_helpers import FieldModel  # noqa: E402

from clease_nn.conditions import ConditionRange, Conditions  # noqa: E402
from clease_nn.ensemble import SemiGrandCanonical  # noqa: E402
from clease_nn.hosts import mchammer as host  # noqa: E402
from clease_nn.hosts.mchammer import NeuralSGCEnsemble  # noqa: E402
from clease_nn.io import TrainedModel  # noqa: E402

TEMPERATURE = 900.0
pytestmark = pytest.mark.filterwarnings("ignore:The supercell is self-interacting")


class System:
    """An expansion on a cell that can be enumerated."""

    def __init__(self, primitive, symbols, repeat, mu, cutoff):
        self.primitive, self.mu = primitive, mu
        self.space = ClusterSpace(primitive, [cutoff], symbols)
        rng = np.random.default_rng(5)
        self.expansion = ClusterExpansion(self.space, rng.normal(0, 0.03, len(self.space)))
        self.structure = primitive.repeat(repeat)
        self.lattice = host.lattice(self.structure, self.expansion)
        energy = host.energy(self.structure, self.expansion)
        states = SemiGrandCanonical(energy).enumerate(self.lattice)
        at = Conditions([TEMPERATURE], [[mu[s] for s in self.lattice.species]])
        self.p = states.probabilities(at).numpy()
        self.frames = [self.lattice.atoms(x) for x in states.occupations.numpy()]

    def ensemble(self, make, seed):
        """A run in the making."""
        calculator = ClusterExpansionCalculator(self.structure, self.expansion)
        return make(self, calculator, seed)


def fcc():
    """8 sites of Ag-Au."""
    return System(bulk("Ag", a=4.1), ["Ag", "Au"], 2, {"Ag": 0.0, "Au": 0.05}, 4.3)


def two_sublattices():
    """CsCl structure, 4 sites of Ag-Au and 4 of Cu-Pd."""
    primitive = bulk("AgCu", "cesiumchloride", a=3.0)
    mu = {"Ag": 0.0, "Au": 0.05, "Cu": 0.0, "Pd": -0.03}
    return System(primitive, [["Ag", "Au"], ["Cu", "Pd"]], (2, 2, 1), mu, 3.1)


@pytest.fixture(scope="module", params=[fcc, two_sublattices], ids=lambda f: f.__name__)
def system(request):
    return request.param()


def plain(s, calculator, seed):
    """mchammer's own ensemble."""
    return SemiGrandCanonicalEnsemble(s.structure, calculator, TEMPERATURE, s.mu, random_seed=seed)


def neural(s, calculator, seed):
    """Ours, with an imperfect model that redraws all sites every few sweeps."""
    species = list(s.lattice.species)
    axes = np.eye(len(species))[1:2] if len(species) == 2 else np.eye(len(species))[[1, 3]]
    ends = [0.3] * len(axes)
    box = ConditionRange((300, 3000), [-x for x in ends], ends, axes)
    meta = {"parent_fingerprint": host.parent_fingerprint(s.expansion), "species": species}
    return NeuralSGCEnsemble(
        s.structure, calculator, TEMPERATURE, s.mu, random_seed=seed,
        model=TrainedModel(FieldModel(), box, meta), neural_interval=5,
    )  # fmt: skip


ENSEMBLES = {"SemiGrandCanonicalEnsemble": plain, "NeuralSGCEnsemble": neural}


# ------------------------------------------------------------------ what each should give
def cluster_expansion(s):
    """Another property per site, from our own tables."""
    rng = np.random.default_rng(8)
    other = ClusterExpansion(s.space, rng.normal(0, 1, len(s.space)))
    energy = host.energy(s.structure, other)
    x = np.stack([s.lattice.occupations(f) for f in s.frames])
    values = np.array(energy(s.lattice, x)) / len(s.structure)
    return ClusterExpansionObserver(other), {"ClusterExpansionObserver": values}


class Unordered(ClusterCountObserver):
    """Pairs within a sublattice, which the host lists in either order as it happens, added up."""

    def get_observable(self, structure):
        out = {}
        for tag, n in super().get_observable(structure).items():
            index, *species = tag.split("_")
            tag = "_".join([index, *species_of_pair(self._cluster_space, int(index), species)])
            out[tag] = out.get(tag, 0) + n
        return out


def species_of_pair(space, index, species):
    """The species of a cluster, sorted if its sites are on one sublattice."""
    sites = space.orbit_list.get_orbit(index).representative_cluster.lattice_sites
    return sorted(species) if len({site.index for site in sites}) == 1 else list(species)


def cluster_counts(s):
    """Atoms of each species and pairs of each shell."""
    expected = {}
    symbols = np.array([f.get_chemical_symbols() for f in s.frames])
    basis = np.tile(np.arange(len(s.primitive)), len(s.structure) // len(s.primitive))
    for index in range(len(s.space.orbit_list)):
        cluster = s.space.orbit_list.get_orbit(index).representative_cluster
        first, last = cluster.lattice_sites[0].index, cluster.lattice_sites[-1].index
        for species in s.space.get_possible_orbit_occupations(index):
            tag = "_".join([str(index), *species_of_pair(s.space, index, species)])
            if len(species) == 1:
                expected[tag] = (symbols[:, basis == first] == species[0]).sum(1)
                continue
            i, j, d = neighbor_list("ijd", s.structure, cluster.distances[0] + 0.01)
            keep = np.abs(d - cluster.distances[0]) < 0.01
            keep &= (basis[i] == first) & (basis[j] == last)
            i, j = i[keep], j[keep]
            n = ((symbols[:, i] == species[0]) & (symbols[:, j] == species[1])).sum(1)
            twice = first == last and species[0] == species[1]  # seen from both ends
            expected[tag] = n // 2 if twice else n
    return Unordered(s.space, s.structure), expected


def site_occupancy(s):
    """Shares of the species on chosen sites."""
    names = {"first": [0], "some": [0, len(s.primitive), 2 * len(s.primitive)]}
    symbols = np.array([f.get_chemical_symbols() for f in s.frames])
    expected = {
        f"sof_{name}_{e}": (symbols[:, sites] == e).mean(1)
        for name, sites in names.items()
        for e in s.space.chemical_symbols[0]
    }
    return SiteOccupancyObserver(s.space, s.structure, names), expected


def short_range_order(s):
    """Warren-Cowley parameters; undefined where a species is absent."""
    radius = 1.02 * neighbor_list("d", s.structure, 4.0).min()
    observer = ShortRangeOrderObserver(s.space, s.structure, radius=radius)
    i, j = neighbor_list("ij", s.structure, radius)
    symbols = np.array([f.get_chemical_symbols() for f in s.frames])
    expected = {}
    sublattices = [set(e) for e in s.space.chemical_symbols]
    for a, b in itertools.combinations(sorted(s.lattice.species), 2):
        if len(sublattices) == 2 and any({a, b} <= e for e in sublattices):
            continue  # nearest neighbours are on the other sublattice
        n = ((symbols[:, i] == a) & (symbols[:, j] == b)).sum(1)
        share = len(s.structure) / len(sublattices)
        random = len(i) * (symbols == a).sum(1) * (symbols == b).sum(1) / share**2
        random = random / len(sublattices)  # of the ordered pairs, those that start on a's side
        with np.errstate(invalid="ignore", divide="ignore"):
            expected[f"sro_{a}_{b}_1"] = np.where(random > 0, 1 - n / random, np.nan)
    return observer, expected


def structure_factor(s):
    """The double sum over atoms, pair by pair and in total."""
    k = 2 * np.pi * np.array(s.structure.cell.reciprocal())
    q = [k[0], k[0] + k[1], k[2]]
    form = dict(zip(s.lattice.species, (1.0, 2.0, 0.5, 1.5), strict=False))
    pairs = list(itertools.combinations_with_replacement(s.lattice.species, 2))
    observer = StructureFactorObserver(s.structure, q, symbol_pairs=pairs, form_factors=dict(form))
    symbols = np.array([f.get_chemical_symbols() for f in s.frames])
    f = np.vectorize(form.get)(symbols)
    expected = {f"total_q{n}": 0.0 for n in range(len(q))}
    difference = s.structure.positions[:, None] - s.structure.positions[None]
    for n, vector in enumerate(q):
        cosines = np.cos(difference @ vector)
        for a, b in pairs:
            fa, fb = f * (symbols == a), f * (symbols == b)
            part = np.einsum("si,ij,sj->s", fa, cosines, fb) * (1 if a == b else 2)
            expected[f"sfo_{a}_{b}_q{n}"] = part / (f**2).sum(1)
            expected[f"total_q{n}"] = expected[f"total_q{n}"] + expected[f"sfo_{a}_{b}_q{n}"]
    return observer, expected


def constituent_strain(s):
    """Strain over the k points of the supercell, each at its shortest image."""

    def strain(parameter, c):
        return parameter * c * (1 - c)

    def parameter(k):
        return 1.0 + 30 * np.dot(k, k)

    tool = ConstituentStrain(
        s.structure, s.primitive, ["Ag", "Au"], "Au", strain, parameter, damping=0.5
    )
    gold = np.array([f.numbers == 79 for f in s.frames])
    c = gold.mean(1)
    reciprocal = np.array(s.primitive.cell.reciprocal())
    total = np.zeros(len(c))
    for m in itertools.product(range(2), repeat=3):
        if not any(m):
            continue
        k = np.array(m) @ np.array(s.structure.cell.reciprocal())
        images = k + np.array(list(itertools.product((-1, 0, 1), repeat=3))) @ reciprocal
        k = images[np.argmin(np.linalg.norm(images, axis=1))]
        phases = np.exp(2j * np.pi * s.structure.positions @ k)
        amplitude = (np.where(gold, -1, 1) @ phases) / len(s.structure)
        with np.errstate(invalid="ignore", divide="ignore"):
            term = strain(parameter(k), c) * np.abs(amplitude) ** 2 / (4 * c * (1 - c))
        total += np.where((c > 0) & (c < 1), term, 0) * np.exp(-((0.5 * np.linalg.norm(k)) ** 2))
    return ConstituentStrainObserver(tool), {"constituent_strain_energy": total * len(s.structure)}


def base_class(s):
    """An observer of the user's own."""

    class Gold(BaseObserver):
        def __init__(self):
            super().__init__(return_type=float, tag="gold")

        def get_observable(self, structure):
            return float((structure.numbers == 79).mean())

    return Gold(), {"gold": np.array([(f.numbers == 79).mean() for f in s.frames])}


CHECKS = {
    BaseObserver: base_class,
    ClusterCountObserver: cluster_counts,
    ClusterExpansionObserver: cluster_expansion,
    ConstituentStrainObserver: constituent_strain,
    ShortRangeOrderObserver: short_range_order,
    SiteOccupancyObserver: site_occupancy,
    StructureFactorObserver: structure_factor,
}


def serves(cls, s):
    """Whether an observer is made for a system: mchammer's strain is for one sublattice."""
    return cls is not ConstituentStrainObserver or len(s.primitive) == 1


@pytest.mark.parametrize("cls", CHECKS, ids=lambda cls: cls.__name__)
def test_values_are_those_of_direct_evaluation(cls, system):
    """On every state the observer gives what its definition says."""
    if not serves(cls, system):
        pytest.skip("mchammer's constituent strain is for one sublattice")
    observer, expected = CHECKS[cls](system)
    for k, frame in enumerate(system.frames):
        got = observer.get_observable(frame)
        got = got if isinstance(got, dict) else {observer.tag: got}
        assert set(got) == set(expected)
        for tag, value in got.items():
            assert value == pytest.approx(expected[tag][k], abs=1e-9, nan_ok=True), (tag, k)


@pytest.mark.parametrize("make", ENSEMBLES.values(), ids=ENSEMBLES)
def test_averages_agree_with_enumeration(make, system):
    """Averages over the container are exact; undefined values are left out, as icet does."""
    checks = [check(system) for cls, check in CHECKS.items() if serves(cls, system)]
    expected = {tag: v for _, values in checks for tag, v in values.items()}
    runs = []
    for seed in range(12):
        mc = system.ensemble(make, seed)
        for observer, _ in checks:
            mc.attach_observer(observer)
        mc.run(1600)
        dc = mc.data_container
        runs.append([np.mean(dc.get(tag, start=80)) for tag in expected])
    for tag, values in zip(expected, np.array(runs).T, strict=True):
        v = expected[tag]
        defined = ~np.isnan(v)
        reference = system.p[defined] @ v[defined] / system.p[defined].sum()
        error = values.std(ddof=1) / np.sqrt(len(values))
        assert abs(values.mean() - reference) < 6 * error + 1e-9, tag  # 11 degrees of freedom


def test_every_observer_of_the_host_is_checked():
    """A class of the host's observer modules without a check here is a gap."""
    found = set()
    for info in pkgutil.iter_modules(module.__path__):
        part = importlib.import_module(f"{module.__name__}.{info.name}")
        classes = inspect.getmembers(part, inspect.isclass)
        found |= {name for name, cls in classes if cls.__module__ == part.__name__}
    assert found == {cls.__name__ for cls in CHECKS}
