"""Values from a config.json or a checkpoint have the types that the code expects, or an error names the value."""

from typing import Any

import pytest

from nfnet_timm.formats.typed import check_types

HINTS = {
    "count": int | None,
    "rate": float,
    "size": tuple[int, int, int] | None,
    "mean": tuple[float, ...],
    "kwargs": dict[str, Any],
    "name": str | None,
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("count", None),
        ("rate", 1),
        ("size", [3, 32, 32]),
        ("mean", (0.5, 0.5)),
        ("kwargs", {"a": [1]}),
        ("name", "x"),
        ("other", object()),
    ],
)
def test_a_value_of_the_type_is_accepted(key, value):
    check_types({key: value}, HINTS, "config.json")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("count", True, r"config\.json: count is True, expected int \| None"),
        ("rate", float("nan"), "rate is nan, expected float"),
        ("size", [3, 32], r"size is \[3, 32\], expected tuple\[int, int, int\] \| None"),
        ("mean", 0.5, r"mean is 0.5, expected tuple\[float, \.\.\.\]"),
        ("kwargs", {1: 2}, r"kwargs is \{1: 2\}, expected dict\[str, Any\]"),
        ("name", ["x" * 100], r"name is \['x{75}\.\.\., expected str \| None"),
    ],
)
def test_another_value_is_refused_with_its_name_and_the_type(key, value, message):
    with pytest.raises(ValueError, match=message):
        check_types({key: value}, HINTS, "config.json")
