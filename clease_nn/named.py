"""Classes by the name that a saved description gives."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["named_class"]


def named_class(config: dict, classes: Iterable[type], kind: str) -> tuple[type, dict]:
    """The class that a ``config()`` names, and its other entries.

    Parameters
    ----------
    config : dict
        With ``class``.
    classes : iterable of type
        Those of this package: nothing else is ever made from a file.
    kind : str
        For the message.

    Raises
    ------
    ValueError
        If the class is not among them.

    Examples
    --------
    >>> named_class({"class": "int", "x": 1}, [int, float], "number")
    (<class 'int'>, {'x': 1})
    """
    known = {c.__name__: c for c in classes}
    name = config.get("class")
    if name not in known:
        raise ValueError(
            f"{kind} {name!r} is not known to this version of clease_nn (known: {sorted(known)}); "
            "update clease_nn"
        )
    return known[name], {key: value for key, value in config.items() if key != "class"}
