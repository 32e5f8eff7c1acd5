"""What a model is made for: an energy on a lattice, and the key that models are looked up by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.io import TrainedModel
from clease_nn.lattice import Lattice
from clease_nn.sampler.scaling import serving

__all__ = ["System"]


@dataclass(frozen=True, eq=False)
class System:
    """An energy on a lattice, with an identity.

    Attributes
    ----------
    lattice : Lattice
    ensemble : SemiGrandCanonical
        Of the bare energy, without chemical potential.
    key : str or None
        Fingerprint of the energy and the parent lattice, the same for every supercell. None for
        an energy that has none: no file is looked for then, and a model that is given is taken
        on trust (a wrong one costs efficiency, never exactness).
    details : mapping
        JSON that is saved with a model, such as the ``"eci"`` of an expansion.
    """

    lattice: Lattice
    ensemble: SemiGrandCanonical
    key: str | None
    details: Mapping[str, Any] = field(default_factory=dict)

    def check(self, trained: TrainedModel) -> TrainedModel:
        """The model itself.

        Raises
        ------
        ValueError
            If it was trained for other species, another energy or another parent lattice, or
            for one cell only, whose windows do not fit this one.
        """
        meta, species = trained.metadata, self.lattice.species
        if tuple(meta.get("species", species)) != species:
            raise ValueError(
                f"the model was trained for the species {meta['species']}, this system has "
                f"{list(species)}; train one with fit()"
            )
        if self.key is None:
            serving(trained, self.lattice)
            return trained
        key = meta.get("parent_fingerprint")
        if key is None:
            fingerprint = getattr(self.ensemble.energy, "fingerprint", None)
            same = fingerprint is not None and meta.get("energy_fingerprint") == fingerprint
        else:
            same = key == self.key
        if same:
            serving(trained, self.lattice)
            return trained
        self._refuse_folded(meta.get("eci") or {})
        raise ValueError(
            f"the model belongs to another energy or parent lattice (model {key}, this "
            f"{self.key}); load the model of this one or train one with fit()"
        )

    def _refuse_folded(self, eci: Mapping[str, float]) -> None:
        """Say so if the ECIs differ from those of a model by a chemical potential."""
        own = self.details.get("eci") or {}
        if not eci or eci.keys() != own.keys():
            return
        differ = [k for k, v in eci.items() if abs(v - own[k]) > 1e-10]
        if differ and all(k.startswith("c1_") or k == "c0" for k in differ):
            raise ValueError(
                f"the ECIs differ from those the model was trained on only in {differ}: another "
                "sampler has folded a chemical potential into them; call reset_eci() on it "
                "first, or give the calculator the bare ECIs"
            )
