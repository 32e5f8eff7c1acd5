"""Fixtures that several test modules ask for."""

import random

import pytest


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No model of another run is found by accident."""
    monkeypatch.setenv("CLEASE_NN_MODELS", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    random.seed(1)
