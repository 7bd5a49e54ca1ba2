"""Several processes train to the parameters of one process on the same global batch."""

import pytest
import torch
from distributed_worker import launch, train_alone
from timm.optim import get_optimizer_class
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from nfnet_timm import adaptive_clip_grad_


def assert_close(parameters, alone):
    assert set(parameters) == set(alone)
    for name, p in alone.items():
        difference = (parameters[name].reshape(p.shape) - p).norm() / p.norm().clamp(min=1e-3)
        assert difference < 1e-5, name


@pytest.mark.slow
def test_three_steps_equal_those_of_one_process(tmp_path):
    alone = train_alone()
    for how, result in launch(tmp_path, "ddp", "fsdp2", "fsdp2-groups").items():
        assert_close(result["parameters"], alone)
        # Each process clips its own rows of kernels and matrices. All vectors together take one collective per step.
        assert result["collectives"] == ([0] * 3 if how == "ddp" else [1] * 3), how


@pytest.fixture
def process_group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_weights_of_one_process_load_into_a_sharded_network(process_group, tiny):
    """torch's set_model_state_dict shards the arrays, but not the scalars, which skip gains are in one process."""
    saved, model = tiny().state_dict(), fully_shard(tiny().vectorize_skip_gains())
    for i, (name, array) in enumerate(saved.items()):
        if name.endswith("skipinit_gain"):
            array.fill_(i)
    set_model_state_dict(model, dict(saved), options=StateDictOptions(full_state_dict=True))
    loaded = {name: p.full_tensor() for name, p in model.named_parameters()}
    for name, array in saved.items():
        assert torch.equal(loaded[name].reshape(array.shape), array), name


@pytest.mark.parametrize(
    ("shape", "placements", "refused"),
    [
        ((4, 6), [Replicate(), Shard(0)], False),
        ((6,), [Replicate(), Shard(0)], False),
        ((1, 6), [Replicate(), Shard(1)], False),  # one unit
        ((4, 6), [Replicate(), Shard(1)], True),
        ((4, 6), [Shard(0), Shard(0)], True),
    ],
)
def test_a_parameter_must_be_sharded_by_rows_over_one_dim_of_the_mesh(process_group, shape, placements, refused):
    mesh = init_device_mesh("cpu", (1, 1))
    plain = torch.nn.Parameter(torch.randn(shape))
    plain.grad = 100 * torch.randn(shape)
    sharded = torch.nn.Parameter(distribute_tensor(plain.detach().clone(), mesh, placements))
    sharded.grad = distribute_tensor(plain.grad.clone(), mesh, placements)
    if refused:
        with pytest.raises(ValueError, match=r"shape \(4, 6\) is sharded as .* expected dim 0 over one dim"):
            adaptive_clip_grad_(sharded)
    else:
        adaptive_clip_grad_(sharded)
        adaptive_clip_grad_(plain)
        torch.testing.assert_close(sharded.grad.full_tensor(), plain.grad)


def test_a_clipped_gradient_is_placed_as_its_parameter(process_group):
    """With sequence parallelism each process has a part of the sum, whose norm is not the norm of the gradient."""
    p = torch.nn.Parameter(distribute_tensor(torch.ones(6), init_device_mesh("cpu", (1,)), [Replicate()]))
    p.grad = DTensor.from_local(torch.ones(6), p.device_mesh, [Partial()])
    adaptive_clip_grad_(p)
    assert p.grad.placements == p.placements


@pytest.mark.filterwarnings("ignore")  # FSDP1 is deprecated, and shards nothing in one process
@pytest.mark.parametrize("use_orig_params", [False, True])
def test_parameters_flattened_by_fsdp1_are_refused(process_group, tiny, use_orig_params):
    model = tiny().vectorize_skip_gains()
    model = FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=use_orig_params)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    with pytest.raises(ValueError, match="was flattened by FSDP1, which leaves no rows to clip"):
        adaptive_clip_grad_(model.parameters())


def test_zero_redundancy_optimizer_clips_with_one_of_the_two_settings(process_group, tiny):
    """It keeps the arguments of the optimizer inside as its own defaults, without the ones that are left out."""
    model, other = tiny(), tiny()
    agc_sgd = get_optimizer_class("agc-sgd", bind_defaults=False)
    sharded = ZeroRedundancyOptimizer(model.parameters(), agc_sgd, lr=0.1, clip_factor=0.01)
    for network, optimizer in ((model, sharded), (other, agc_sgd(other.parameters(), lr=0.1, clip_factor=0.01))):
        for p in network.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert all(p.equal(q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
