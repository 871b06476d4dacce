"""What the kernel is told of a tensor's memory, against what the tensor itself says."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradclip import kernel
from gradclip.kernel.exchange import describe_function
from gradclip.torch.tensors.gather import DTYPES, is_run, runs, with_gradients

pytestmark = pytest.mark.skipif(not kernel.available(), reason="the C kernel is not built")


def test_torch_offers_its_describe_function() -> None:
    """Without it all still works, and thousands of small tensors take ten times as long."""
    assert describe_function(torch.Tensor)
    assert describe_function(torch.nn.Parameter) == describe_function(torch.Tensor)
    assert describe_function(int) is None


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Draw views of every kind: transposed, sliced, expanded, reversed axes, empty, scalar."""
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    dtype = draw(st.sampled_from([*DTYPES, torch.int32, torch.complex64, torch.float8_e5m2]))
    tensor = torch.zeros(shape, dtype=dtype)
    for axis in range(tensor.ndim):
        start, step = draw(st.integers(0, 1)), draw(st.integers(1, 2))
        tensor = tensor[(slice(None),) * axis + (slice(start, None, step),)]
    if tensor.ndim and draw(st.booleans()):
        tensor = tensor.permute(draw(st.permutations(range(tensor.ndim))))
    if draw(st.booleans()):
        tensor = tensor.unsqueeze(0).expand(draw(st.integers(1, 3)), *tensor.shape)
    return tensor


@settings(max_examples=300, deadline=None)
@given(tensor=tensors())
def test_it_takes_what_is_one_run_and_nothing_else(tensor: torch.Tensor) -> None:
    memory = runs([tensor])
    dense = _places(tensor) == list(range(tensor.numel()))
    assert (memory is not None) == (tensor.dtype in DTYPES and dense)
    if memory is not None:
        assert is_run(tensor)
        assert memory.sizes.tolist() == [tensor.numel()]
        assert memory.dtypes.tolist() == [DTYPES[tensor.dtype]]
        assert memory.pointers.tolist() == [tensor.data_ptr()] or not tensor.numel()


def _places(tensor: torch.Tensor) -> list[int]:
    """Return where each value is, in elements from the first."""
    places = [0] if tensor.numel() else []
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        places = [at + i * stride for at in places for i in range(size)]
    return sorted(places)


def test_it_leaves_to_torch_what_has_no_plain_memory() -> None:
    class Own(torch.Tensor):
        pass

    good = torch.ones(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CSR is in beta.
        csr = torch.eye(2).to_sparse_csr()
    meta, own = torch.ones(2, device="meta"), torch.ones(2).as_subclass(Own)
    for other in (torch.eye(2).to_sparse(), csr, meta, own, torch.eye(2).to_mkldnn()):
        assert runs([good, other]) is None
    assert runs([good, torch.ones(1 << 3)]) is not None
    assert runs([]) is not None


def test_a_tensor_that_is_listed_twice_is_not_taken() -> None:
    one, two = torch.ones(3), torch.ones(4)
    assert runs([one, two, one]) is None
    assert runs([one, two, one[:2]]) is None
    assert runs([one, torch.ones(0), torch.ones(0)]) is not None


def test_a_parameter_that_requires_grad_is_read_too() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    memory = runs([weight])
    assert memory is None or memory.pointers.tolist() == [weight.data_ptr()]


def test_only_parameters_with_a_gradient_are_kept() -> None:
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    params[0].grad, params[2].grad = torch.ones(2), torch.zeros(2)
    kept, grads = with_gradients(params)
    assert [p is q for p, q in zip(kept, (params[0], params[2]), strict=True)] == [True, True]
    assert [g is p.grad for g, p in zip(grads, kept, strict=True)] == [True, True]
