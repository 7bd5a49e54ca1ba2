"""Pretrained weights load through timm's usual path, from a Hub cache in the Hub's own layout."""

import json
from pathlib import Path

import golden
import huggingface_hub
import pytest
import timm
import torch
from hub_cache import fill_hub_cache
from safetensors.torch import save_file

from nfnet_timm.models.state_dict import infer_variant
from nfnet_timm.models.variants import VARIANTS
from nfnet_timm.publish.card import multiply_adds
from nfnet_timm.publish.checkpoints import load_published

COUNTS = json.loads((golden.DATA / "parameter_counts.json").read_text())
SMALL = {"depths": (1, 1, 1, 1), "channels": (32, 64, 96, 96), "group_size": 8, "stem_chs": 128}
TIMMS = {**SMALL, "num_features": 192}  # the same sizes in timm's network


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """Make a cache with timm/dm_nfnet_f0.dm_in1k: timm's network with random weights and gains of (O, 1, 1, 1)."""
    home = tmp_path_factory.mktemp("hf")
    torch.manual_seed(0)
    model = timm.create_model("dm_nfnet_f0", **TIMMS)
    for p in model.parameters():
        torch.nn.init.uniform_(p, -0.1, 0.1)
    fill_hub_cache(home, "dm_nfnet_f0.dm_in1k", model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
        yield home / "hub"


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("nfnet_f0", {"in_chans": 4, "num_classes": 10}),
        ("nfnet_f0.dm_in1k", {"num_classes": 0}),
        ("nfnet_f0", {"features_only": True, "in_chans": 1, "out_indices": [1, 3]}),
    ],
)
def test_the_hub_cache_gives_the_weights_that_timm_loads(cached, name, kwargs):
    model = timm.create_model(name, pretrained=True, **SMALL, **kwargs).eval()
    theirs = timm.create_model("dm_nfnet_f0", pretrained=True, **TIMMS, **kwargs)
    ours = dict(model.named_parameters())
    assert ours.keys() == dict(theirs.named_parameters()).keys()
    different = [name for name, p in theirs.named_parameters() if not ours[name].equal(p.view_as(ours[name]))]
    new_head = "num_classes" in kwargs and kwargs["num_classes"]
    assert different == (["head.fc.weight"] if new_head else [])  # timm's is drawn from another distribution
    assert all(p.requires_grad and p.device.type == "cpu" and p.isfinite().all() for p in ours.values())
    if new_head:
        assert ours["head.fc.weight"].std().item() == pytest.approx(0.01, rel=0.05)
    model(torch.randn(1, kwargs.get("in_chans", 3), 64, 64))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists the mapped files of a process")
def test_weights_in_the_cache_are_memory_mapped(cached):
    model = timm.create_model("nfnet_f0", pretrained=True, **SMALL)
    lines = Path("/proc/self/maps").read_text().splitlines()
    files = [line.split()[0].split("-") for line in lines if str(cached) in line]
    mapped = [(int(first, 16), int(last, 16)) for first, last in files]
    assert all(any(a <= p.data_ptr() < b for a, b in mapped) for p in model.parameters())


def test_weights_are_those_of_timms_repositories():
    same = ("input_size", "test_input_size", "pool_size", "crop_pct", "crop_mode", "mean", "std", "interpolation")
    for name in (f"nfnet_f{index}" for index in range(7)):
        cfg, theirs = timm.get_pretrained_cfg(name), timm.get_pretrained_cfg(f"dm_{name}")
        assert cfg.tag == theirs.tag == "dm_in1k"
        assert cfg.hf_hub_id == f"timm/dm_{name}.dm_in1k"
        assert {field: getattr(cfg, field) for field in same} == {field: getattr(theirs, field) for field in same}
    assert not timm.get_pretrained_cfg("nfnet_f7").hf_hub_id


# --- files and state dicts


@pytest.fixture
def saved(tiny, tmp_path):
    """Return a tiny network and a file with its weights."""
    model = tiny()
    path = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), path)
    return model, path


def load(source, **kwargs):
    """Build a tiny network with the weights of a file or a state dict."""
    overlay = {"state_dict": source} if isinstance(source, dict) else {"file": str(source)}
    overlay["num_classes"] = 10
    return timm.create_model("nfnet_f0", pretrained=True, pretrained_cfg_overlay=overlay, **{**golden.TINY, **kwargs})


