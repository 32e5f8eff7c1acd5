"""Neural semi-grand canonical sampling for CLEASE and icet, exact after weighting.

A batch of configurations is completed by a model, scored by an ensemble, and read by
thermodynamics. Names are imported when they are first used, hosts only then.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "AnyOrderARM": "models",
    "CalculatorEnergy": "energies",
    "CallableEnergy": "energies",
    "Chains": "montecarlo",
    "ClusterExpansionEnergy": "energies",
    "ConditionRange": "conditions",
    "Conditions": "conditions",
    "Configurations": "configurations",
    "CorrectedMontecarlo": "hosts.clease.moves",
    "CorrectedSGCMonteCarlo": "hosts.clease.moves",
    "Estimate": "statistics",
    "FixedOrderARM": "models",
    "Lattice": "lattice",
    "LatticeConvolution": "networks",
    "LatticeTransformer": "networks",
    "MLP": "networks",
    "MarginalizationModel": "models",
    "MaskedMLP": "networks",
    "MixedMoves": "hosts.clease.moves",
    "NeuralBlockSwap": "hosts.clease.moves",
    "NeuralCanonicalEnsemble": "hosts.mchammer.moves",
    "NeuralGlobalMove": "hosts.clease.moves",
    "NeuralSGCEnsemble": "hosts.mchammer.ensemble",
    "NeuralSGCSampler": "hosts.clease.sampler",
    "PaiNN": "networks",
    "ParallelTempering": "montecarlo",
    "SemiGrandCanonical": "ensemble",
    "TrainedModel": "io",
    "averages": "thermodynamics",
    "check_energy_model": "energies",
    "complete": "sampling",
    "fit": "training",
    "sample": "sampling",
    "validate": "diagnostics",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'clease_nn' has no attribute {name!r}")
    return getattr(import_module(f"clease_nn.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
