"""ReLU overwrites its input where this is allowed."""

import warnings

import pytest
import timm
import torch

from nfnet_timm.layers.activations import OverwritingReLU


@pytest.mark.parametrize("name", ["dm_nf_resnet50", "dm_nf_seresnet50"])
def test_backward_hooks_on_relu_networks_do_not_change_gradients(name):
    """torch's in-place ReLU raises an error here, because the output of a module with such a hook is a view."""
    torch.manual_seed(0)
    model = timm.create_model(name, depths=(1, 1, 1, 1), channels=(16, 32, 32, 32), num_classes=4)
    for key, p in model.named_parameters():
        if key.endswith("skipinit_gain"):
            torch.nn.init.constant_(p, 0.5)
    x = torch.randn(2, 3, 32, 32)

    def grads():
        return torch.autograd.grad(model(x).square().sum(), list(model.parameters()))

    expected, seen = grads(), []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_full_backward_hook(lambda *args: seen.append(args[2][0].shape))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the stem's input needs no gradient
        found = grads()
    assert all(a.equal(b) for a, b in zip(found, expected, strict=True))
    assert seen


def test_relu_overwrites_its_input_unless_it_is_a_view():
    x = torch.randn(4, requires_grad=True)
    y = x * 1
    assert OverwritingReLU()(y) is y
    z = x * 1
    assert OverwritingReLU()(z[:2]).data_ptr() != z.data_ptr()


def test_fx_traces_overwriting_relu():
    relu = torch.fx.symbolic_trace(OverwritingReLU())
    x = torch.randn(2, 4)
    assert relu(x.clone()).equal(x.relu())
