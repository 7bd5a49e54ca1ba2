"""The networks equal the authors' code (gradients: test_optimizers.py), and timm's interface works."""

import copy
import inspect
import json
from collections import Counter, UserList

import golden
import numpy as np
import pytest
import timm
import torch
from timm.models import create_feature_extractor, model_entrypoint
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import nfnet_timm
from nfnet_timm.formats.haiku_names import from_haiku
from nfnet_timm.layers.activations import GELUTanh, ScaledAct
from nfnet_timm.models.block import NormFreeBlock
from nfnet_timm.models.signal_propagation import measure

TOLERANCE = 2e-5  # relative, L2 over L2, float32
REFERENCES = sorted(path.stem for path in golden.DATA.glob("nf*[0-9]x[0-9]*.npz"))
LARGE = ("nfnet_f1", "nfnet_f3", "nfnet_f7", "nf_resnet101")
PARITY = json.loads((golden.ROOT / "benchmarks" / "results" / "parity.json").read_text())
DEPTH1 = {"depths": (1, 1, 1, 1), "channels": (32, 32, 64, 64), "group_size": 8}


@pytest.mark.parametrize(
    "reference", [pytest.param(r, marks=[pytest.mark.slow] * r.startswith(LARGE)) for r in REFERENCES]
)
def test_logits_features_and_signal_equal_the_authors(reference, record_property):
    expected = np.load(golden.DATA / f"{reference}.npz")
    network = reference.rsplit("_", 1)[0]
    model = timm.create_model(golden.NETWORKS[network], device="meta").eval()
    model.load_state_dict(from_haiku(golden.tree(network)))
    x = golden.images(expected["input"])
    with torch.no_grad():
        features = model.forward_features(x)
        pool = model.forward_head(features, pre_logits=True)
        logits = model.forward_head(features)
    signal = measure(model, x)
    error = golden.relative_error(logits, expected["logits"])
    record_property(reference, error)  # scripts/benchmarks/parity.py collects it
    assert error < TOLERANCE
    assert PARITY[reference] / 3 < error < 3 * PARITY[reference]  # rounding differs from processor to processor
    assert golden.relative_error(pool, expected["pool"]) < TOLERANCE
    for name in ("avg_sq_mean", "avg_var", "res_avg_var"):
        values = torch.tensor(getattr(signal, name))
        assert values.shape == expected[name].shape
        assert golden.relative_error(values, expected[name]) < TOLERANCE, name


@pytest.mark.parametrize("rd_ratio", [0.5, 0.0])
def test_stochastic_depth_drops_whole_samples_without_rescaling_the_others(tiny, rd_ratio):
    model = tiny(drop_path_rate=0.6, rd_ratio=rd_ratio, depths=(1, 1, 3, 1), channels=(32, 64, 64, 96))
    blocks = [m for m in model.modules() if isinstance(m, NormFreeBlock)]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.6 * i / 6 for i in range(6)])
    block, x = blocks[3], torch.randn(32, 64, 8, 8)
    with torch.no_grad():
        kept, trained = block.eval()(x), block.train()(x)
        one_at_a_time = torch.vmap(block, randomness="different")(x[:, None])[:, 0]
    dropped = (trained == x).flatten(1).all(1)
    assert 0 < dropped.sum() < 32
    assert torch.equal(trained[~dropped], kept[~dropped])
    dropped = (one_at_a_time == x).flatten(1).all(1)
    assert 0 < dropped.sum() < 32
    torch.testing.assert_close(one_at_a_time[~dropped], kept[~dropped])


def test_timms_error_equals_the_documented_one(record_property):
    """timm's network differs in two constants, so the comparison above detects such a difference."""
    expected = np.load(golden.DATA / "nfnet_f0_64x64.npz")
    model = timm.create_model("dm_nfnet_f0", device="meta").eval()
    arrays = from_haiku(golden.tree("nfnet_f0")).items()
    model.load_state_dict({k: v[:, None, None, None] if k.endswith(".gain") else v for k, v in arrays}, assign=True)
    with torch.no_grad():
        error = golden.relative_error(model(golden.images(expected["input"])), expected["logits"])
    record_property("timm, dm_nfnet_f0_64x64", error)
    assert error == pytest.approx(PARITY["timm, dm_nfnet_f0_64x64"], rel=0.1)


