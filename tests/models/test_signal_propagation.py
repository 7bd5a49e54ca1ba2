"""Measuring does not change the network, and the plot is an image. test_nfnet.py compares the values."""

import pytest
import timm
import torch

from nfnet_timm.models.signal_propagation import measure, plot


def test_measuring_changes_nothing_also_after_an_error(tiny):
    model, x = tiny(), torch.randn(2, 3, 32, 32)
    before = model(x)
    with pytest.raises(ValueError, match="N, 3, H, W"):
        measure(model, torch.randn(2, 1, 32, 32))
    assert measure(model, x) == measure(model, x)
    assert torch.equal(model(x), before)
    assert not any(module._forward_hooks for module in model.modules())


WRAPPED = {
    "averaged weights": lambda tiny: timm.utils.ModelEmaV3(tiny()),
    "a module of its own": lambda tiny: torch.nn.Sequential(tiny(), torch.nn.Identity()),
    "feature list": lambda tiny: tiny(features_only=True),
    "feature getter": lambda tiny: tiny(features_only=True, feature_cls="getter"),
}


@pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=WRAPPED)
def test_a_wrapped_network_gives_the_same_statistics(tiny, wrapped):
    x = torch.randn(2, 3, 32, 32)
    assert measure(wrapped(tiny), x) == measure(tiny(), x)


def test_other_networks_are_refused_with_their_name():
    with pytest.raises(ValueError, match="Linear"):
        measure(torch.nn.Linear(2, 2), torch.randn(1, 2))


def test_the_plot_is_an_image_file(tiny, tmp_path):
    plot({"tiny": measure(tiny(), torch.randn(2, 3, 32, 32))}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
