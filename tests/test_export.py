"""Exports: what goes out says what it is, comes back equal, and is never half a file."""

import contextlib
import json
import resource
import sqlite3
from dataclasses import replace

import ase.db
import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.emt import EMT
from ase.spacegroup import crystal
from toys import SYSTEMS, binary

from clease_nn import thermodynamics
from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.energies import CalculatorEnergy
from clease_nn.export import (
    is_weighted,
    read_hdf5,
    to_atoms,
    to_dataframe,
    unweighted,
    write,
)
from clease_nn.lattice import Lattice
from clease_nn.warnings import LowESSWarning

COLUMNS = ("occupations", "step", "log_prob", "energy", "log_target", "chain")


def draws(system="binary", n=200, unit=((0.5, 0.5),), seed=0):
    """Weighted uniform draws, ``n`` at each condition."""
    lattice, ensemble, box = SYSTEMS[system]()
    rng = np.random.default_rng(seed)
    at = box.at(np.array(unit)[:, : 1 + box.n_axes].repeat(n, 0))
    x = np.stack([rng.choice(np.flatnonzero(row), len(at)) for row in lattice.allowed], 1)
    c = Configurations(
        lattice,
        at,
        torch.as_tensor(x),
        step=torch.arange(lattice.n_sites, dtype=torch.int16).repeat(len(at), 1),
        log_prob=torch.full((len(at),), -lattice.log_states, dtype=torch.float64),
        provenance={"seed": seed, "seconds": 0.1, "versions": {"torch": "2"}},
    )
    return ensemble.score(c)


def same(a, b):
    """Whether two batches agree bit for bit in every column."""
    for name in COLUMNS:
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None), name
        assert x is None or (x.dtype == y.dtype and torch.equal(x, y)), name
    assert torch.equal(a.conditions.temperature, b.conditions.temperature)
    assert torch.equal(a.conditions.mu, b.conditions.mu)
    return dict(a.provenance) == b.provenance


@pytest.mark.parametrize("system", SYSTEMS)
def test_hdf5_gives_back_the_same(system, tmp_path):
    """Every column, conditions, provenance and the lattice come back bit for bit."""
    unit = ((0.1, 0.9, 0.3), (0.7, 0.2, 0.6))
    c = draws(system, 20, [u for u in unit])
    c.lattice.template.info["note"] = "x"
    write(tmp_path / "c.h5", c)
    back = read_hdf5(tmp_path / "c.h5")
    assert same(c, back)
    assert back.lattice.fingerprint == c.lattice.fingerprint
    assert back.lattice.species == c.lattice.species
    assert back.lattice.template == c.lattice.template
    assert back.lattice.template.info == {"note": "x"}
    assert torch.equal(c.log_weight, back.log_weight)


def test_hdf5_holds_partial_and_unscored_configurations(tmp_path):
    """Unknown sites and empty columns survive."""
    lattice, _, box = binary()
    c = Configurations.unknown(lattice, box.grid(2, 2))
    c.occupations[:, 0] = 1
    write(tmp_path / "c.hdf5", c)
    assert same(c, read_hdf5(tmp_path / "c.hdf5"))


def test_hdf5_keeps_background_atoms_and_labels(tmp_path):
    """Background atoms, tags, magnetic moments and constraints of the supercell stay."""
    from ase.build import bulk
    from ase.constraints import FixAtoms

    atoms = bulk("NaCl", "rocksalt", a=4.2) * (2, 1, 1)
    atoms.set_tags(range(4))
    atoms.set_initial_magnetic_moments([1.0, 0, 0, 0])
    atoms.set_constraint(FixAtoms([1]))
    lattice = Lattice(atoms, [0, 2], ["Na", "X"], np.ones((2, 2)))
    c = Configurations(lattice, Conditions([300.0], [[0, 0.1]]), [[1, 0]])
    write(tmp_path / "c.h5", c)
    template = read_hdf5(tmp_path / "c.h5").lattice.template
    assert template == lattice.template
    assert template.get_tags().tolist() == [0, 1, 2, 3]
    assert template.constraints[0].index.tolist() == [1]
    assert str(to_atoms(c)[0].symbols) == "XClNaCl"


