"""Convolutions have torch's interface, squeeze-excite is the published one, and no activation overwrites its input."""

import pytest
import timm
import torch
import torch.nn.functional as F

from nfnet_timm.layers import WSConv2d
from nfnet_timm.layers.same_padding import Conv2dSame
from nfnet_timm.layers.squeeze_excite import SqueezeExcite

both = pytest.mark.parametrize("kind", [Conv2dSame, WSConv2d])
FORMS = {
    "reflecting, no bias": {"stride": 2, "bias": False, "padding_mode": "reflect"},
    "oblong": {"kernel_size": (3, 5), "stride": (1, 2)},
    "dilated in groups": {"dilation": 2, "groups": 2, "dtype": torch.float64},
}


@both
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_convolution_built_from_the_attributes_of_another_gives_the_same(kind, form):
    conv = kind(**{"in_channels": 4, "out_channels": 6, "kernel_size": 3, **form})
    names = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"]
    arguments = {name: getattr(conv, name) for name in names}
    arguments |= {"bias": conv.bias is not None, "padding_mode": conv.padding_mode, "device": conv.weight.device}
    arguments |= {"dtype": conv.weight.dtype}
    x = torch.randn(2, 4, 9, 10, dtype=conv.weight.dtype)
    for again in (kind(**arguments), kind(*arguments.values())):
        again.load_state_dict(conv.state_dict())
        assert again(x).equal(conv(x))
        assert repr(again) == repr(conv)


@both
def test_every_spelling_of_same_padding_is_taken(kind):
    for padding in ("same", "SAME", 1, (1, 1), [1, 1]):
        conv = kind(4, 6, 3, padding=padding)
        conv.padding = padding
        assert repr(conv) == repr(kind(4, 6, 3))


@both
@pytest.mark.parametrize(
    "form", [{"padding": None}, {"padding": "valid"}, {"padding": (1, 0)}, {"padding": 1, "stride": 2}], ids=str
)
def test_another_padding_is_an_error_also_after_construction(kind, form):
    conv = kind(4, 6, 3, stride=form.get("stride", 1))
    for give in (lambda: kind(4, 6, 3, **form), lambda: setattr(conv, "padding", form["padding"])):
        with pytest.raises(ValueError, match="padding=.*'same'") as error:
            give()
        assert repr(form["padding"]) in str(error.value)


def test_squeeze_excite_has_plain_relu_and_a_factor_of_two():
    attn = SqueezeExcite(6, 0.1)
    assert attn.fc1.out_channels == 1  # at least
    x = torch.randn(2, 6, 4, 5)
    hidden = F.conv2d(x.mean((2, 3), keepdim=True), attn.fc1.weight, attn.fc1.bias).clamp(min=0)
    expected = 2 * torch.sigmoid(F.conv2d(hidden, attn.fc2.weight, attn.fc2.bias))
    assert torch.allclose(attn(x), expected, atol=1e-6)


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
