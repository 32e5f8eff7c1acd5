"""Laws of ways of training by name: exact results, same seed same run, overrides that are told."""

import json

import numpy as np
import pytest
import torch
from training_toys import BOX, ising, model

from clease_nn.conditions import ConditionRange
from clease_nn.energies.ising import ising_energy
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.io import ModelFileError, TrainedModel
from clease_nn.lattice import Lattice
from clease_nn.models import AnyOrderARM
from clease_nn.recipes import recipe, recipes
from clease_nn.sampler import ModelService, System
from clease_nn.sampling import sample
from clease_nn.training import fit
from clease_nn.warnings import LostModeWarning, TrainingWarning

PUBLISHED = recipes()[1:]


def run(name, system, steps=2, seed=3, **options):
    lattice, ensemble, box = system
    arguments = {"batch_size": 64, **options}
    return fit(
        ensemble, lattice, box, max_steps=steps, seed=seed, validation_samples=8, progress=False,
        **{**recipe(name, ensemble, lattice, box, seed=seed), **arguments},
    )  # fmt: skip


def three_species():
    """Pair energies of three species on four sites, two chemical potentials."""
    lattice = Lattice.square(2, species=("Ag", "Au", "Cu"))
    x = torch.tensor([0.0, 0.05, -0.03], dtype=torch.float64)

    def energy(lattice, occupations):
        v = x[occupations.long()]
        return v.sum(1) + 20 * (v * v.roll(1, 1)).sum(1)

    box = ConditionRange((500, 900), [-0.05, -0.05], [0.05, 0.02], [[1.0, 0, 0], [0, 1.0, 0]])
    return lattice, SemiGrandCanonical(energy), box


@pytest.mark.parametrize("system", [ising, three_species])
@pytest.mark.parametrize("name", PUBLISHED)
def test_two_steps_of_any_recipe_give_an_exact_partition_function(name, system, tmp_path):
    """A hardly trained model, saved and read again: ln Z is exact within its error."""
    lattice, ensemble, box = system()
    trained = run(name, (lattice, ensemble, box))
    trained.save(tmp_path / "m.nn")
    loaded = TrainedModel.load(tmp_path / "m.nn")
    grid = box.grid(2, 2)
    exact = ensemble.enumerate(lattice).log_z(grid)
    rows = grid.repeat(500)
    c = sample(loaded.model, ensemble, lattice, rows, torch.Generator().manual_seed(0))
    w = torch.exp(c.log_weight.view(len(grid), 500) - exact[:, None])
    z = (w.mean(1) - 1) / (w.std(1) / np.sqrt(500))
    assert z.abs().max() < 4.5


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_is_made_again_by_its_seed(name, tmp_path, monkeypatch):
    """Interrupted and resumed with the recipe made anew, a run is bitwise uninterrupted."""
    from clease_nn.training.trainer import Trainer

    whole = run(name, ising(), 4)
    step = Trainer.step

    def interrupted(self, progress):
        if self.step_count == 2:
            raise KeyboardInterrupt
        return step(self, progress)

    with monkeypatch.context() as m, pytest.warns(TrainingWarning, match="interrupted after 2"):
        m.setattr(Trainer, "step", interrupted)
        run(name, ising(), 4, checkpoint=tmp_path / "c")
    resumed = run(name, ising(), 4, checkpoint=tmp_path / "c")
    for p, q in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert whole.metadata["stages"] == resumed.metadata["stages"]
    other = PUBLISHED[PUBLISHED.index(name) - 1]
    with pytest.raises(ModelFileError, match=r"written for other stages: 1, .*; this run has 1"):
        run(other, ising(), 6, checkpoint=tmp_path / "c")


@pytest.mark.parametrize("name", recipes())
def test_one_site_at_almost_one_condition(name):
    """The smallest lattice in a box that hardly has a width."""
    lattice = Lattice.square(1, 1)
    flat = SemiGrandCanonical(lambda lattice, x: 0.01 * x.double().sum(1))
    narrow = ConditionRange((300.0, 300.001), [-1e-7], [1e-7], [[-1.0, 1.0]])
    trained = run(name, (lattice, flat, narrow))
    assert trained.metadata["validation"]["ness_min"] > 0.5


def test_an_unknown_recipe_is_refused():
    """The message lists those there are."""
    lattice, ensemble, box = ising()
    with pytest.raises(ValueError, match="one of .*'segal'.*got 'sega'"):
        recipe("sega", ensemble, lattice, box)


def service(**options):
    lattice, ensemble, box = ising()
    trained = ModelService(System(lattice, ensemble, None)).fit(
        box, max_steps=1, progress=False, validation_samples=4, **options
    )
    json.dumps(trained.metadata)
    return trained


def test_arguments_go_before_those_of_a_recipe():
    """None leaves the recipe's; another model or stages are told in the metadata."""
    plain = service(recipe="segal", model=None, stages=None, batch_size=None)
    assert type(plain.model).__name__ == "FixedOrderARM"
    assert plain.metadata["stages"][0]["source"] == "GeneratedSource"
    assert plain.metadata["recipe"] == "segal"
    own = service(recipe="segal", model=model("any", Lattice.square(2)), batch_size=64)
    assert isinstance(own.model, AnyOrderARM)
    assert own.metadata["recipe"] == "segal but for model"
    assert service().metadata["recipe"] == "default"


@pytest.mark.parametrize("name", ["segal", "any_order"])
def test_a_phase_that_reinforce_has_lost_is_told(name):
    """Where two phases coexist a model of one of them has NESS 1, and validation warns."""
    lattice = Lattice.square(3)
    cold = ConditionRange((11000, 14000), [-0.01], [0.01], [[-1.0, 1.0]])
    ensemble = SemiGrandCanonical(ising_energy(lattice))
    chosen = recipe(name, ensemble, lattice, cold, seed=1)
    head = [p for p in chosen["model"].parameters() if p.ndim == 1][-1]
    with torch.no_grad():
        head.view(-1, 2)[:, 1] += 14.0
    chosen |= {"learning_rate": 1e-9, "batch_size": 32}
    with pytest.warns(LostModeWarning, match="a phase may be missing"):
        trained = fit(
            ensemble, lattice, cold, max_steps=1, validation_samples=32, progress=False, **chosen
        )
    assert trained.metadata["validation"]["ness_min"] > 0.99


def test_own_draws_alone_cannot_show_what_is_lost():
    """An energy without flip energies: the metadata and a warning say so."""
    _, ensemble, _ = ising()
    bare = SemiGrandCanonical(lambda lattice, x: ensemble.energy(lattice, x))
    with pytest.warns(TrainingWarning, match="a lost mode cannot be seen"):
        trained = run("self_generated", (Lattice.square(2), bare, BOX))
    assert trained.metadata["independent_chains"] is False