@pytest.mark.parametrize("name", ["c.traj", "c.extxyz", "c.xyz"])
def test_trajectories_of_chains(name, tmp_path):
    """Frames carry sites, energies and conditions; unweighted rows need no resampling."""
    c = draws()
    lattice = c.lattice
    c = replace(c, log_prob=None, chain=torch.zeros(len(c), dtype=torch.int64))
    write(tmp_path / name, c)
    frames = ase.io.read(tmp_path / name, ":")
    assert len(frames) == len(c)
    for k in (0, 7):
        assert (lattice.occupations(frames[k]) == c.occupations[k].numpy()).all()
        assert frames[k].get_potential_energy() == pytest.approx(c.energy[k].item(), abs=1e-7)
        assert frames[k].info["mu_Au"] == pytest.approx(c.conditions.mu[k, 0].item(), abs=1e-7)
        assert frames[k].info["temperature"] == pytest.approx(c.conditions.temperature[k].item())


@pytest.mark.parametrize("name", ["c.traj", "c.extxyz"])
def test_weights_are_refused_where_frames_count_the_same(name, tmp_path):
    """Weighted draws enter a trajectory only resampled, which every frame says."""
    c = draws()
    with pytest.raises(ValueError, match="resample=<seed>"):
        write(tmp_path / name, c)
    assert not list(tmp_path.iterdir())
    write(tmp_path / name, c, resample=3)
    frames = ase.io.read(tmp_path / name, ":")
    assert len(frames) == 160
    assert all("unweighted" in f.info["method"] and "log_weight" not in f.info for f in frames)


def test_resampling_an_unweighted_batch_is_refused(tmp_path):
    """A chain has no weights to resample by, unscored draws not yet."""
    c = draws()
    with pytest.raises(ValueError, match="carry no weights"):
        write(tmp_path / "c.h5", replace(c, log_prob=None), resample=1)
    with pytest.raises(ValueError, match="score them first"):
        unweighted(replace(c, log_target=None, energy=None), 1)


def test_completions_of_different_parts_are_not_resampled_together():
    """Weights around other given sites, or other species there, have another normalisation."""
    c = draws(n=100)
    given = c.step.clone()
    given[:, 0] = -1
    other = given.clone()
    other[50:, 0], other[50:, 1] = 0, -1
    x = c.occupations.clone()
    x[:, 0] = 0
    assert len(unweighted(replace(c, occupations=x, step=given), 1))
    for occupations, step in ((x, other), (c.occupations, given)):
        with pytest.raises(ValueError, match="different given sites"):
            unweighted(replace(c, occupations=occupations, step=step), 1)


def test_unweighted_means_are_exact():
    """Plain means of resampled draws agree with enumeration within their errors, per condition."""
    lattice, ensemble, box = binary()
    unit = [(1.0, 0.4), (1.0, 0.7)]
    states = ensemble.enumerate(lattice)
    exact = states.mean(box.at(unit), (states.occupations == 0).double().mean(1)).numpy()
    z = []
    for seed in range(20):
        c = unweighted(draws(n=2000, unit=unit, seed=seed), seed)
        assert not is_weighted(c) and sorted(set(c.chain.tolist())) == [0, 1]
        means = thermodynamics.averages(c)
        z.append([a.composition[0].z(e) for a, e in zip(means, exact, strict=True)])
    z = np.array(z)
    assert (np.abs(z.mean(0)) < 4 / np.sqrt(20)).all()
    assert (0.6 < z.std(0)).all() and (z.std(0) < 1.5).all()


