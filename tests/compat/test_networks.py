"""Libraries that take a network apart, adapt it, quantize it, or run it elsewhere."""

import copy

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from compat_table import images_and_labels
from timm.utils import reparameterize_model
from torch import nn

import nfnet_timm
from nfnet_timm.optim import create_optimizer


def trained(model, loss_of, steps, lr):
    """Return the loss at the first and at the last step."""
    optimizer = torch.optim.AdamW([p for p in model.train().parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


@pytest.mark.library("segmentation-models-pytorch")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_segmentation_models_train_on_its_feature_maps():
    """segmentation_models_pytorch has the networks as encoders, `tu-nfnet_f0`, and trains a U-Net on them."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = smp.Unet("tu-dm_nf_regnet_b0", encoder_weights=None, classes=1)
    assert type(model.encoder.model).__module__.startswith(("nfnet_timm", "timm.models._features"))
    x, _ = images_and_labels(4, size=64)
    masks = (x[:, :1] > 0.5).float()
    first, last = trained(model, lambda: F.binary_cross_entropy_with_logits(model(x), masks), 6, lr=1e-3)
    assert last < 0.8 * first


@pytest.mark.library("peft")
def test_low_rank_adapters_train_and_merge(tiny):
    """peft's LoRA on the convolutions of a reparameterized network trains, and merges within 1e-5."""
    peft = pytest.importorskip("peft")
    x, y = images_and_labels(32)
    model = tiny(num_classes=10)
    plain = copy.deepcopy(model)
    folded = reparameterize_model(model)
    targets = [name for name, m in folded.named_modules() if type(m) is nn.Conv2d and m.groups == 1]
    assert {name.split(".")[-1] for name in targets} >= {"conv1", "conv3", "conv"}
    adapted = peft.get_peft_model(folded, peft.LoraConfig(r=4, target_modules=targets))
    first, last = trained(adapted, lambda: F.cross_entropy(adapted(x), y), 8, lr=1e-2)
    assert last < first
    adapted.eval()
    with torch.no_grad():
        logits = adapted(x)
        merged = adapted.merge_and_unload()(x)
        assert not torch.allclose(logits, plain(x), atol=1e-2)
    torch.testing.assert_close(merged, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.library("torchao")
def test_int8_agrees_on_the_class(tiny):
    """torchao quantizes only the classifier to int8, no convolution; over 99 % of new digits keep their class."""
    torchao = pytest.importorskip("torchao")
    x, y = images_and_labels(1200)
    model = tiny(depths=(1, 1, 1, 1)).train()
    optimizer = create_optimizer(model, "sgd", lr=0.1, momentum=0.9, clip_factor=0.05)
    for _ in range(6):
        for batch in torch.randperm(1000).split(100):
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
    model, x = model.eval(), x[1000:]
    with torch.no_grad():
        expected = model(x).argmax(1)
        folded = reparameterize_model(model)
        torchao.quantization.quantize_(folded, torchao.quantization.Int8WeightOnlyConfig())
        agreement = (folded(x).argmax(1) == expected).float().mean().item()
    assert agreement > 0.99
    assert [name for name, p in folded.named_parameters() if type(p) is not nn.Parameter] == ["head.fc.weight"]


@pytest.mark.library("openvino")
@pytest.mark.filterwarnings("ignore")  # of tracing and of both exporters
@pytest.mark.parametrize(
    ("source", "name", "kwargs"),
    [
        ("trace", "dm_nf_resnet50", {}),
        ("torch.export", "nfnet_f0", {"group_size": 8, "output_stride": 16}),
        ("ONNX", "nfnet_f0", {"group_size": 8}),
    ],
)
def test_openvino_takes_any_size(name, kwargs, source, tmp_path):
    """OpenVINO runs a network that was traced or exported at one size at every other, odd or even, within 1e-5."""
    openvino = pytest.importorskip("openvino")
    model = timm.create_model(name, depths=(1, 1, 1, 1), channels=(32, 64, 96, 96), num_classes=10, **kwargs).eval()
    for key, p in model.named_parameters():
        if key.endswith(("gain", "bias")):
            nn.init.uniform_(p, 0.5, 1.5)
    x, path = torch.randn(2, 3, 75, 66), tmp_path / "model.onnx"
    sizes = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    if source == "trace":
        model = nfnet_timm.reparameterize(model)
        converted = openvino.convert_model(model, example_input=x)
    elif source == "torch.export":
        converted = openvino.convert_model(torch.export.export(model, (x,), dynamic_shapes=(sizes,)))
    else:
        axes = {"input": {2: "height", 3: "width"}}
        torch.onnx.export(model, (x,), path, dynamo=False, input_names=["input"], dynamic_axes=axes)
        converted = openvino.convert_model(path)
    compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.no_grad():
        for size in [(64, 64), (97, 65), (33, 47)]:
            x = torch.randn(2, 3, *size)
            found, expected = next(iter(compiled([x.numpy()]).values())), model(x).numpy()
            assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected), size


@pytest.mark.library("torchvision")
def test_torchvision_cannot_trace_them_and_timm_can(tiny):
    """create_feature_extractor does NOT take them, nor timm's own; timm's `features_only=True` is for that."""
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    for model in (tiny(), timm.create_model("dm_nfnet_f0", device="meta")):
        with pytest.raises(Exception, match=r"."):
            extraction.create_feature_extractor(model, ["stages.1"])
    assert len(timm.create_model("dm_nf_regnet_b0", features_only=True)(torch.randn(1, 3, 64, 64))) == 5
