"""Measuring leaves the network as it was, and the plot is a picture. The values are compared in test_nfnet.py."""

import pytest
import torch

from nfnet_timm.models.signal_propagation import measure, plot


def test_one_value_for_the_stem_and_each_block_and_one_fewer_for_branches(tiny):
    signal = measure(tiny(), torch.randn(2, 3, 32, 32))
    assert (len(signal.avg_sq_mean), len(signal.avg_var), len(signal.res_avg_var)) == (7, 7, 6)


def test_measuring_changes_nothing(tiny):
    model, x = tiny(), torch.randn(2, 3, 32, 32)
    before = model(x)
    assert measure(model, x) == measure(model, x)
    assert torch.equal(model(x), before)
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_are_removed_also_after_an_error(tiny):
    model = tiny()
    with pytest.raises(ValueError, match="N, 3, H, W"):
        measure(model, torch.randn(2, 1, 32, 32))
    assert not any(module._forward_hooks for module in model.modules())


def test_the_plot_is_a_picture(tiny, tmp_path):
    signal = measure(tiny(), torch.randn(2, 3, 32, 32))
    plot({"tiny": signal, "again": signal}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