def test_a_loaded_file_may_be_overwritten(saved):
    """If the file were memory-mapped, the process would crash when the file becomes shorter."""
    model, path = saved
    loaded = load(path)
    path.write_bytes(b"")
    for name, p in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), p)


def test_training_does_not_change_a_callers_state_dict(tiny):
    state_dict = tiny().state_dict()
    before = {k: v.clone() for k, v in state_dict.items()}
    for p in load(state_dict).parameters():
        p.data.add_(1)
    assert all(torch.equal(state_dict[k], before[k]) for k in before)


def test_dtype_and_device_are_kept(saved):
    assert {p.dtype for p in load(saved[1], dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
    with torch.device("meta"):
        assert {p.device.type for p in load(saved[1]).parameters()} == {"meta"}


@pytest.mark.parametrize(
    "kwargs",
    [{"num_classes": 3, "in_chans": 5}, {"num_classes": 3, "global_pool": "catavgmax"}, {"num_classes": 0}],
    ids=str,
)
def test_a_new_classifier_of_any_shape_is_initialised(saved, kwargs):
    loaded = load(saved[1], **kwargs)
    assert loaded(torch.randn(1, kwargs.get("in_chans", 3), 32, 32)).shape == (1, kwargs["num_classes"] or 192)
    if kwargs["num_classes"]:
        assert loaded.head.fc.weight.std().item() == pytest.approx(0.01, rel=0.2)


def test_a_classifier_that_is_loaded_must_fit(saved):
    with pytest.raises(ValueError, match=r"head.fc.weight has shape \(10, 192\), expected \('classes', 384\)"):
        load(saved[1], global_pool="catavgmax")


def test_the_first_convolution_of_an_authors_file_is_adapted():
    file = golden.DATA / "nfnet_tiny_haiku_2021.npz"
    first, adapted = (load(file, in_chans=in_chans).stem.conv1.weight for in_chans in (3, 1))
    assert adapted.equal(timm.models.adapt_input_conv(1, first))


# --- checkpoints of other networks


def changed(state_dict):
    del state_dict["final_conv.gain"]
    return state_dict | {"stem.extra": torch.zeros(1), "stages.1.0.conv2.bias": torch.zeros(5)}


OTHERS = {
    "timm's own": (
        lambda: timm.models.nfnet.nfnet_f0(device="meta").state_dict(),
        r"timm's own nfnet_f0.*timm\.models\.nfnet\.nfnet_f0\(\).*AUTOLOAD=0",
    ),
    "another architecture": (
        lambda: timm.create_model("resnet18", device="meta").state_dict(),
        "does not fit nfnet_f0: stem.conv1.weight is missing.*names begin with conv1",
    ),
    "another network of ours": (
        lambda: timm.create_model("nfnet_f1", device="meta").state_dict(),
        r"stages\.0\.1.* is surplus.*create_model\('nfnet_f1'\)",
    ),
    "changed": (
        lambda: changed(timm.create_model("nfnet_f0", device="meta").state_dict()),
        r"final_conv.gain is missing; stem.extra is surplus; .*\(5,\), expected \(256,\)",
    ),
}


@pytest.mark.parametrize(("state_dict", "message"), OTHERS.values(), ids=OTHERS)
def test_arrays_of_another_network_are_refused_by_name(state_dict, message):
    overlay = {"state_dict": state_dict()}
    with pytest.raises(ValueError, match=message):
        timm.create_model("nfnet_f0", pretrained=True, pretrained_cfg_overlay=overlay)


def test_a_checkpoint_of_timms_own_network_is_identified_without_its_name():
    state_dict, message = OTHERS["timm's own"]
    with pytest.raises(ValueError, match=message):
        infer_variant(state_dict())


def fresh_values(name, p):
    """Return whether the parameter ``p`` with this ``name`` is initialised as by the authors."""
    if name.endswith("skipinit_gain") or name.endswith("bias"):
        return bool((p == 0).all())
    if name.endswith(".gain"):
        return bool((p == 1).all())
    std = 0.01 if name == "head.fc.weight" else (p[0].numel() ** -0.5) * (0.88 if ".attn" in name else 1)
    return abs(p.std().item() / std - 1) < 0.2 and abs(p.mean().item()) < 0.2 * std


@pytest.mark.parametrize("missing", [".gain", "skipinit_gain", ".attn_last.", "conv2.weight", "head.", ""])
def test_arrays_missing_from_a_checkpoint_are_initialised(tiny, missing, monkeypatch):
    """The memory of new parameters contains NaNs here, so none may be left without initialisation."""
    empty_like = torch.empty_like
    poisoned = lambda *args, **kwargs: empty_like(*args, **kwargs).fill_(float("nan"))  # noqa: E731
    monkeypatch.setattr("nfnet_timm.models.build.torch.empty_like", poisoned)
    state_dict = {key: torch.full_like(t, 0.25) for key, t in tiny().state_dict().items() if missing not in key}
    model = load(state_dict or {"unrelated": torch.zeros(1)}, pretrained_strict=False)
    for name, p in model.named_parameters():
        if missing in name:
            assert fresh_values(name, p), name
        else:
            assert bool((p == 0.25).all()), name
    assert model(torch.randn(2, 3, 64, 64)).isfinite().all()


@pytest.mark.parametrize("name", ["nfnet_f0", "dm_nf_regnet_b0"])
def test_init_weights_initialises_an_empty_network(name):
    """``to_empty`` and ``init_weights`` are the usual steps after building on the meta device."""
    with torch.device("meta"):
        model = timm.create_model(name, **SMALL, **({"width_factor": 1.0} if "regnet" in name else {}))
    if name == "nfnet_f0":
        model.vectorize_skip_gains()
    model.to_empty(device="cpu")
    for p in model.parameters():
        torch.nn.init.constant_(p, float("nan"))
    model.init_weights()
    for key, p in model.named_parameters():
        if key == "head.fc.weight" and "regnet" in name:
            assert not p.any()
        elif p.numel() > 1000 or p.dim() < 2:
            assert fresh_values(key.replace(".attn.", ".attn_last."), p), key
        assert p.isfinite().all(), key


@pytest.mark.parametrize("name", VARIANTS)
def test_every_network_has_the_authors_number_of_parameters_and_is_identified_from_its_arrays(name):
    state_dict = timm.create_model(name, device="meta").state_dict()
    assert {"parameters": sum(p.numel() for p in state_dict.values()), "arrays": len(state_dict)} == COUNTS.get(name)
    assert infer_variant(state_dict) == (name, {})


def test_the_published_numbers_are_those_of_the_default_weights():
    published = load_published()["checkpoints"]
    hubs = {f"{name}.dm_in1k": v.hf_hub_id for name, v in VARIANTS.items() if v.hf_hub_id}
    assert {name: c["hub"] for name, c in published.items()} == hubs
    for checkpoint, numbers in published.items():
        assert COUNTS[checkpoint.split(".")[0]]["parameters"] / 1e6 == pytest.approx(numbers["parameters"], abs=0.05)
    # Larger networks have the same blocks, and more of them.
    assert multiply_adds("nfnet_f0") == pytest.approx(published["nfnet_f0.dm_in1k"]["multiply_adds"], abs=0.005)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("nfnet_f0", {**golden.TINY, "in_chans": 1}),
        ("dm_nf_resnet50", {"depths": (1, 1, 1, 2)}),
        ("dm_nf_seresnet50", {"channels": (64, 128, 256, 512), "num_classes": 3}),
        ("dm_nf_regnet_b0", {"depths": (1, 1, 1, 1), "channels": (36, 78, 156, 333), "width_factor": 1.0}),
    ],
)
def test_an_unnamed_network_is_identified_with_its_arguments(name, arguments):
    state_dict = timm.create_model(name, device="meta", **arguments).state_dict()
    found, overrides = infer_variant(state_dict)
    assert VARIANTS[found].cfg == next(v for n, v in VARIANTS.items() if n.startswith(name.rstrip("0123456789"))).cfg
    rebuilt = timm.create_model(found, device="meta", **overrides).state_dict()
    assert {k: v.shape for k, v in rebuilt.items()} == {k: v.shape for k, v in state_dict.items()}
