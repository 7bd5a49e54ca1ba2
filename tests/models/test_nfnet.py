"""The networks equal the authors' code, the comparison detects mistakes, and timm's interface works."""

import copy
import functools
import json
from collections import Counter

import golden
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import create_feature_extractor, model_entrypoint
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nfnet_timm.formats.haiku_names import from_haiku, to_haiku
from nfnet_timm.layers.activations import GELUTanh
from nfnet_timm.layers.ws_conv import WSConv2d
from nfnet_timm.models.block import NormFreeBlock
from nfnet_timm.models.nfnet import NormFreeNet
from nfnet_timm.models.signal_propagation import measure

TOLERANCE = 2e-5  # relative, L2 over L2, float32
REFERENCES = sorted(path.stem for path in golden.DATA.glob("nf*[0-9]x[0-9]*.npz"))
LARGE = ("nfnet_f1", "nfnet_f3", "nfnet_f7", "nf_resnet101")
PARITY = json.loads((golden.ROOT / "benchmarks" / "results" / "parity.json").read_text())
DEPTH1 = {"depths": (1, 1, 1, 1), "channels": (32, 32, 64, 64), "group_size": 8}


@functools.lru_cache(maxsize=1)
def state_dict(network: str) -> dict[str, torch.Tensor]:
    return from_haiku(golden.tree(network))


def load(network: str) -> NormFreeNet:
    model = timm.create_model(golden.NETWORKS[network], device="meta").eval()
    model.load_state_dict(state_dict(network))
    return model


def logits_error(model: NormFreeNet, reference: str) -> float:
    expected = np.load(golden.DATA / f"{reference}.npz")
    with torch.no_grad():
        return golden.relative_error(model(golden.images(expected["input"])), expected["logits"])


@pytest.mark.parametrize(
    "reference", [pytest.param(r, marks=[pytest.mark.slow] * r.startswith(LARGE)) for r in REFERENCES]
)
def test_logits_features_and_signal_equal_the_authors(reference, record_property):
    expected = np.load(golden.DATA / f"{reference}.npz")
    model = load(reference.rsplit("_", 1)[0])
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


def swapped_kernel_axes(model):
    for module in model.modules():
        if isinstance(module, WSConv2d):
            module.weight.data = module.weight.data.transpose(2, 3)


def eps_added(model):
    def standardized_weight(self):
        weight = self.weight.flatten(1)
        centred = weight - weight.mean(1, keepdim=True)
        scale = self.gain * self.scale * torch.rsqrt(centred.square().sum(1) + self.eps)
        return (centred * scale.unsqueeze(1)).view_as(self.weight)

    for module in model.modules():
        if isinstance(module, WSConv2d):
            module.standardized_weight = functools.partial(standardized_weight, module)


def symmetric_padding(model):
    def forward(self, x):
        padding = self.kernel_size[0] // 2
        return F.conv2d(x, self.standardized_weight(), self.bias, self.stride, padding, self.dilation, self.groups)

    for module in model.modules():
        if isinstance(module, WSConv2d):
            module.forward = functools.partial(forward, module)


def erf_gelu(model):
    for module in model.modules():
        if isinstance(module, GELUTanh):
            module.forward = F.gelu


@pytest.mark.parametrize("mistake", [swapped_kernel_axes, eps_added, symmetric_padding, erf_gelu])
def test_the_comparison_detects_a_mistake(mistake):
    model = load("nfnet_f0")
    mistake(model)
    assert logits_error(model, "nfnet_f0_64x64") > 5 * TOLERANCE


def kept_samples_are_unscaled(model) -> bool:
    """Return whether each sample in training mode equals either its output in eval mode or its shortcut."""
    block = model.stages[2][1]
    x = torch.randn(32, 64, 8, 8)
    with torch.no_grad():
        kept, trained = block.eval()(x), block.train()(x)
    dropped = (trained == x).flatten(1).all(1)
    assert 0 < dropped.sum() < 32
    return torch.equal(trained[~dropped], kept[~dropped])


