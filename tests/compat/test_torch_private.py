"""torch's private functions are there, and mean what we take them for. One that is gone is named by its test."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nfnet_timm.compat import torch as torch_private


def test_transforms_are_seen():
    seen = []
    torch.func.grad(lambda x: (seen.append(torch_private.has_transforms()), x.sum())[1])(torch.ones(3))
    assert seen == [True]
    assert not torch_private.has_transforms()


def test_dispatch_modes_are_seen():
    with TorchDispatchMode():
        assert torch_private.has_dispatch_modes()
    assert not torch_private.has_dispatch_modes()


def test_saved_tensors_hooks_are_seen():
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        assert torch_private.has_saved_tensors_hooks()
    assert not torch_private.has_saved_tensors_hooks()


def test_checkpointing_is_told_from_other_hooks():
    seen = []

    def function(x):
        seen.append(torch_private.is_checkpointing())
        return x * 2

    x = torch.ones(1, requires_grad=True)
    torch.utils.checkpoint.checkpoint(function, x, use_reentrant=False)
    with torch.autograd.graph.save_on_cpu():
        function(x)
    assert seen == [True, False]


@pytest.mark.parametrize(
    ("name", "argument", "expected"),
    [
        ("foreach_mul_", [torch.tensor(3.0)], 6.0),
        ("foreach_mul_", torch.tensor(3.0), 6.0),
        ("foreach_div_", [torch.tensor(4.0)], 0.5),
        ("foreach_clamp_min_", [5.0], 5.0),
        ("foreach_clamp_max_", 1.0, 1.0),
        ("foreach_copy_", [torch.tensor([7.0])], 7.0),
    ],
)
def test_operations_on_lists_change_each_tensor_in_place(name, argument, expected):
    values = [torch.tensor([2.0])]
    getattr(torch_private, name)(values, argument)
    assert values == [torch.tensor([expected])]


def test_the_norm_of_a_list_is_that_of_each_tensor():
    norms = torch_private.foreach_norm([torch.tensor([3.0, 4.0]), torch.tensor([2.0])], 2, dtype=torch.float64)
    assert [norm.item() for norm in norms] == [5.0, 2.0]
    assert norms[0].dtype == torch.float64