@pytest.mark.parametrize("name", ["nfnet_f0", "dm_nf_resnet50", "dm_nf_regnet_b0"])
def test_the_classifier_is_exactly_nn_linear_and_initialised_as_by_the_authors(name):
    torch.manual_seed(0)
    model = timm.create_model(name, **golden.TINY | {"num_classes": 1000})
    for _ in range(2):
        assert type(copy.deepcopy(model).get_classifier()) is nn.Linear
        std = model.head.fc.weight.std().item()
        assert std == (0 if "regnet" in name else pytest.approx(0.01, rel=0.05))
        assert not model.head.fc.bias.any()
        model.reset_classifier(500)
    model.head.fc = nn.Linear(model.num_features, 1000, bias=False)
    model.init_weights()
    assert model.head.fc.weight.std().item() == (0 if "regnet" in name else pytest.approx(0.01, rel=0.05))


@pytest.mark.parametrize("head", [nn.Identity(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())])
def test_a_head_may_be_replaced_and_reset_classifier_restores_it(tiny, head):
    model, x = tiny(), torch.randn(2, 3, 32, 32)
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    model.head = head
    assert torch.equal(model(x), head(features))
    assert model.get_classifier() is head
    model.reset_classifier(np.int64(7))
    with pytest.raises(ValueError, match="num_classes=-3: expected a whole number"):
        model.reset_classifier(-3)
    assert model(x).shape == (2, model.num_classes) == (2, 7)
    assert torch.equal(model.forward_head(features, pre_logits=True), pooled)


class PassesOverMaps(TorchDispatchMode):
    """Count the operations that write a feature map of ``batch`` images with more than one pixel."""

    def __init__(self, batch: int):
        super().__init__()
        self.batch, self.counts = batch, Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        if isinstance(out, torch.Tensor) and out.dim() == 4 and out.shape[0] == self.batch and out.shape[3] > 1:
            self.counts[function.overloadpacket.__name__.rstrip("_")] += 1
        return out


