"""Saves time in tests that publish many networks; nothing that they publish changes."""

import functools

import jinja2
import pytest


@pytest.fixture(autouse=True, scope="package")
def card_template_is_compiled_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jinja2, "Template", functools.cache(jinja2.Template))
        yield
