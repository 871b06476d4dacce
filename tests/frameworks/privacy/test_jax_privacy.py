"""Against jax-privacy's `clipped_grad`: gradclip in JAX, and gradclip in PyTorch."""

# pyright: reportMissingImports=false
from __future__ import annotations

import pytest

from .jax_steps import difference
from .models import CASES

pytestmark = pytest.mark.filterwarnings("ignore:optax.global_norm:DeprecationWarning")  # Theirs.


@pytest.mark.parametrize("ours", ["jax", "torch"])
@pytest.mark.parametrize("name", CASES)
def test_the_sum_and_the_norms_are_those_of_jax_privacy(name: str, ours: str) -> None:
    found = difference(CASES[name], ours)
    assert found.grads < 1e-12
    assert found.norms < 1e-6  # jax-privacy returns norms in float32.
    assert found.clipped == 3
