"""A convolution can be built from the attributes of another one, as with nn.Conv2d. A wrong padding is an error."""

import pytest
import torch

from nfnet_timm.layers import WSConv2d
from nfnet_timm.layers.same_padding import Conv2dSame

FORMS = {
    "stride 2, no bias": {"stride": 2, "bias": False},
    "oblong": {"kernel_size": (3, 5), "stride": (1, 2)},
    "dilated in groups": {"dilation": 2, "groups": 2, "dtype": torch.float64},
    "reflecting": {"padding_mode": "reflect"},
}
both = pytest.mark.parametrize("kind", [Conv2dSame, WSConv2d])


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
    "form", [{"padding": 0}, {"padding": "valid"}, {"padding": (1, 0)}, {"padding": 1, "stride": 2}], ids=str
)
def test_another_padding_is_an_error_also_after_construction(kind, form):
    conv = kind(4, 6, 3, stride=form.get("stride", 1))
    for give in (lambda: kind(4, 6, 3, **form), lambda: setattr(conv, "padding", form["padding"])):
        with pytest.raises(ValueError, match="padding=.*'same'") as error:
            give()
        assert repr(form["padding"]) in str(error.value)