def test_stochastic_depth_drops_without_rescaling_and_the_check_detects_rescaling(tiny):
    model = tiny(drop_path_rate=0.6, depths=(1, 1, 3, 1), channels=(32, 64, 64, 96))
    assert kept_samples_are_unscaled(model)
    for module in model.modules():
        if isinstance(module, DropPath):
            module.scale_by_keep = True
    assert not kept_samples_are_unscaled(model)


def test_stochastic_depth_rates_grow_with_the_index_over_all_blocks(tiny):
    blocks = [m for m in tiny(drop_path_rate=0.3).modules() if isinstance(m, NormFreeBlock)]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.3 * i / 6 for i in range(6)])


def test_stochastic_depth_without_squeeze_excite_drops_whole_samples(tiny):
    block = tiny(drop_path_rate=0.9, rd_ratio=0.0).stages[3][0].train()
    x = torch.randn(64, 96, 4, 4)
    residual = (block(x) - block.downsample(block.act1(x))).flatten(1).abs().amax(1)
    assert 0 < int((residual < 1e-6).sum()) < 64


def test_gradients_equal_the_authors():
    expected = np.load(golden.DATA / "nfnet_tiny_train.npz")
    model = timm.create_model("nfnet_f0", **golden.TINY)
    model.load_state_dict(from_haiku(golden.tree("nfnet_tiny_train")))
    loss = F.cross_entropy(model(golden.images(expected["input"])), torch.from_numpy(expected["labels"]).long())
    loss.backward()
    assert loss.item() == pytest.approx(expected["losses"][0], rel=1e-5)
    grads = to_haiku({name: p.grad for name, p in model.named_parameters()})
    names = [key for key in expected.files if key.startswith("grad0/")]
    assert len(names) == sum(map(len, grads.values())) == 131
    for key in names:
        module, param = key.removeprefix("grad0/").split("::")
        error = golden.relative_error(torch.from_numpy(grads[module][param]), expected[key])
        assert error < 1e-4, key


# timm's network differs in two constants. If no variance is small, the difference is as small as a rounding error.
def test_timms_error_equals_the_documented_one(record_property):
    model = timm.create_model("dm_nfnet_f0", device="meta").eval()
    arrays = state_dict("nfnet_f0").items()
    arrays = {k: v[:, None, None, None] if k.endswith(".gain") else v for k, v in arrays}
    model.load_state_dict(arrays, assign=True)
    error = logits_error(model, "nfnet_f0_64x64")
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


HEADS = {
    "layers": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(192, 7)),
    "nothing": nn.Identity,
    "timm's": lambda: timm.layers.NormMlpClassifierHead(192, 7),
    "pooling": lambda: timm.layers.SelectAdaptivePool2d(flatten=True),
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_a_head_may_be_replaced(tiny, head):
    model, x = tiny(), torch.randn(2, 3, 32, 32)
    features = model.forward_features(x)
    model.head = head().eval()
    assert torch.equal(model(x), model.head(features))
    assert torch.equal(model.forward_head(features), model.head(features))
    model.get_classifier()


def test_reset_classifier_restores_a_replaced_head(tiny):
    model, x = tiny(), torch.randn(2, 3, 32, 32)
    expected = model.forward_head(model.forward_features(x), pre_logits=True)
    model.head = nn.Identity()
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    assert torch.equal(model.forward_head(model.forward_features(x), pre_logits=True), expected)


def test_the_number_of_classes_may_be_one_of_numpy(tiny):
    model = tiny()
    model.reset_classifier(np.int64(7))
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 7)


@pytest.mark.parametrize("num_classes", [-3, 2.5, "7"])
def test_an_invalid_number_of_classes_leaves_the_classifier(tiny, num_classes):
    model = tiny()
    with pytest.raises(ValueError, match=rf"num_classes={num_classes!r}: expected a whole number"):
        model.reset_classifier(num_classes)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, model.num_classes)