@pytest.mark.parametrize(
    ("name", "act", "gates"), [("nfnet_f0", "gelu", 0), ("dm_nf_seresnet50", "relu", 0), ("dm_nf_regnet_b0", "silu", 5)]
)
def test_only_activations_and_one_multiply_add_write_maps_besides_convolutions(name, act, gates):
    """Pools and paddings are not counted. NF-RegNets multiply by each gate, because an activation comes after it."""
    model = timm.create_model(name, **DEPTH1 | {"depths": (1, 2, 1, 1)}).eval()
    model.double()  # in which each GELU is one operation
    convolutions = sum(isinstance(m, torch.nn.Conv2d) and "attn" not in n for n, m in model.named_modules())
    x = torch.randn(7, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad(), PassesOverMaps(batch=7) as passes:
        model(x)
    counts = passes.counts
    for free in ("avg_pool2d", "max_pool2d_with_indices", "constant_pad_nd"):
        counts.pop(free, None)
    # The last multiplication is the gamma of the final activation.
    activations = sum(isinstance(m, (GELUTanh, nn.ReLU, nn.SiLU)) for n, m in model.named_modules() if "attn" not in n)
    assert counts == {"convolution": convolutions, act: activations, "addcmul": 5, "mul": gates + 1}


# --- timm's interface on a tiny network; scripts/ci/timm_suite.sh runs timm's own tests on every name


@pytest.mark.parametrize("size", [(1, 1), (33, 65)])
def test_any_image_of_at_least_one_pixel_is_accepted(tiny, size):
    model = tiny()
    x = torch.randn(2, 3, *size)
    assert model.forward_features(x).shape == (2, 192, -(-size[0] // 32), -(-size[1] // 32))
    assert model(x).shape == (2, 10)


@pytest.mark.parametrize("shape", [(2, 4, 64, 64), (2, 3, 0, 64), (3, 64, 64)])
def test_other_images_are_refused_with_shape_and_remedy(tiny, shape):
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\).*in_chans=") as error:
        tiny()(torch.randn(shape))
    assert str(list(shape)) in str(error.value)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("nfnet_f0", {"output_stride": 8}),
        ("nfnet_f0", {"output_stride": 16, "feature_cls": "getter"}),
        ("nfnet_f0", {"out_indices": (1, 3)}),
        ("dm_nf_resnet50", {"output_stride": 8}),
        ("dm_nf_regnet_b0", {"output_stride": 16}),
    ],
)
def test_features_only_returns_the_maps_of_feature_info(name, arguments):
    model = timm.create_model(name, features_only=True, **DEPTH1 | {"depths": (1, 1, 2, 1)}, **arguments).eval()
    features = model(torch.randn(2, 3, 64, 64))
    assert [f.shape[1] for f in features] == model.feature_info.channels()
    assert [64 // f.shape[-1] for f in features] == model.feature_info.reduction()
    assert model.feature_info.reduction()[-1] == arguments.get("output_stride", 16)


def test_intermediates_are_those_of_the_whole_forward_pass_also_after_pruning(tiny):
    model, x = tiny(), torch.randn(2, 3, 64, 64)
    final, features = model.forward_intermediates(x)
    assert torch.equal(final, model.forward_features(x))
    assert len(features) == 5
    assert torch.equal(model.final_act(features[-1]), final)
    for index in (4, 2, 0):
        pruned = copy.deepcopy(model)
        assert pruned.prune_intermediate_layers([index]) == [index]
        (feature,) = pruned.forward_intermediates(x, [index], stop_early=True, intermediates_only=True)
        assert torch.equal(feature, features[index])
        assert pruned.num_features == model.feature_info[index]["num_chs"]
    with pytest.raises(ValueError, match="NHWC.*expected 'NCHW'"):
        model.forward_intermediates(x, output_fmt="NHWC")


def test_no_classifier_returns_pooled_features(tiny):
    model, x = tiny(num_classes=0), torch.randn(2, 3, 64, 64)
    assert model(x).shape == (2, model.num_features) == (2, 192)
    model.reset_classifier(7, "max")
    assert model(x).shape == (2, 7)
    assert model.get_classifier().out_features == 7
    assert tiny(num_classes=0, global_pool="")(x).shape == (2, 192, 2, 2)


@pytest.mark.parametrize("name", ["nfnet_f0", "dm_nf_resnet50", "dm_nf_regnet_b0"])
def test_a_sample_does_not_depend_on_its_batch_and_training_is_the_same_function_as_inference(name):
    model = timm.create_model(name, **golden.TINY | {"group_size": 8 if "resnet" not in name else None}).double()
    nn.init.normal_(model.head.fc.weight, std=0.1)
    for block in (m for m in model.modules() if isinstance(m, NormFreeBlock)):
        nn.init.ones_(block.skipinit_gain)
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(3, 3, 33, 33, dtype=torch.float64)
    x[1:] *= 100  # large samples that would change any statistic of the batch
    with torch.no_grad():
        among, alone = model.train()(x)[:1], model(x[:1])
        assert model.eval()(x[:1]).equal(alone)
    torch.testing.assert_close(among, alone, rtol=1e-9, atol=1e-11)
    assert all(p.equal(before[key]) for key, p in model.state_dict().items())


def test_checkpointing_changes_no_gradient(tiny):
    x, grads = torch.randn(2, 3, 64, 64), []
    for enable in (False, True):
        model = tiny()
        model.set_grad_checkpointing(enable)
        model(x).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


def test_the_trunk_stays_in_the_autocast_dtype(tiny):
    model, dtypes = tiny(), []
    for block in model.stages.modules():
        if isinstance(block, NormFreeBlock):
            block.register_forward_hook(lambda m, args, out: dtypes.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randn(2, 3, 64, 64))
    assert set(dtypes) == {torch.bfloat16}
    assert logits.isfinite().all()


def test_fx_gives_the_same_features(tiny):
    model, x = tiny(**DEPTH1), torch.randn(2, 3, 66, 50)
    traced = create_feature_extractor(model, {"stages.1": "stage", "final_act": "map"})(x)
    stage = model.stages[:2](model.stem(x))
    torch.testing.assert_close(traced, {"stage": stage, "map": model.forward_features(x)}, rtol=0, atol=0)


def test_vectorized_skip_gains_load_either_shape_and_are_trained_by_an_optimizer_built_before(tiny):
    model, vectorized, x = tiny(**DEPTH1), tiny(**DEPTH1), torch.randn(2, 3, 32, 32)
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.1) for network in (model, vectorized)]
    assert vectorized.vectorize_skip_gains() is vectorized
    assert torch.equal(vectorized(x), model(x))
    vectorized.load_state_dict(model.state_dict())
    model.load_state_dict(vectorized.state_dict())
    for network, optimizer in zip((model, vectorized), optimizers, strict=True):
        for _ in range(2):
            optimizer.zero_grad()
            network(x).square().sum().backward()
            optimizer.step()
    gain, of_shape_1 = (network.stages[1][0].skipinit_gain for network in (model, vectorized))
    assert gain != 0.7
    assert (gain.shape, of_shape_1.shape) == ((), (1,))
    torch.testing.assert_close(of_shape_1[0], gain)


