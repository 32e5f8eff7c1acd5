"""What a phase diagram is made of: boundaries, points where three phases meet, and what is open."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan

import numpy as np

from clease_nn.cost import Cost
from clease_nn.files import replacing
from clease_nn.phases.line import ChemicalPotentialLine
from clease_nn.statistics import Estimate

__all__ = ["Boundary", "PhaseDiagram", "ThreePhasePoint"]


@dataclass(frozen=True, eq=False)
class Boundary:
    """Conditions along which two phases meet.

    Attributes
    ----------
    kind : str
        ``"first-order"``, ``"heat-capacity maximum"`` or ``"susceptibility maximum"``.
    phases : tuple of two str
        In the order of the compositions.
    temperature : Estimate, shape (points,)
        K; without error where temperatures were chosen.
    mu : Estimate, shape (points,)
        Position along the line of chemical potentials, eV; without error where it was chosen.
    composition : Estimate, shape (points, 2)
        Share of the line's species in each phase; ends of the tie line.
    slope : Estimate or None, shape (points,)
        d mu / d T along a first-order line from the jumps of entropy and composition, eV/K.
    stable : ndarray of bool, shape (points,)
        Whether no third phase has a lower grand potential.
    reason : str
        Why the line ends where it does.
    provenance : Mapping
        JSON-ready, of the data; empty within a :class:`PhaseDiagram`, which has it itself.

    Raises
    ------
    ValueError
        If numbers of points, or of phases, do not fit together.
    """

    kind: str
    phases: tuple[str, str]
    temperature: Estimate
    mu: Estimate
    composition: Estimate
    slope: Estimate | None
    stable: np.ndarray
    reason: str = ""
    provenance: Mapping = field(default_factory=dict)

    def __post_init__(self):
        if len(self.phases) != 2:
            raise ValueError(f"a boundary lies between two phases, got {self.phases}")
        n = np.size(self.temperature.value)
        shapes = {"temperature": (n,), "mu": (n,), "composition": (n, 2), "slope": (n,)}
        found = {
            name: (np.shape(e.value), np.shape(e.error))
            for name in shapes
            if (e := getattr(self, name)) is not None
        }
        found["stable"] = (np.shape(self.stable),)
        for name, got in found.items():
            shape = shapes.get(name, (n,))
            if any(g != shape for g in got):
                raise ValueError(
                    f"{name} of the boundary {' + '.join(self.phases)} of {n} points must have "
                    f"shape {shape}, got {' with errors '.join(map(str, got))}"
                )

    @property
    def cost(self) -> Cost:
        """What the data have cost."""
        return Cost.from_provenance(self.provenance)

    def to_dict(self) -> dict:
        """JSON-ready description, inverse of :meth:`from_dict`."""
        return {
            "kind": self.kind,
            "phases": list(self.phases),
            **{name: _to_dict(getattr(self, name)) for name in _OF_BOUNDARY},
            "stable": np.asarray(self.stable).tolist(),
            "reason": self.reason,
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_dict(cls, data: Mapping) -> Boundary:
        """Rebuild from :meth:`to_dict`."""
        stable = np.array(data["stable"], dtype=bool)
        parts = {name: _from_dict(data[name]) for name in _OF_BOUNDARY}
        return cls(
            kind=data["kind"],
            phases=tuple(data["phases"]),
            stable=stable,
            reason=data["reason"],
            provenance=dict(data.get("provenance", {})),
            **parts,
        )

    def __str__(self) -> str:
        t = self.temperature.value[np.asarray(self.stable)]
        where = f"{t.min():.4g}-{t.max():.4g} K" if len(t) else "nowhere stable"
        return f"{self.kind}, {' + '.join(dict.fromkeys(self.phases))}: {where}"


@dataclass(frozen=True, eq=False)
class ThreePhasePoint:
    """Where three phases coexist.

    Attributes
    ----------
    phases : tuple of three str
        In the order of their compositions.
    temperature, mu : Estimate
        K, and eV along the line.
    composition : Estimate, shape (3,)
    kind : str
        ``"eutectoid"``, ``"peritectoid"``, or ``""`` where it is not determined.
    """

    phases: tuple[str, str, str]
    temperature: Estimate
    mu: Estimate
    composition: Estimate
    kind: str = ""

    def to_dict(self) -> dict:
        """JSON-ready description, inverse of :meth:`from_dict`."""
        return {
            "phases": list(self.phases),
            **{name: _to_dict(getattr(self, name)) for name in _OF_POINT},
            "kind": self.kind,
        }

    @classmethod
    def from_dict(cls, data: Mapping) -> ThreePhasePoint:
        """Rebuild from :meth:`to_dict`."""
        parts = {name: _from_dict(data[name]) for name in _OF_POINT}
        return cls(phases=tuple(data["phases"]), kind=data["kind"], **parts)

    def __str__(self) -> str:
        x = ", ".join(f"{v:.3f}" for v in self.composition.value)
        return (
            f"{self.kind or 'three phases'}, {' + '.join(self.phases)}: T = {self.temperature} K, "
            f"mu = {self.mu} eV, x = {x}"
        )


@dataclass(frozen=True, eq=False)
class PhaseDiagram:
    """Boundaries along one line of chemical potentials, over temperature.

    Attributes
    ----------
    line : ChemicalPotentialLine
    phases : tuple of str
    boundaries : tuple of Boundary
    points : tuple of ThreePhasePoint
    undetermined : tuple of str
        What could not be determined, each with its reason.
    provenance : Mapping
    """

    line: ChemicalPotentialLine
    phases: tuple[str, ...]
    boundaries: tuple[Boundary, ...]
    points: tuple[ThreePhasePoint, ...] = ()
    undetermined: tuple[str, ...] = ()
    provenance: Mapping = field(default_factory=dict)

    @property
    def cost(self) -> Cost:
        """What the data have cost."""
        return Cost.from_provenance(self.provenance)

    def to_rows(self) -> list[dict]:
        """One flat dictionary for every point of a line and every three-phase point.

        Keys: ``kind``, ``phase_1`` to ``phase_3`` (None where there are fewer), ``temperature``,
        ``mu``, ``x_1`` to ``x_3``, each number with ``..._error``, ``slope``, ``slope_error``,
        ``stable``. What does not exist is None.
        """
        rows = []
        for b in self.boundaries:
            for k, stable in enumerate(b.stable):
                row = _row(b.kind, b.phases, b.temperature[k], b.mu[k], b.composition[k])
                slope = None if b.slope is None else b.slope[k]
                rows.append(row | _numbers("slope", slope) | {"stable": bool(stable)})
        for p in self.points:
            row = _row(p.kind or "three phases", p.phases, p.temperature, p.mu, p.composition)
            rows.append(row | _numbers("slope", None) | {"stable": True})
        return rows

    def to_dict(self) -> dict:
        """JSON-ready description, inverse of :meth:`from_dict`."""
        return {
            "line": self.line.to_dict(),
            "phases": list(self.phases),
            "boundaries": [b.to_dict() for b in self.boundaries],
            "points": [p.to_dict() for p in self.points],
            "undetermined": list(self.undetermined),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_dict(cls, data: Mapping) -> PhaseDiagram:
        """Rebuild from :meth:`to_dict`.

        Raises
        ------
        ValueError
            If an entry is missing or wrong.
        """
        try:
            return cls(
                line=ChemicalPotentialLine.from_dict(data["line"]),
                phases=tuple(data["phases"]),
                boundaries=tuple(Boundary.from_dict(b) for b in data["boundaries"]),
                points=tuple(ThreePhasePoint.from_dict(p) for p in data["points"]),
                undetermined=tuple(data["undetermined"]),
                provenance=dict(data["provenance"]),
            )
        except KeyError as error:
            raise ValueError(f"this is no phase diagram: {error} is missing") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"this is no phase diagram: {error}") from error

    def save(self, path: str | os.PathLike) -> None:
        """Write as JSON; the file appears under its name only when it is complete.

        Raises
        ------
        OSError
            If the folder does not exist or is not writable.
        TypeError
            If the provenance is not JSON-ready.
        """
        text = json.dumps(self.to_dict(), indent=1)
        with replacing(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike) -> PhaseDiagram:
        """Read what :meth:`save` wrote.

        Raises
        ------
        ValueError
            If the file holds no phase diagram.
        OSError
            If it cannot be read.
        """
        with open(path, encoding="utf-8") as f:
            try:
                data = json.load(f)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise ValueError(f"{path} is not JSON, or is cut off: {error}") from error
        try:
            return cls.from_dict(data)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def __str__(self) -> str:
        found = [
            *map(str, self.boundaries),
            *map(str, self.points),
            *(f"not determined: {text}" for text in self.undetermined),
        ]
        none = "no boundary: no two phases coexist at the temperatures that were looked at"
        return "\n".join(
            [f"phases along {self.line.label}: {', '.join(self.phases)}", *(found or [none])]
        )


_OF_BOUNDARY = ("temperature", "mu", "composition", "slope")
_OF_POINT = ("temperature", "mu", "composition")


def _to_dict(e: Estimate | None) -> dict | None:
    """Lists of numbers; NaN is None, as JSON knows no NaN."""
    if e is None:
        return None
    return {"value": _plain(e.value), "error": _plain(e.error)}


def _plain(x):
    x = np.asarray(x, dtype=float)
    if x.ndim:
        return [_plain(v) for v in x]
    return float(x) if np.isfinite(x) else None


def _from_dict(data: Mapping | None) -> Estimate | None:
    if data is None:
        return None
    value, error = (np.array(data[k], dtype=float)[()] for k in ("value", "error"))
    return Estimate(value, error, nan)


def _row(kind: str, phases, temperature: Estimate, mu: Estimate, x: Estimate) -> dict:
    names = (*phases, None, None)[:3]
    row = {"kind": kind} | {f"phase_{k + 1}": name for k, name in enumerate(names)}
    row |= _numbers("temperature", temperature) | _numbers("mu", mu)
    for k in range(3):
        row |= _numbers(f"x_{k + 1}", x[k] if k < len(phases) else None)
    return row


def _numbers(name: str, e: Estimate | None) -> dict:
    """A number and its error; None for both where there is none or it is not finite."""
    pair = (None, None) if e is None else (_plain(e.value), _plain(e.error))
    return {name: pair[0], f"{name}_error": pair[1]}