def test_unweighted_is_reproducible_and_says_what_it_is():
    """One seed, one chain; the provenance has method, acceptance and surplus of every chain."""
    c = draws(unit=[(0.2, 0.3), (0.8, 0.9)])
    a, b = unweighted(c, 5), unweighted(c, 5)
    assert same(a, b)
    assert "unweighted" in a.provenance["method"] and a.provenance["seed"] == 0
    assert a.provenance["surplus"] == [40, 40]
    assert all(0 < p < 1 for p in a.provenance["acceptance"])
    json.dumps(a.provenance)


def test_poor_draws_warn_when_resampled():
    """Draws worth a handful of samples do not pass silently."""
    c = draws(n=40, unit=[(0.0, 0.5)])
    log_prob = c.log_prob.clone()
    log_prob[0] -= 8
    with pytest.warns(LowESSWarning, match="worth"):
        unweighted(replace(c, log_prob=log_prob), 0)


def test_database_rows(tmp_path):
    """Rows have the columns as key-value pairs, exactly, and can be selected by them."""
    c = draws(n=10, unit=[(0.2, 0.3), (0.8, 0.9)])
    write(tmp_path / "c.db", c)
    db = ase.db.connect(tmp_path / "c.db")
    rows = list(db.select())
    assert len(rows) == 20
    for k, row in enumerate(rows):
        assert row.energy == c.energy[k].item()
        assert row.temperature == c.conditions.temperature[k].item()
        assert row.mu_Cu == c.conditions.mu[k, 1].item()
        assert row.log_weight == c.log_weight[k].item()
        assert (c.lattice.occupations(row.toatoms()) == c.occupations[k].numpy()).all()
    assert db.count("temperature>1000") == 10
    assert db.metadata["clease_nn"]["provenance"] == dict(c.provenance)


def test_databases_of_others_are_not_overwritten(tmp_path):
    """Our own database is replaced, that of a user's structures stays."""
    path = tmp_path / "c.db"
    c = draws(n=3)
    write(path, c)
    write(path, c[:2])
    assert ase.db.connect(path).count() == 2
    theirs = tmp_path / "dft.db"
    ase.db.connect(theirs).write(to_atoms(c)[0])
    other = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE x (y)")
    text = tmp_path / "text.db"
    text.write_text("hello")
    paid = tmp_path / "energies.db"
    CalculatorEnergy(EMT(), cache=paid)
    for file in (theirs, other, text, paid):
        before = file.read_bytes()
        with pytest.raises(FileExistsError, match="not overwritten"):
            write(file, c)
        assert file.read_bytes() == before


def test_any_info_of_the_template(tmp_path):
    """What a database cannot hold in its columns does not keep a template from being exported."""
    atoms = crystal("Cu", [(0, 0, 0)], spacegroup=225, cellpar=[3.8] * 3 + [90] * 3)
    atoms.info["a note"] = {"x": [1]}
    lattice = Lattice.uniform(atoms, ["Au", "Cu"])
    c = Configurations(lattice, Conditions([300.0], [[0, 0.1]]), [[0, 1, 1, 1]])
    for name in ("c.db", "c.h5", "c.traj", "c.extxyz"):
        write(tmp_path / name, c)
    [row] = ase.db.connect(tmp_path / "c.db").select()
    assert set(row.key_value_pairs) == {"temperature", "mu_Au", "mu_Cu"}
    assert read_hdf5(tmp_path / "c.h5").lattice.template == lattice.template


@pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning")
def test_dataframe():
    """One row a configuration, with counts, compositions and the numbers of every column."""
    c = draws("two_sublattices", 30)
    frame = to_dataframe(c, occupations=True)
    assert len(frame) == 30 and frame.attrs["provenance"] == dict(c.provenance)
    counts = frame[[f"n_{s}" for s in c.lattice.species]].to_numpy()
    assert (counts == c.counts().numpy()).all()
    assert np.allclose(frame[[f"x_{s}" for s in c.lattice.species]].sum(axis=1), 1)
    for name in ("energy", "log_prob", "log_target", "log_weight"):
        assert (frame[name] == getattr(c, name).numpy()).all()
    assert "chain" not in frame
    site = c.lattice.site_indices[3]
    assert list(frame[f"site_{site}"]) == [c.lattice.species[a] for a in c.occupations[:, 3]]
    w = np.exp(frame.log_weight - frame.log_weight.max())
    [a] = thermodynamics.averages(c)
    assert np.average(frame.x_Au, weights=w) == pytest.approx(
        a.composition.value[c.lattice.species.index("Au")]
    )


def test_unknown_sites_are_refused_by_formats_without_a_place_for_them(tmp_path):
    """The message counts and names the rows."""
    c = draws(n=20)
    c = replace(c, log_prob=None, energy=None, log_target=None)
    c.occupations[4:6, 2] = -1
    for call in (
        lambda: to_atoms(c),
        lambda: to_dataframe(c),
        lambda: write(tmp_path / "c.db", c),
        lambda: write(tmp_path / "c.traj", c),
    ):
        with pytest.raises(ValueError, match=r"2 of 20 .* \(row 4 first\)"):
            call()
    assert not list(tmp_path.iterdir())


def test_bad_names_and_empty_batches(tmp_path):
    """An unknown suffix lists the known ones; nothing to write is an error."""
    c = draws(n=3)
    with pytest.raises(ValueError, match=r"\.h5"):
        write(tmp_path / "c.dat", c)
    with pytest.raises(ValueError, match="no configurations"):
        write(tmp_path / "c.h5", c[:0])
    with pytest.raises(TypeError, match="JSON"):
        write(tmp_path / "c.h5", replace(c, provenance={"x": np.zeros(2)}))


@pytest.mark.parametrize("name", ["c.h5", "c.db", "c.traj", "c.xyz"])
def test_failed_writing_leaves_the_old_file(name, tmp_path):
    """A full disk or a missing folder is an OSError that names the path; the old file stays."""
    c = draws(n=400)
    c = replace(c, log_prob=None, step=None)
    name = name.replace("c", "c[1]")
    path = tmp_path / name
    write(path, c[:5])
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(OSError, match="cannot write .*c.1"):
            write(path, c)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [name]
    with pytest.raises(OSError, match="cannot write"):
        write(tmp_path / "missing" / name, c)


def test_foreign_and_broken_hdf5(tmp_path):
    """Missing, foreign, newer and truncated files are told apart."""
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "c.h5"
    with pytest.raises(FileNotFoundError, match="no file"):
        read_hdf5(path)
    c = draws(n=3)
    write(path, c)
    whole = path.read_bytes()
    with h5py.File(path, "a") as f:
        f.attrs["format"] = 99
    with pytest.raises(ValueError, match="update clease_nn"):
        read_hdf5(path)
    for part in (whole[: len(whole) // 2], b"hello"):
        path.write_bytes(part)
        with pytest.raises(ValueError, match="truncated"):
            read_hdf5(path)
    with h5py.File(path, "w") as f:
        f["x"] = 1
    with pytest.raises(ValueError, match="holds no configurations"):
        read_hdf5(path)


def test_a_missing_package_names_the_extra(monkeypatch, tmp_path):
    """Without h5py or pandas the message says what to install."""
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    c = draws(n=3)
    for call in (lambda: write(tmp_path / "c.h5", c), lambda: to_dataframe(c)):
        with pytest.raises(ImportError, match=r"clease_nn\[formats\]"):
            call()


def test_database_errors_become_os_errors(monkeypatch, tmp_path):
    """What SQLite calls a full database is told like any other failed writing."""
    from clease_nn.files import replacing

    with pytest.raises(OSError, match="disk is full"), replacing(tmp_path / "x.db") as path:
        path.write_text("half")
        raise sqlite3.OperationalError("database or disk is full")
    assert not list(tmp_path.iterdir())
