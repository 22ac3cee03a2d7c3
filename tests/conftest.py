"""Shared by all tests: JAX stays on the CPU, dtypes never promote silently, the goldens are found by one name."""

from pathlib import Path

import pytest

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture
def goldens() -> Path:
    """The folder of tensors that the published PyTorch code computed (README there)."""
    return GOLDENS
