"""Energies of configurations in batches."""
