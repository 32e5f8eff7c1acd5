"""Densities of states with known errors: draws of an enumeration with a known likelihood."""

import numpy as np
import torch
from ase.units import kB

from clease_nn.configurations import species_counts
from clease_nn.thermodynamics import DensityOfStates


def mixture(states, conditions):
    """Equal mixture of the exact ensembles at some conditions: probability of every state."""
    q = torch.stack([states.probabilities(conditions[k]) for k in range(len(conditions))]).mean(0)
    return (q / q.sum()).numpy()


def even(states, temperatures):
    """Every composition equally often, canonical within it, over an equal mixture of T [K]."""
    counts = species_counts(states.occupations, states.lattice.n_species).numpy()
    _, group = np.unique(counts, axis=0, return_inverse=True)
    q = np.zeros(len(counts))
    for t in temperatures:
        w = np.exp(-(states.energy.numpy() - states.energy.numpy().min()) / (kB * t))
        q += w / np.bincount(group.ravel(), w)[group.ravel()]
    return q / q.sum()


def drawn(states, q, n, rng, n_replicas=100):
    """``n`` draws of states with probabilities ``q``, known to the estimator.

    The weight of a draw is ``1 / (n q)``, and replicas are its bootstrap counts.
    """
    rows = rng.choice(len(q), size=n, p=q)
    return DensityOfStates(
        states.lattice,
        states.energy.numpy()[rows],
        species_counts(states.occupations[rows], states.lattice.n_species).numpy(),
        -np.log(n * q[rows]),
        occupations=states.occupations[rows],
        replicas=rng.multinomial(n, np.full(n, 1 / n), n_replicas).T.astype(np.float32),
    )


def assert_standard(z):
    """z-scores of independent data sets: no bias, right spread, no wild outlier.

    Scores of one data set are correlated, so that their mean is one number a data set.
    """
    assert len(z) >= 20, len(z)
    means = np.array([np.mean(v) for v in z])
    z = np.concatenate([np.ravel(v) for v in z])
    assert len(z) >= 180 and np.isfinite(z).all(), len(z)
    # errors that grow with the value, as of variances, shift the mean a little
    bound = max(0.25, 4.5 * means.std(ddof=1) / np.sqrt(len(means)))
    assert abs(means.mean()) < bound, means.mean()
    assert 0.8 < z.std() < 1.2, z.std()
    assert np.abs(z).max() < 5.5, np.abs(z).max()
