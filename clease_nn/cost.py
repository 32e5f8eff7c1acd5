"""What a result has cost: energy evaluations, network passes, attempted moves and time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields

__all__ = ["Cost"]


@dataclass(frozen=True)
class Cost:
    """What it took to make a result; costs of parts are added.

    Attributes
    ----------
    energy_evaluations : float
        Energies of whole configurations and energy differences of single moves alike.
    network_passes : float
        Passes of a network over a batch of configurations.
    attempts_per_site : float
        Attempted changes of a site's species over the number of active sites; a drawn site is one.
    seconds : float
        Wall time of sampling, training not counted.
    training_seconds : float
        Time of training, once for all conditions.

    Examples
    --------
    >>> once = Cost(energy_evaluations=100, seconds=2.0)
    >>> (once + once).energy_evaluations
    200.0
    >>> Cost.from_provenance({"energy_evaluations": 7, "seed": 3}).energy_evaluations
    7.0
    """

    energy_evaluations: float = 0.0
    network_passes: float = 0.0
    attempts_per_site: float = 0.0
    seconds: float = 0.0
    training_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(float(getattr(self, n) + getattr(other, n)) for n in _NAMES))

    @staticmethod
    def sum(costs: Iterable[Cost]) -> Cost:
        """Sum of any number of costs."""
        total = Cost()
        for cost in costs:
            total = total + cost
        return total

    @classmethod
    def from_provenance(cls, provenance: Mapping) -> Cost:
        """The costs noted in the provenance of configurations; what is not noted reads 0."""
        return cls(**{n: float(provenance.get(n) or 0.0) for n in _NAMES})

    def to_dict(self) -> dict:
        """JSON-ready numbers."""
        return asdict(self)


_NAMES = tuple(f.name for f in fields(Cost))
