"""Arrays that the NumPy backend refuses, with a sentence that names the argument."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gradclip import PolicyError
from gradclip.numpy import clip

ONE = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("grads", "weights", "words"),
    [
        ([ONE, np.arange(3)], None, ["grads[1].dtype='int64'", "array of floats"]),
        ({"a": np.ones(2, bool)}, None, ["grads[a].dtype='bool'", "array of floats"]),
        ([ONE], [ONE, ONE], ["weights=['0', '1']", "the gradients are ['0']"]),
        ({"a": ONE}, {"b": ONE}, ["weights=['b']", "the gradients are ['a']"]),
        ([None, ONE], [ONE, ONE.T], ["weights[1].shape=(3, 2)", "(2, 3)"]),
    ],
)
def test_wrong_arrays_are_refused(grads: Any, weights: Any, words: list[str]) -> None:
    with pytest.raises(PolicyError) as caught:
        clip(grads, "agc:0.1", weights=weights)
    assert [word for word in words if word not in str(caught.value)] == [], caught.value
