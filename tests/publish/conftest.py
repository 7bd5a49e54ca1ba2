"""Saves time in tests that publish many networks; nothing that they publish changes."""

import functools

import jinja2
import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def same_work_is_done_once():
    """Compile the template of the cards once, and fill no arrays on the meta device, which have no values."""
    fill = torch.nn.init.kaiming_normal_

    def fill_unless_meta(tensor, *args, **kwargs):
        return tensor if tensor.is_meta else fill(tensor, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jinja2, "Template", functools.cache(jinja2.Template))
        patch.setattr(torch.nn.init, "kaiming_normal_", fill_unless_meta)
        yield
