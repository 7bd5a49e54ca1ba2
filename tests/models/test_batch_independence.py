"""Unlike with batch norm, a sample does not depend on its batch, and training and inference are the same function."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F

SMALL = {"depths": (1, 1, 1, 1), "channels": (32, 64, 96, 96), "num_classes": 10}
NETWORKS = [
    ("nfnet_f0", {**SMALL, "group_size": 8}),
    ("dm_nf_resnet50", SMALL),
    ("dm_nf_regnet_b0", {"num_classes": 10}),
]


def network(name, kwargs, **more):
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs, **more).double()
    for key, p in model.named_parameters():
        if key.endswith("skipinit_gain"):
            torch.nn.init.constant_(p, 0.5)
    torch.nn.init.normal_(model.head.fc.weight, std=0.1)
    return model


@pytest.mark.parametrize(("name", "kwargs"), NETWORKS)
def test_output_and_gradient_of_a_sample_do_not_depend_on_the_rest_of_the_batch(name, kwargs):
    model = network(name, kwargs).train()
    x = torch.randn(6, 3, 64, 64, dtype=torch.float64)
    x[3:] *= 100  # large samples that would change any statistic of the batch

    def of_first(images):
        images = images.clone().requires_grad_()
        out = model(images)
        loss = F.cross_entropy(out[:1], torch.tensor([3]))
        return out[0], *torch.autograd.grad(loss, [images, *model.parameters()], allow_unused=True)

    alone, among = of_first(x[:1]), of_first(x)
    torch.testing.assert_close(among[0], alone[0], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(among[1][:1], alone[1], rtol=1e-8, atol=1e-11)
    assert not among[1][1:].any()  # the other samples get no gradient
    for with_others, without in zip(among[2:], alone[2:], strict=True):
        torch.testing.assert_close(with_others, without, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("name", "kwargs"), NETWORKS)
def test_training_and_inference_are_the_same_function(name, kwargs):
    """Dropout and stochastic depth are off here. A forward pass in training mode changes no statistics."""
    model = network(name, kwargs, drop_path_rate=0.0, drop_rate=0.0).train()
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        in_training = model(x)
        model(100 * x)  # would change running statistics
        assert model.eval()(x).equal(in_training)
    assert all(p.equal(before[key]) for key, p in model.state_dict().items())
