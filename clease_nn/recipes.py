"""Ways of training by name: the default one, and the published ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from clease_nn.conditions import ConditionRange
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.models import AnyOrderARM, FixedOrderARM, MarginalizationModel
from clease_nn.networks import MLP, LatticeConvolution, MaskedMLP
from clease_nn.objectives import MarginalConsistency, Reinforce, cross_entropy
from clease_nn.schedules import Annealing, RandomWalk, UniformRandom
from clease_nn.sources import GeneratedSource, GibbsSource, ReplaySource
from clease_nn.training import Stage, process_seed

__all__ = ["recipe", "recipes"]


def recipe(
    name: str,
    ensemble: SemiGrandCanonical,
    lattice: Lattice,
    box: ConditionRange,
    *,
    seed: int = 0,
) -> dict:
    """Arguments that make :func:`clease_nn.training.fit` do what a name stands for.

    ``"default"``
        Nothing: any-order model, lattice convolution, cross entropy on parallel tempering.
    ``"segal"``
        Fixed (raster) order, masked perceptron, REINFORCE with advantages divided by the grand
        potential over kT (Damewood et al., npj Comput. Mater. 8, 61 (2022)).
    ``"any_order"``
        Any order, perceptron, REINFORCE with standardised advantages (Du, Liu,
        Gomez-Bombarelli, AI4Mat, NeurIPS 2024).
    ``"marginalization"``
        Marginal and conditional perceptrons, self-consistency and REINFORCE on persistent
        chains whose conditions drift (same source).
    ``"self_generated"``
        The default model, trained by importance-weighted cross entropy on draws of its own, with
        replay: no Monte Carlo, for energies without single-site differences.

    What learns by REINFORCE on its own draws starts at the highest temperature and cools within
    1000 steps. The published recipes see no energy but through the draws that are scored; the
    perceptrons belong to the cell they are trained in.

    Parameters
    ----------
    name : str
        One of :func:`recipes`.
    ensemble, lattice, box
        As for ``fit``.
    seed : int
        The same in all processes that train together; their sources differ all the same.

    Returns
    -------
    dict
        ``model``, ``stages``, ``batch_size`` and ``learning_rate``, or some of them.

    Raises
    ------
    ValueError
        If the name is unknown.

    Examples
    --------
    >>> from clease_nn.energies.ising import ising_energy
    >>> lattice = Lattice.square(3)
    >>> box = ConditionRange((20000, 60000), [-0.5], [0.5], [[-1.0, 1.0]])
    >>> ensemble = SemiGrandCanonical(ising_energy(lattice))
    >>> chosen = recipe("segal", ensemble, lattice, box, seed=1)
    >>> type(chosen["model"]).__name__, chosen["stages"][0].objective
    ('FixedOrderARM', Reinforce(advantage='grand_potential'))
    """
    if name not in _RECIPES:
        raise ValueError(f"recipe must be one of {recipes()}, got {name!r}")
    weights, own = np.random.SeedSequence([seed, len(name)]).spawn(2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(weights.generate_state(1)[0]))
        return _RECIPES[name](ensemble, lattice, box, process_seed(own))


def recipes() -> tuple[str, ...]:
    """Names that :func:`recipe` knows."""
    return tuple(_RECIPES)


# sizes and rates that short runs on Ising 5 x 5 and Cu-Au, 16 sites, found best on a CPU: narrower
# networks and more steps than in the literature
_SIZE = {"width": 256, "layers": 3}
_BATCH = 256
_COOLING = 1000  # steps in which conditions fall from the highest to the lowest temperature
_DRIFT = 0.1  # step of drifting conditions in widths of the box; in the literature N(0, 0.2^2)
# in kT over a box of 1.5 to 3.5 and N(0, 0.05^2) in mu over one of -0.4 to 0.4


def _default(ensemble, lattice, box, seed) -> dict:
    return {}


def _cooling(box: ConditionRange, seed: np.random.SeedSequence) -> Annealing:
    low, high = box.temperature
    return Annealing(UniformRandom(box, seed), high, (low / high) ** (1 / _COOLING))


def _segal(ensemble, lattice, box, seed) -> dict:
    schedule, own = seed.spawn(2)
    source = GeneratedSource(ensemble, lattice, box, schedule=_cooling(box, schedule), seed=own)
    return {
        "model": FixedOrderARM(MaskedMLP(lattice, box, **_SIZE)),
        "stages": [Stage(source, Reinforce("grand_potential"))],
        "batch_size": _BATCH,
        "learning_rate": 3e-3,
    }


def _any_order(ensemble, lattice, box, seed) -> dict:
    schedule, own = seed.spawn(2)
    source = GeneratedSource(
        ensemble,
        lattice,
        box,
        schedule=_cooling(box, schedule),
        passes=min(12, lattice.n_sites),
        seed=own,
    )
    return {
        "model": AnyOrderARM(MLP(lattice, box, **{**_SIZE, "width": 128}, needs_fields=False)),
        "stages": [Stage(source, Reinforce())],
        "batch_size": _BATCH,
        "learning_rate": 3e-3,
    }


def _marginalization(ensemble, lattice, box, seed) -> dict:
    schedule, own = seed.spawn(2)
    low, high = box.temperature
    walk = RandomWalk(box, _DRIFT * (high - low), _DRIFT * (box.high - box.low), seed=schedule)
    source = GibbsSource(
        ensemble,
        lattice,
        box,
        schedule=walk,
        n_chains=_BATCH,
        gibbs_sites=min(10, lattice.n_sites),
        positions=4,
        seed=own,
    )
    networks = [MLP(lattice, box, **_SIZE, needs_fields=False) for _ in range(2)]
    return {
        "model": MarginalizationModel(*networks),
        "stages": [Stage(source, MarginalConsistency())],
        "batch_size": _BATCH,
        "learning_rate": 3e-3,
    }


def _self_generated(ensemble, lattice, box, seed) -> dict:
    network = LatticeConvolution(lattice, box, needs_fields=ensemble.has_fields)
    return {
        "model": AnyOrderARM(network),
        "stages": [Stage(ReplaySource(ensemble, lattice, box, seed=seed), cross_entropy)],
    }


_RECIPES: dict[str, Callable[..., dict]] = {
    "default": _default,
    "segal": _segal,
    "any_order": _any_order,
    "marginalization": _marginalization,
    "self_generated": _self_generated,
}
