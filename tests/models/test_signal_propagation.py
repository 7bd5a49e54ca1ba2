"""Measuring does not change the network, and the plot is an image. test_nfnet.py compares the values."""

import pytest
import timm
import torch

from nfnet_timm.models.signal_propagation import measure, plot


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


WRAPPERS = {
    "timm's averaged weights": timm.utils.ModelEmaV3,
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "a module of its own": lambda model: torch.nn.Sequential(model, torch.nn.Identity()),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_network_gives_the_same_statistics(tiny, wrap):
    model, x = tiny(), torch.randn(2, 3, 32, 32)
    assert measure(wrap(model), x) == measure(model, x)


@pytest.mark.parametrize("feature_cls", ["list", "getter"])
@pytest.mark.parametrize("name", ["nfnet_f0", "dm_nf_resnet50"])
def test_a_feature_network_gives_the_same_statistics(name, feature_cls):
    small = {"depths": (1, 2, 2, 1), "channels": (32, 64, 96, 96), "group_size": 8 if name == "nfnet_f0" else None}
    features = timm.create_model(name, features_only=True, feature_cls=feature_cls, **small).eval()
    model = timm.create_model(name, **small).eval()
    state = {key.replace("stem_", "stem.").replace("stages_", "stages."): t for key, t in features.state_dict().items()}
    model.load_state_dict({key.removeprefix("model."): t for key, t in state.items()}, strict=False)
    x = torch.randn(2, 3, 32, 32)
    assert measure(features, x) == measure(model, x)


def test_other_networks_are_refused_with_their_name():
    with pytest.raises(ValueError, match="Linear"):
        measure(torch.nn.Linear(2, 2), torch.randn(1, 2))


def test_the_plot_is_an_image_file(tiny, tmp_path):
    signal = measure(tiny(), torch.randn(2, 3, 32, 32))
    plot({"tiny": signal, "again": signal}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
