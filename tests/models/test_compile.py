"""torch.compile makes one graph for images of all sizes, after the first size, in inference and in training."""

import pytest
import torch
from families import as_trained, families
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

FAMILIES = families(channels=(16, 16, 32, 32))
FAMILIES["recompute_acts"] = ("nfnet_f0", {**FAMILIES["NFNet"][1], "recompute_acts": True})
SIZES = (64, 75, 96, 49, 33, 128)  # as height, and in reverse order as width


def results(model, x, training):
    """Return the outputs, and in training also the gradients of all parameters."""
    with torch.set_grad_enabled(training):
        y = model(x)
        outputs = [y] if isinstance(y, torch.Tensor) else list(y)
    if not training:
        return outputs
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = sum(y.float().square().mean() for y in outputs)
    return [y.detach() for y in outputs] + list(torch.autograd.grad(loss, parameters, allow_unused=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "training", "backend"),
    [
        ("output_stride", False, "aot_eager"),
        ("features_only", False, "aot_eager"),
        ("NF-ResNet", True, "aot_eager"),
        ("NF-RegNet", True, "aot_eager"),
        ("recompute_acts", True, "aot_eager"),
        # Inductor also guards on the strides of feature maps and of the gradients of inputs.
        ("NFNet", False, "inductor"),
        ("NFNet", True, "inductor"),
    ],
)
def test_six_sizes_take_two_graphs(family, training, backend):
    name, kwargs = FAMILIES[family]
    model = as_trained(name, **kwargs).train(training)
    if backend == "inductor":  # which takes minutes for a whole network
        model = nn.Sequential(model.stem.conv1, model.stages[1])
    elif family not in ("output_stride", "features_only"):
        model = nn.Sequential(model.stem, *model.stages[:2])  # the first half compiles several times as fast
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, backend=counter)
    for i, size in enumerate(SIZES):
        x = torch.randn(2, 3, size, SIZES[-1 - i])
        found, expected = (results(m, x, training) for m in (compiled, model))
        for a, b in zip(found, expected, strict=True):
            if b is not None:  # without a head, some parameters get no gradient
                assert (a - b).norm() <= 1e-3 * b.norm() + 1e-6, size
    assert counter.frame_count == 2  # one graph for the first size, one for all others
    if backend == "aot_eager":
        results(compiled, torch.randn(3, 3, 64, 65), training)
        assert counter.frame_count <= 3  # another batch size, as at the end of an epoch
