"""Comparison of two results: z-scores, what is missing, and verdicts."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import binary, ternary

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.statistics import Estimate
from clease_nn.thermodynamics import (
    Averages,
    DensityOfStates,
    averages,
    canonical,
    compare,
)
from clease_nn.warnings import LowESSWarning

AT = Conditions.grid([900.0, 1500.0], [[0.0, 0.0], [0.05, 0.0], [0.0, 0.05]])


@pytest.fixture(scope="module")
def exact():
    """Lattice, ensemble, exact density of states of 8 sites."""
    lattice, ensemble, _ = binary()
    return lattice, ensemble, DensityOfStates.exact(ensemble.enumerate(lattice))


def weighted(exact, seed, n=2000, at=AT):
    """Draws from a known imperfect distribution, with their log_prob."""
    lattice, ensemble, dos = exact
    rng = np.random.default_rng(seed)
    rows, log_prob = [], []
    for k in range(len(at)):
        log_q = 0.7 * dos.log_weights(at[k])
        log_q -= np.logaddexp.reduce(log_q)
        pick = rng.choice(len(dos), n, p=np.exp(log_q))
        rows.append(pick)
        log_prob.append(log_q[pick])
    x = dos.occupations[torch.as_tensor(np.concatenate(rows))]
    log_prob = torch.as_tensor(np.concatenate(log_prob))
    return ensemble.score(Configurations(lattice, at.repeat(n), x, log_prob=log_prob))


def noisy(n, shift=0.0, scale=1.0, seed=0):
    """n numbers about a known curve with error 1, and the curve itself."""
    truth = np.linspace(0.0, 50.0, n)
    rng = np.random.default_rng(seed)
    return Estimate(truth + shift + scale * rng.normal(size=n), np.ones(n)), Estimate(
        truth, np.zeros(n)
    )


# ------------------------------------------------------------------ z-scores
def test_a_result_equals_itself(exact):
    """All z-scores of a result with itself are zero, of every kind of result."""
    c = weighted(exact, 0)
    dos = exact[2]
    a = averages(c)
    for result, conditions in [(a, None), (c, None), (dos, AT), (canonical(dos, [700.0]), None)]:
        found = compare(result, result, conditions)
        for d in found.quantities.values():
            assert (d.z == 0).all() and (d.difference.value == 0).all()
            assert not d.verdict.startswith("differ")
    assert set(compare(a, a).quantities) == {
        "log_z", "grand_potential", "entropy", "energy", "sgc_energy", "heat_capacity",
        "composition", "count_covariance",
    }  # fmt: skip


def test_gaussian_noise_has_rms_z_of_one():
    """Noise of the size of the errors: rms z 1 within its own error, and agreement."""
    found = compare(*noisy(2000))["value"]
    assert found.rms_z == pytest.approx(1.0, abs=4 / np.sqrt(2 * 2000))
    assert abs(found.mean_z) < 4 / np.sqrt(2000)
    assert found.verdict == "agree" and found.p_value > 1e-3
    a, b = noisy(2000, seed=1)
    both = Estimate(b.value + np.random.default_rng(2).normal(size=2000), np.ones(2000))
    assert compare(a, both)["value"].rms_z == pytest.approx(1.0, abs=0.07)  # errors add in squares


def test_errors_of_the_errors_are_found():
    """rms z tells too small and too large errors from right ones."""
    assert compare(*noisy(50, scale=1.8))["value"].verdict == (
        "differ by more than their errors, unless conditions are correlated"
    )
    small = compare(*noisy(50, scale=0.3))["value"]
    assert small.verdict == "agree, errors too large or data shared"
    assert small.rms_z == pytest.approx(0.3, rel=0.3)


def test_a_shift_is_found():
    """A shift of five errors everywhere: no correlation can excuse it; of half an error: agree."""
    found = compare(*noisy(20, shift=5.0))
    d = found["value"]
    assert d.verdict == "differ by more than their errors" and not found.agree
    assert d.mean_z == pytest.approx(5.0, abs=4 / np.sqrt(20))
    assert d.max_z == np.abs(d.z).max()
    assert d.worst == d.labels[int(np.argmax(np.abs(d.z)))]
    assert compare(*noisy(20, shift=0.1)).agree


def test_right_samples_agree_with_enumeration(exact):
    """Weighted draws, and averages read off them, agree with exact results; z is Gaussian."""
    c = [weighted(exact, seed) for seed in range(6)]
    found = [compare(x, exact[2]) for x in c]
    for name in ("log_z", "energy", "composition", "heat_capacity"):
        z = np.concatenate([f.z[name].ravel() for f in found])
        n = len(z)  # 36
        assert abs(np.sqrt(np.mean(z**2)) - 1) < 4 / np.sqrt(2 * n)
    assert compare(averages(c[0]), averages(c[1])).agree
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrong = replace(c[0], log_prob=c[0].log_prob - 0.1)
        assert compare(wrong, exact[2])["log_z"].verdict.startswith("differ")


# ------------------------------------------------------------------ exact, undetermined, matching
def test_exact_values_are_compared_absolutely():
    """Without errors there is no z-score but 0 for equal; unequal ones are counted."""
    zero = np.zeros(3)
    a, b = Estimate(np.array([1.0, 2.0, 3.0]), zero), Estimate(np.array([1.0, 2.0, 3.5]), zero)
    same, other = compare(a, a)["value"], compare(a, b)["value"]
    assert same.verdict == "equal" and same.exact == 3 and same.n == 0
    assert other.verdict == "differ: 1 values without errors are not equal"
    assert other.unequal == 1 and other.worst == "[2]"
    assert other.rms_difference == pytest.approx(0.5 / np.sqrt(3))
    rounded = compare(a, a + 1e-13)["value"]
    assert (rounded.z == 0).all()


def test_undetermined_values_are_counted(exact):
    """nan on either side enters no figure; nothing left is "not determined"."""
    a, b = noisy(10)
    a.value[3] = b.value[7] = np.nan
    a.error[3] = np.nan
    d = compare(a, b)["value"]
    assert d.undetermined == 2 and d.n == 8
    assert np.isfinite([d.rms_z, d.mean_z, d.max_z, d.rms_difference]).all()
    nothing = Estimate(np.full(3, np.nan), np.full(3, np.nan))
    assert compare(nothing, nothing)["value"].verdict == "not determined"
    assert "2 not determined" in str(compare(a, b))
    # a density of states says itself where it knows nothing
    dos = exact[2].restricted(np.arange(len(exact[2])) < 60)
    few = replace(dos, replicas=np.ones((60, 3), dtype=np.float32))
    cold = Conditions([30.0, 1e6], np.zeros((2, 2)))
    with pytest.warns(LowESSWarning):
        found = compare(few, exact[2], cold)["energy"]
    assert np.isnan(found.z[0]) and found.undetermined == 1


def test_conditions_are_matched_in_any_order(exact):
    """The rows of the second are found by their conditions; more of them do no harm."""
    a = averages(weighted(exact, 0))
    some = Averages([a[k] for k in (4, 0, 2)])
    found = compare(some, a)
    assert (found["energy"].difference.value == 0).all()
    assert found["energy"].coordinates["temperature"].tolist() == [1500.0, 900.0, 900.0]
    lattice = exact[0]
    assert set(found["energy"].coordinates) == {
        "temperature",
        *(f"mu_{s}" for s in lattice.species),
    }
    with pytest.raises(ValueError, match="lacks 3 of 6 rows of the first: T = 900 K, mu"):
        compare(a, some)


def test_compositions_and_temperatures_are_matched(exact):
    """Canonical averages are matched by temperature and counts, missing ones are named."""
    dos = exact[2]
    a, b = canonical(dos, [700.0]), canonical(dos, [900.0, 700.0])
    d = compare(a, b)["free_energy"]
    assert (d.z == 0).all() and len(d.labels) == 9
    assert d.labels[0].startswith("T = 700 K")
    assert compare(dos, a)["entropy"].exact == 9
    with pytest.raises(ValueError, match="lacks 9 of 18 rows"):
        compare(b, a)


# ------------------------------------------------------------------ printing, refusals
def test_the_table_has_a_row_a_quantity(exact):
    """The printed table and ``to_rows`` show the same quantities; rows are JSON."""
    found = compare(weighted(exact, 1), exact[2])
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(found.quantities)
    rows = found.to_rows()
    assert [r["quantity"] for r in rows] == list(found.quantities)
    assert json.loads(json.dumps(rows)) == rows
    with pytest.raises(KeyError, match="'pressure' is none of"):
        found["pressure"]


def test_what_cannot_be_compared_is_refused(exact):
    """Results of different kinds, systems or shapes are named."""
    dos = exact[2]
    other, its_ensemble, _ = ternary()
    three = DensityOfStates.exact(its_ensemble.enumerate(other))
    with pytest.raises(TypeError, match="cannot compare DensityOfStates with int"):
        compare(dos, 3)
    with pytest.raises(TypeError, match="not of one kind"):
        compare(canonical(dos, [700.0]), averages(weighted(exact, 0)))
    with pytest.raises(ValueError, match="different systems"):
        compare(canonical(dos, [700.0]), canonical(three, [700.0]))
    with pytest.raises(ValueError, match="different systems"):
        compare(averages(weighted(exact, 0)), three)
    with pytest.raises(ValueError, match="give conditions"):
        compare(dos, dos)
    with pytest.raises(ValueError, match="shapes"):
        compare(Estimate(np.zeros(2), np.zeros(2)), Estimate(np.zeros(3), np.zeros(3)))
    with pytest.raises(ValueError, match="no averages"):
        compare(Averages(), dos)
