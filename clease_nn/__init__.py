"""Neural semi-grand canonical sampling for cluster expansions."""

__version__ = "0.1.0"
