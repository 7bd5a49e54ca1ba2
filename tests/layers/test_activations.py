"""Hooks on the convolutions around a ReLU see and change nothing but their own tensors."""

import warnings

import pytest
import timm
import torch


@pytest.mark.parametrize("name", ["dm_nf_resnet50", "dm_nf_seresnet50"])
def test_backward_hooks_on_relu_networks_do_not_change_gradients(name):
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


def test_forward_hooks_see_what_a_convolution_computed():
    """Grad-CAM keeps the feature maps that hooks see. An activation in place would overwrite them."""
    model = timm.create_model("dm_nf_resnet50", depths=(1, 1, 1, 1), channels=(16, 32, 32, 32), num_classes=4)
    seen = []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda *args: seen.append((args[2], args[2].clone())))
    model(torch.randn(2, 3, 32, 32))
    assert seen
    assert all(kept.equal(copy) for kept, copy in seen)
