"""What cannot correct its acceptance refuses neural moves, and bad input is named."""

import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from clease.montecarlo import Montecarlo, RandomFlip, SGCMonteCarlo
from clease.montecarlo.constraints import (
    ConstrainSwapByBasis,
)
from clease.montecarlo.trial_move_generator import TrialMoveGenerator
from sampler_helpers import binary_atoms, trained

from clease_nn.hosts.clease import NeuralSGCSampler
from clease_nn.hosts.clease.moves import (
    CorrectedMontecarlo,
    CorrectedSGCMonteCarlo,
    MixedMoves,
    NeuralBlockSwap,
    NeuralGlobalMove,
    ProposalRatioAcceptance,
)

CHEM_POT = {"c1_0": 0.02}
T = 900


def test_who_ignores_the_ratio_is_refused(tmp_path):
    """Plain Monte Carlo classes, foreign mixtures and our sampler refuse at the first move."""

    class Wrapper(TrialMoveGenerator):
        """A generator of a user that hands out the moves of another."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def get_single_trial_move(self):
            return self.inner.get_single_trial_move()

    atoms = binary_atoms(tmp_path)
    atoms.symbols[:3] = "Au"
    one, swap = NeuralGlobalMove(trained(atoms), atoms), NeuralBlockSwap(trained(atoms), atoms)
    for generator in (one, swap, MixedMoves([(one, 1.0)]), Wrapper(one)):
        before = atoms.numbers.copy()
        with pytest.raises(RuntimeError, match="CorrectedMontecarlo"):
            Montecarlo(atoms, T, generator=generator).run(1)
        mc = SGCMonteCarlo(atoms, T, ["Au", "Cu"], generator=generator)
        with pytest.raises(RuntimeError, match="not symmetric"):
            mc.run(1, chem_pot=CHEM_POT)
        mc.reset_eci()
        mc = NeuralSGCSampler(atoms, T, ["Au", "Cu"], generator=generator, neural_interval=None)
        with pytest.raises(RuntimeError, match="not symmetric"):
            mc.run(1, chem_pot=CHEM_POT)
        mc.reset_eci()
        assert (atoms.numbers == before).all()
    mc = CorrectedMontecarlo(atoms, T, generator=Wrapper(swap))
    with pytest.raises(RuntimeError, match="MixedMoves"):
        mc.run(1)
    mc = CorrectedMontecarlo(atoms, T, generator=swap)
    mc.run(5)
    with pytest.raises(RuntimeError, match="not symmetric"):
        Montecarlo(atoms, T, generator=swap).run(1)


def test_other_acceptances_are_refused(tmp_path):
    """A class that decides in its own way cannot be corrected by adding the mixin."""

    class Threshold(Montecarlo):
        def _do_accept(self, current_energy, new_energy):
            return new_energy < current_energy + 0.01

    class Mixed(ProposalRatioAcceptance, Threshold):
        pass

    class Hasty(CorrectedMontecarlo):
        def _do_accept(self, current_energy, new_energy):
            return True

    class OwnStep(CorrectedMontecarlo):
        def _calculate_step(self, system_changes):
            self.new_energy = self.current_energy
            return False

    class Twice(CorrectedMontecarlo):
        def _do_accept(self, current_energy, new_energy):
            super()._do_accept(current_energy, new_energy)
            return super()._do_accept(current_energy, new_energy)

    atoms = binary_atoms(tmp_path)
    atoms.symbols[:3] = "Au"
    swap = NeuralBlockSwap(trained(atoms), atoms)
    with pytest.raises(RuntimeError, match="acceptance of its own"):
        Mixed(atoms, T, generator=swap).run(1)
    with pytest.raises(RuntimeError, match="without _do_accept"):
        Hasty(atoms, T, generator=swap).run(1)
    with pytest.raises(RuntimeError, match="without _do_accept"):
        OwnStep(atoms, T, generator=swap).run(1)
    with pytest.raises(RuntimeError, match="once a move"):
        Twice(atoms, T, generator=swap).run(1)
    Mixed(atoms, T).run(5)


def test_bad_input(tmp_path):
    """Foreign models and atoms, background, weights and sizes are named in the error."""
    atoms = binary_atoms(tmp_path)
    model = trained(atoms)
    with pytest.raises(TypeError, match="path of a"):
        NeuralGlobalMove(model.model, atoms)
    with pytest.raises(ValueError, match="another energy"):
        NeuralGlobalMove(model, binary_atoms(tmp_path, seed=5))
    with pytest.raises(ValueError, match="no active site"):
        NeuralGlobalMove(model, atoms, indices=[99])
    with pytest.raises(ValueError, match="at least 2"):
        NeuralBlockSwap(model, atoms, block_size=1)
    with pytest.raises(ValueError, match="at least 1"):
        NeuralGlobalMove(model, atoms, block_size=0)
    with pytest.raises(ValueError, match="unknown element"):
        NeuralGlobalMove(model, atoms, symbols=["Au", "Ag"])
    with pytest.raises(ValueError, match="no chemical potential"):
        CorrectedMontecarlo(atoms, T, generator=NeuralGlobalMove(model, atoms)).run(1)
    other = binary_atoms(tmp_path)
    with pytest.raises(ValueError, match="another Atoms"):
        CorrectedMontecarlo(other, T, generator=NeuralBlockSwap(model, atoms)).run(1)
    gold = bulk("Au") * 2
    gold.calc = EMT()
    with pytest.raises(ValueError, match="system="):
        NeuralGlobalMove(model, gold)
    with pytest.raises(ValueError, match="positive"):
        MixedMoves([(RandomFlip({"Au", "Cu"}, atoms), 0.0)])
    with pytest.raises(ValueError, match="at least one"):
        MixedMoves([])
    with pytest.raises(TypeError, match="TrialMoveGenerator"):
        MixedMoves([("flip", 1.0)])

    class Tracking(RandomFlip):
        def on_move_accepted(self, changes):
            self.last = changes

    with pytest.raises(TypeError, match="follows its own"):
        MixedMoves([(Tracking({"Au", "Cu"}, atoms), 1.0)])
    mc = CorrectedSGCMonteCarlo(atoms, T, ["Au", "Cu"], generator=NeuralGlobalMove(model, atoms))
    mc.generator.add_constraint(ConstrainSwapByBasis(atoms, [list(range(8))]))
    with pytest.raises(ValueError, match="ConstrainElementInserts"):
        mc.run(1, chem_pot=CHEM_POT)
    with pytest.raises(ValueError, match="reset_eci"):
        NeuralGlobalMove(model, atoms)
    mc.reset_eci()


def test_moves_that_clease_cannot_take_back(tmp_path, monkeypatch):
    """More changes at once than CLEASE's history holds are refused; blocks are the remedy."""
    monkeypatch.setattr("clease_nn.hosts.clease.moves._UNDO", 7)
    atoms = binary_atoms(tmp_path)
    moves = NeuralGlobalMove(trained(atoms), atoms)
    mc = CorrectedSGCMonteCarlo(atoms, T, ["Au", "Cu"], generator=moves)
    with pytest.raises(ValueError, match="8 sites at once, CLEASE can take back 7"):
        mc.run(1, chem_pot=CHEM_POT)
    moves.block_size = 4
    mc.run(3)
    mc.reset_eci()
