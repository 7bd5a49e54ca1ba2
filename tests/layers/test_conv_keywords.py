"""A convolution can be built from the attributes of another one, as with nn.Conv2d. A wrong padding is an error."""

import golden
import pytest
import timm
import torch
from timm.models import adapt_input_conv

from nfnet_timm.layers import WSConv2d
from nfnet_timm.layers.same_padding import Conv2dSame

KINDS = (Conv2dSame, WSConv2d)
FORMS = {
    "3 x 3": {},
    "stride 2": {"stride": 2},
    "1 x 1 with stride": {"kernel_size": 1, "stride": 2},
    "even": {"kernel_size": 2},
    "oblong": {"kernel_size": (3, 5), "stride": (1, 2)},
    "dilated in groups": {"dilation": 2, "groups": 2},
    "no bias": {"bias": False},
    "reflecting": {"padding_mode": "reflect"},
    "reflecting with stride": {"padding_mode": "reflect", "stride": 2},
    "double": {"dtype": torch.float64},
}


def rebuilt(conv, by_position):
    names = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"]
    arguments = {name: getattr(conv, name) for name in names}
    arguments |= {"bias": conv.bias is not None, "padding_mode": conv.padding_mode, "device": conv.weight.device}
    arguments |= {"dtype": conv.weight.dtype}
    return type(conv)(*arguments.values()) if by_position else type(conv)(**arguments)


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_convolution_built_from_the_attributes_of_another_gives_the_same(kind, form, by_position):
    conv = kind(**{"in_channels": 4, "out_channels": 6, "kernel_size": 3, **form})
    again = rebuilt(conv, by_position)
    again.load_state_dict(conv.state_dict())
    x = torch.randn(2, 4, 9, 10, dtype=conv.weight.dtype)
    assert again(x).equal(conv(x))
    assert (again.bias is None) == (conv.bias is None)
    assert repr(again) == repr(conv)


@pytest.mark.parametrize("padding", ["same", "SAME", 1, (1, 1), [1, 1]])
@pytest.mark.parametrize("kind", KINDS)
def test_every_spelling_of_same_padding_is_taken(kind, padding):
    conv, expected = kind(4, 6, 3, padding=padding), kind(4, 6, 3)
    expected.load_state_dict(conv.state_dict())
    x = torch.randn(1, 4, 8, 9)
    assert conv(x).equal(expected(x))


@pytest.mark.parametrize(
    "form",
    [{"padding": 0}, {"padding": "valid"}, {"padding": 2}, {"padding": (1, 0)}, {"padding": 1, "stride": 2}],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_another_padding_is_an_error_that_names_it(kind, form):
    with pytest.raises(ValueError, match="padding=") as error:
        kind(4, 6, 3, **form)
    assert repr(form["padding"]) in str(error.value)
    assert "'same'" in str(error.value)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")  # torch.jit as a whole
@pytest.mark.parametrize("kind", KINDS)
def test_without_a_bias_it_is_scripted_fused_and_trained(kind):
    conv = kind(4, 6, 3, stride=2, bias=False)
    x = torch.randn(1, 4, 9, 8)
    torch.testing.assert_close(torch.jit.script(conv)(x), conv(x))
    if kind is WSConv2d:
        torch.testing.assert_close(conv.fuse()(x), conv(x))
    conv(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in conv.parameters())


@pytest.mark.parametrize("chans", [1, 2, 4, 6])
def test_channels_that_are_changed_afterwards_equal_in_chans_at_creation(chans):
    def build(**kwargs):
        file = {"file": str(golden.DATA / "nfnet_tiny_haiku_2021.npz")}
        return timm.create_model(
            "nfnet_f0", pretrained=True, pretrained_cfg_overlay=file, **golden.TINY, **kwargs
        ).eval()

    model, expected = build(), build(in_chans=chans)
    old = model.stem.conv1
    new = type(old)(
        in_channels=chans,
        out_channels=old.out_channels,
        kernel_size=old.kernel_size,
        stride=old.stride,
        padding=old.padding,
        bias=old.bias is not None,
    )
    new.load_state_dict({**old.state_dict(), "weight": adapt_input_conv(chans, old.weight)})
    model.stem.conv1 = new
    x = torch.randn(2, chans, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected(x))