def test_variance_grows_by_alpha_squared_and_resets_in_each_stage():
    torch.manual_seed(0)
    model = timm.create_model("dm_nf_resnet50").eval()
    for name, p in model.named_parameters():
        if name.endswith("skipinit_gain"):
            torch.nn.init.ones_(p)
    signal = measure(model, torch.randn(4, 3, 128, 128))
    expected = [1 + 0.2**2 * (i + 1) for depth in (3, 4, 6, 3) for i in range(depth)]  # arXiv 2101.08692, section 3
    assert signal.avg_var[1:] == pytest.approx(expected, rel=0.1)


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


@pytest.mark.parametrize("reparameterized", [False, True])
@pytest.mark.parametrize(
    ("name", "act", "gates"), [("nfnet_f0", "gelu", 0), ("dm_nf_seresnet50", "relu", 0), ("dm_nf_regnet_b0", "silu", 5)]
)
def test_only_activations_and_one_multiply_add_write_maps_besides_convolutions(name, act, gates, reparameterized):
    """Pools and paddings are not counted. NF-RegNets multiply by each gate, because an activation comes after it."""
    model = timm.create_model(name, **DEPTH1 | {"depths": (1, 2, 1, 1)}).eval()
    model.double()  # in which each GELU is one operation
    if reparameterized:
        model.reparameterize()
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


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (33, 65), (64, 64)])
def test_any_image_of_at_least_one_pixel_is_accepted(tiny, size):
    model = tiny()
    x = torch.randn(2, 3, *size)
    assert model.forward_features(x).shape == (2, 192, -(-size[0] // 32), -(-size[1] // 32))
    assert model(x).shape == (2, 10)


@pytest.mark.parametrize("shape", [(2, 4, 64, 64), (2, 1, 64, 64), (2, 3, 0, 64), (3, 64, 64)])
def test_other_images_are_refused_with_shape_and_remedy(tiny, shape):
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\).*in_chans=") as error:
        tiny()(torch.randn(shape))
    assert str(list(shape)) in str(error.value)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_output_stride_sets_the_resolution_of_every_family(output_stride):
    for name in ("nfnet_f0", "dm_nf_resnet50", "dm_nf_regnet_b0"):
        small = {**DEPTH1, "depths": (1, 1, 2, 1)}
        model = timm.create_model(name, features_only=True, output_stride=output_stride, **small).eval()
        sizes = [f.shape[-1] for f in model(torch.randn(1, 3, 64, 64))]
        assert sizes == [64 // r for r in model.feature_info.reduction()]
        assert sizes[-1] == 64 // output_stride


@pytest.mark.parametrize("extra", [{"feature_cls": "list"}, {"feature_cls": "getter"}, {"out_indices": (1, 3)}, {}])
def test_features_only_returns_the_maps_of_feature_info(tiny, extra):
    model = tiny(features_only=True, **extra)
    features = model(torch.randn(2, 3, 64, 64))
    assert [f.shape[1] for f in features] == model.feature_info.channels()
    assert [64 // f.shape[-1] for f in features] == model.feature_info.reduction()


def test_intermediates_are_those_of_the_whole_forward_pass(tiny):
    model, x = tiny(), torch.randn(2, 3, 64, 64)
    final, features = model.forward_intermediates(x)
    assert torch.equal(final, model.forward_features(x))
    assert len(features) == 5
    assert torch.equal(model.final_act(features[-1]), final)
    with pytest.raises(ValueError, match="NHWC.*expected 'NCHW'"):
        model.forward_intermediates(x, output_fmt="NHWC")


def test_pruning_does_not_change_feature_maps(tiny):
    model, x = tiny(), torch.randn(2, 3, 64, 64)
    expected = model.forward_intermediates(x, intermediates_only=True)
    for index in (4, 2, 0):
        pruned = copy.deepcopy(model)
        assert pruned.prune_intermediate_layers([index]) == [index]
        (feature,) = pruned.forward_intermediates(x, [index], stop_early=True, intermediates_only=True)
        assert torch.equal(feature, expected[index])
        assert pruned.num_features == model.feature_info[index]["num_chs"]


def test_no_classifier_returns_pooled_features(tiny):
    model, x = tiny(num_classes=0), torch.randn(2, 3, 64, 64)
    assert model(x).shape == (2, model.num_features) == (2, 192)
    model.reset_classifier(7, "max")
    assert model(x).shape == (2, 7)
    assert model.get_classifier().out_features == 7
    assert tiny(num_classes=0, global_pool="")(x).shape == (2, 192, 2, 2)


def test_checkpointing_changes_no_gradient(tiny):
    x, grads = torch.randn(2, 3, 64, 64), []
    for enable in (False, True):
        model = tiny()
        model.set_grad_checkpointing(enable)
        model(x).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


def test_half_precision_weights_are_standardized_in_float32(tiny):
    conv = tiny().stages[2][1].conv2
    exact = conv.standardized_weight()
    rounded = copy.deepcopy(conv).bfloat16()
    reference = copy.deepcopy(rounded).float().standardized_weight().bfloat16()
    assert rounded.standardized_weight().dtype == torch.bfloat16
    assert torch.equal(rounded.standardized_weight(), reference)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conv.standardized_weight(), exact)


def test_the_trunk_stays_in_the_autocast_dtype(tiny):
    model, dtypes = tiny(), []
    for block in model.stages.modules():
        if isinstance(block, NormFreeBlock):
            block.register_forward_hook(lambda m, args, out: dtypes.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randn(2, 3, 64, 64))
    assert set(dtypes) == {torch.bfloat16}
    assert logits.isfinite().all()


@pytest.fixture(params=["as trained", "reparameterized"])
def built(tiny, request):
    """Build a tiny network for training, or reparameterized for inference."""
    return lambda: tiny(**DEPTH1) if request.param == "as trained" else tiny(**DEPTH1).reparameterize()


def test_fx_gives_the_same_features(built):
    model, x = built(), torch.randn(2, 3, 66, 50)
    traced = create_feature_extractor(model, {"stages.1": "stage", "final_act": "map"})(x)
    stage = model.stages[:2](model.stem(x))
    torch.testing.assert_close(traced, {"stage": stage, "map": model.forward_features(x)}, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")  # all of torch.jit is
def test_torchscript_gives_the_same_logits(built):
    model, x = built(), torch.randn(2, 3, 65, 50)
    scripted = torch.jit.script(model)
    assert torch.allclose(scripted(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_stochastic_depth_compiles_without_a_graph_break(tiny):
    model = tiny(drop_path_rate=0.2, **DEPTH1).train()
    torch.compile(model, fullgraph=True, backend="eager")(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_exports_with_a_dynamic_batch(built):
    model = built()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(2, 3, 64, 64),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 3, 64, 64)
    assert torch.allclose(program.module()(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("nfnet_f0", "scripted"),
        ("nfnet_f0", "traced"),
        ("dm_nf_seresnet50", "traced"),
        ("dm_nf_regnet_b0", "scripted"),
    ],
)
def test_torch_optimizes_for_inference(name, how):
    """Activations go to oneDNN, which lacks the tanh form of GELU. Without our view, the process crashes."""
    model = timm.create_model(name, **DEPTH1 | {"num_classes": 10}).eval()
    nn.init.normal_(model.head.fc.weight, std=0.1)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        module = torch.jit.script(model) if how == "scripted" else torch.jit.trace(model, x)
        optimized = torch.jit.optimize_for_inference(module)
        for size in [(64, 64), (64, 64), (75, 49)]:
            x = torch.randn(2, 3, *size)
            assert golden.relative_error(optimized(x), model(x).numpy()) < 1e-5


@pytest.mark.parametrize("steps", [0, 1])
def test_vectorized_skip_gains_are_trained(tiny, steps):
    """Also by an optimizer that was built before they were vectorized."""
    x, gains = torch.randn(2, 3, 32, 32), []
    for vectorize in (False, True):
        model = tiny()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(3):
            if vectorize and step == steps:
                model.vectorize_skip_gains()
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        gains.append(model.stages[1][0].skipinit_gain.detach())
    assert gains[1].shape == (1,)
    assert gains[0] != 0.7
    torch.testing.assert_close(gains[1][0], gains[0])


def test_timm_decays_neither_gains_nor_biases_nor_skip_gains(tiny):
    from timm.optim import param_groups_weight_decay

    model = tiny()
    no_decay, decay = param_groups_weight_decay(model, weight_decay=0.1)
    assert no_decay["weight_decay"] == 0
    assert len(decay["params"]) == sum(name.endswith("weight") for name, _ in model.named_parameters())


# --- wrong arguments


def test_an_unknown_field_is_reported_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown argument width=2: .*depths, channels.*act_layer"):
        timm.create_model("nfnet_f0", width=2)
    with pytest.raises(TypeError):  # as in timm's own models
        timm.create_model("nfnet_f0", width=2)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"act_layer": "mish"}, r"act_layer='mish' has no gamma.*gelu_tanh"),
        ({"act_layer": torch.nn.ReLU}, r"has no gamma"),
        ({"depths": (1, 2, 6)}, r"depths=\(1, 2, 6\).*four"),
        ({"channels": (256, 0, 1536, 1536)}, r"channels=\(256, 0, 1536, 1536\).*at least 1"),
        ({"group_size": 4096}, r"group_size=4096.*smaller group_size"),
        ({"group_size": 0, "bottle_ratio": 1e-3}, r"too narrow for one channel.*larger bottle_ratio"),
        ({"stem_type": "4x4"}, r"stem_type='4x4': expected one of deep_quad, 3x3, 7x7_pool"),
        ({"output_stride": 4}, r"output_stride=4: expected 8, 16 or 32"),
        *(
            ({name: value}, rf"{name}={value!r}:? .*expected")
            for name, values in {
                "in_chans": (0, -1, 1.5),
                "num_classes": (-1, 2.5, True),
                "group_size": (-8, 8.0),
                "stem_chs": (0, -4),
                "num_features": (-1,),
                "width_factor": (0, -1, float("nan")),
                "bottle_ratio": (0, -0.5),
                "rd_ratio": (-0.5,),
                "alpha": (float("nan"), float("inf"), -1),
                "drop_path_rate": (-0.1, 2, float("nan"), "a"),
                "drop_rate": (1.5, "a"),
                "depths": (3,),
                "dtype": (torch.complex64, torch.int8, "float32"),
            }.items()
            for value in values
        ),
        ({"depths": (1.5, 1, 1, 1)}, r"depths=\(1.5, 1, 1, 1\).*whole numbers"),
        ({"channels": (32.5, 64, 64, 64)}, r"channels=\(32.5, 64, 64, 64\).*whole numbers"),
    ],
)
def test_invalid_values_are_reported_with_the_expected_ones(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("nfnet_f0", device="meta", **kwargs)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_complex_weights_are_refused_by_their_dtype(tiny):
    with pytest.raises(ValueError, match=r"complex64"):
        tiny().to(torch.complex64)(torch.randn(1, 3, 32, 32, dtype=torch.complex64))


@pytest.mark.parametrize("act_layer", sorted({"celu", "elu", "gelu", "leaky_relu", "relu", "selu", "silu", "softplus"}))
def test_gamma_gives_unit_variance(act_layer):
    from nfnet_timm.layers.activations import ScaledAct

    z = torch.randn(10**6, generator=torch.Generator().manual_seed(0))
    assert ScaledAct(act_layer)(z).std().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("kwargs", [{}, {"num_classes": 0}, {"num_classes": 10}, {"features_only": True}], ids=str)
def test_timms_own_function_does_not_load_the_weights_of_this_network(kwargs):
    from timm.models import nfnet

    assert timm.models.nfnet_f0 is nfnet.nfnet_f0
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        nfnet.nfnet_f0(pretrained=True, device="meta", **kwargs)
    assert not nfnet.nfnet_f0(device="meta", **kwargs).pretrained_cfg.get("hf_hub_id")


def test_entrypoints_are_functions_of_the_module():
    from nfnet_timm.models import nfnet

    assert model_entrypoint("nfnet_f0") is nfnet.nfnet_f0
    assert nfnet.nfnet_f0.__doc__