# --- wrong arguments


@pytest.mark.parametrize("kind", [ValueError, TypeError])  # TypeError: as in timm's own models
def test_a_misspelt_argument_is_reported_with_all_arguments(kind):
    with pytest.raises(kind, match="unknown argument recompute_act=True: .*depths, channels.*act_layer") as raised:
        timm.create_model("nfnet_f0", recompute_act=True)
    arguments = set(inspect.signature(nfnet_timm.NormFreeNet).parameters) - {"cfg", "device", "dtype", "kwargs"}
    assert [name for name in arguments if name not in str(raised.value).split("expected")[1]] == []


def test_arguments_may_be_other_sequences_and_integers():
    depths = UserList([np.int64(1)] * 4)  # Hydra's ListConfig is such a sequence
    counts = {"group_size": np.int64(8), "num_classes": np.int64(5), "in_chans": np.int64(1)}
    model = timm.create_model("nfnet_f0", **{**DEPTH1, "depths": depths, **counts})
    assert model(torch.randn(1, 1, 32, 32)).shape == (1, 5)
    found = [*model.cfg.depths, model.cfg.group_size, model.num_classes, model.in_chans, model.stem.conv1.in_channels]
    assert {type(value) for value in found} == {int}  # config.json takes no other


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"act_layer": "mish"}, r"act_layer='mish' has no gamma.*gelu_tanh"),
        ({"depths": (1, 2, 6)}, r"depths=\(1, 2, 6\).*four"),
        ({"depths": 3}, r"depths=3: expected"),
        ({"depths": "1263"}, r"depths='1263': expected"),
        ({"channels": (32.5, 64, 64, 64)}, r"channels\[0\]=32.5: expected a whole number"),
        ({"group_size": 4096}, r"group_size=4096 leave no channels.*smaller group_size"),
        ({"stem_type": "4x4"}, r"stem_type='4x4': expected one of deep_quad, 3x3, 7x7_pool"),
        ({"output_stride": 4}, r"output_stride=4: expected 8, 16 or 32"),
        ({"width_factor": 0}, r"width_factor=0 give.* expected"),
        *(
            ({name: value}, rf"{name}={value!r}: expected")
            for name, value in {
                "in_chans": 0,
                "num_classes": 2.5,
                "group_size": -8,
                "num_features": -1,
                "rd_ratio": -0.5,
                "alpha": float("nan"),
                "drop_path_rate": 2,
                "drop_rate": "a",
            }.items()
        ),
    ],
)
def test_invalid_values_are_reported_with_the_expected_ones(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("nfnet_f0", device="meta", **kwargs)


def test_gamma_gives_unit_variance():
    z = torch.randn(10**6)
    for name in ("celu", "elu", "gelu", "leaky_relu", "relu", "selu", "silu", "softplus"):
        assert ScaledAct(name)(z).std().item() == pytest.approx(1, abs=0.01), name


@pytest.mark.parametrize("kwargs", [{"num_classes": 10}, {"features_only": True}], ids=str)
def test_timms_own_function_does_not_load_the_weights_of_this_network(kwargs):
    from timm.models import nfnet

    assert model_entrypoint("nfnet_f0") is nfnet_timm.models.nfnet.nfnet_f0
    assert timm.models.nfnet_f0 is nfnet.nfnet_f0
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        nfnet.nfnet_f0(pretrained=True, device="meta", **kwargs)
    assert not nfnet.nfnet_f0(device="meta", **kwargs).pretrained_cfg.get("hf_hub_id")
