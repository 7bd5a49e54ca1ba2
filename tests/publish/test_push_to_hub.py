"""A network in memory arrives on a Hub as the command would publish it, or is refused before anything is sent."""

import copy
import math
import re
import threading
import types
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
from huggingface_hub import ModelCard
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import prune

import nfnet_timm
from nfnet_timm.cli import main
from nfnet_timm.formats.safetensors_file import read_header
from nfnet_timm.publish.fingerprints import logits_of
from nfnet_timm.publish.verify import verify

REPO = "org/tiny"


class Training(nn.Module):
    """Stands for a LightningModule, which is a module with the network as an attribute."""

    def __init__(self, model):
        super().__init__()
        self.model, self.criterion = model, nn.CrossEntropyLoss(weight=torch.ones(10))


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def push(model, **options):
    return nfnet_timm.push_to_hub(model, REPO, **{"license": "apache-2.0", **options})


def card(hub):
    text = hub.files(REPO)["README.md"].decode()
    return ModelCard(text), text


def loaded():
    return timm.create_model(f"hf-hub:{REPO}", pretrained=True).eval()


def with_cfg_of_timm(model):
    model.pretrained_cfg = timm.get_pretrained_cfg("nfnet_f0")  # an object, not a dict
    return model


WRAPPERS = {
    "ModelEmaV3": ModelEmaV3,
    "compiled in a training module": lambda model: Training(torch.compile(model)),
    "DDP": DistributedDataParallel,
    "prepared by Accelerate": lambda model: prepared(model),
    "with another form of pretrained_cfg": with_cfg_of_timm,
    "in bfloat16": lambda model: model.to(torch.bfloat16),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_the_network_arrives_from_every_wrapper_and_stays_as_it_is(hub, tiny, one_process, wrap):
    model = wrap(tiny().train())
    before = copy.deepcopy(model.state_dict())
    report = push(model)
    assert report.commit == hub.repos[REPO].branches["main"]
    assert {"README.md", "config.json", "model.safetensors"} <= set(report.files)
    assert report.difference < 1e-6
    expected = tiny().to(next(model.parameters()).dtype).float()
    found = loaded()
    assert all(tensor.equal(expected.state_dict()[name]) for name, tensor in found.state_dict().items())
    torch.testing.assert_close(logits_of(found), logits_of(expected))
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    if not isinstance(model, ModelEmaV3):  # whose average is always in eval mode
        assert all(module.training for module in model.modules())


def test_the_users_dtype_device_autocast_and_precision_do_not_matter(hub, tiny):
    model = tiny()
    torch.set_default_dtype(torch.bfloat16)
    torch.set_float32_matmul_precision("medium")  # Lightning's advice; then some CPUs compute in bfloat16
    try:
        with torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
            push(model)
        assert torch.get_default_dtype() == torch.bfloat16
        assert torch.backends.mkldnn.enabled
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
    assert all(tensor.equal(model.state_dict()[name]) for name, tensor in loaded().state_dict().items())
    assert verify(REPO).difference < 1e-5


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_classes": 0},
        {"in_chans": 1, "global_pool": "max", "output_stride": 16, "act_layer": "silu", "alpha": 0.3},
        {"width_factor": 0.5, "drop_rate": 0.3, "drop_path_rate": 0.2, "recompute_acts": True},
    ],
    ids=str,
)
def test_arguments_of_the_network_are_read_off_it(hub, tiny, arguments):
    model = tiny(**arguments)
    push(model)
    found = loaded()
    torch.testing.assert_close(logits_of(found), logits_of(model))
    assert found.pretrained_cfg["input_size"][0] == arguments.get("in_chans", 3)


def test_a_new_classifier_stem_and_preprocessing_are_those_of_the_network(hub, tiny):
    model = tiny()
    model.reset_classifier(4, "avg")
    model.pretrained_cfg.update(input_size=(3, 48, 48), test_input_size=None, mean=(0.5, 0.5, 0.5), crop_pct=1.0)
    old = model.stem.conv1
    model.stem.conv1 = type(old)(in_channels=6, out_channels=old.out_channels, kernel_size=3, stride=2)
    push(model, label_names=["a", "b", "c", "d"])
    found = loaded()
    assert found.stem.conv1.weight.equal(model.stem.conv1.weight)
    cfg = found.pretrained_cfg
    assert tuple(cfg["input_size"]) == (6, 48, 48)
    assert tuple(cfg["mean"]) == (0.5,) * 6
    assert cfg["label_names"] == ["a", "b", "c", "d"]
    assert found.num_classes == 4
    assert logits_of(found).shape == (4,)


def test_the_card_has_the_owners_figures_as_the_owners(hub, tiny):
    metrics = {"top1": 87.5, "f1 | macro": torch.tensor(0.25), "loss": 1}
    push(tiny(), metrics=metrics, dataset="org/pets", label_names=[f"kind {i}" for i in range(10)])
    found, text = card(hub)
    assert found.data.license == "apache-2.0"
    assert found.data.datasets == ["org/pets"]
    assert {r.metric_type: r.metric_value for r in found.data.eval_results} == {**metrics, "f1 | macro": 0.25}
    assert {r.dataset_type for r in found.data.eval_results} == {"org/pets"}
    assert all("owner" in r.metric_name and not r.verified and not r.source_name for r in found.data.eval_results)
    rows = [line for line in text.splitlines() if "stated by the owner |" in line]
    assert [re.search(r"\| ([\d.]+), org/pets", row)[1] for row in rows] == ["87.5", "0.25", "1"]
    assert "kind 3" in text
    assert "None" not in text


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        (None, "images of the owner"),
        ("/home/me/secret/pets", "pets"),
        ("C:\\Users\\me\\pets", "pets"),
        ("train / test", "train / test"),
    ],
)
def test_a_folder_is_named_on_the_card_without_its_path(hub, tiny, dataset, name):
    push(tiny(), metrics={"top1": 50.0}, dataset=dataset)
    found, text = card(hub)
    assert found.data.eval_results[0].dataset_name == name
    assert found.data.datasets is None
    assert "/home/me" not in text
    assert "Users" not in text


def test_the_same_network_again_makes_no_commit_and_another_one_needs_force(hub, tiny):
    model = tiny()
    commit = push(model).commit
    assert push(model).commit == commit
    with torch.no_grad():
        model.head.fc.bias.add_(1)
    with pytest.raises(ValueError, match="force=True"):
        push(model)
    assert hub.repos[REPO].branches == {"main": commit}
    assert push(model, force=True).commit == hub.repos[REPO].branches["main"] != commit


def test_a_private_repo_has_no_made_up_source_and_the_command_publishes_its_download_with_the_same_bytes(
    hub, tiny, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    push(tiny(), private=True)
    assert hub.repos[REPO].private
    assert "network in memory" in card(hub)[1]
    files = {name: content for name, content in hub.files(REPO).items() if name != ".gitattributes"}
    Path("mine").mkdir()
    for name, content in files.items():
        Path("mine", name).write_bytes(content)
    assert set(read_header(Path("mine/model.safetensors"))) == {"arrays_sha256", "logits", "format"}
    assert main(["publish", "mine", REPO]) == 0
    assert {path.name: path.read_bytes() for path in Path("hub-repos/tiny").iterdir()} == files


def replaced(model, name, module):
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
    return model


def fresh(model):
    """Return the network with the gains and the classifier of a new NF-RegNet, which hide the layers before them."""
    for name, p in model.named_parameters():
        if name.endswith(("skipinit_gain", "head.fc.weight")):
            nn.init.zeros_(p)
    return model


def constant(model, layer, name):
    setattr(model.get_submodule(layer), name, 0.01)
    return model


def scaled(model):
    forward = model.forward
    model.forward = lambda x: forward(x / 255)
    return model


def pruned(model):
    prune.l1_unstructured(model.head.fc, "weight", 0.5)
    return model


def sharded(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(model.vectorize_skip_gains(), mesh=init_device_mesh("cpu", (1,)))
    return model


def prepared(model):
    """Change the network as ``prepare_model`` in accelerate/accelerator.py does for mixed precision."""
    model._original_forward = model.forward
    model.forward = types.MethodType(torch.autocast("cpu", torch.bfloat16)(model.forward.__func__), model)
    return model


def with_bias(model, values):
    return replaced(model, "head.fc.bias", nn.Parameter(values))


def with_cfg(model, **entries):
    model.pretrained_cfg = {**model.pretrained_cfg, **entries}
    return model


REFUSED = {
    "a mean for all channels": (lambda model: with_cfg(model, mean=0.5), "pretrained_cfg: mean is 0.5, expected Tuple"),
    "an entry that timm does not know": (
        lambda model: with_cfg(model, note="mine"),
        "the network's pretrained_cfg: unknown entry 'note'",
    ),
    "reparameterized": (lambda model: model.reparameterize(), "reparameterized"),
    "another head": (lambda model: replaced(model, "head", nn.Sequential(nn.Flatten(), nn.Linear(192, 10))), "head"),
    "another activation in a new one": (lambda model: replaced(fresh(model), "stages.1.0.act2", nn.ReLU()), "logits"),
    "another eps": (lambda model: constant(fresh(model), "stages.1.0.conv2", "eps"), "stages.1.0.conv2.eps is 0.01"),
    "another alpha": (lambda model: constant(fresh(model), "stages.1.0", "alpha"), "stages.1.0.alpha is 0.01"),
    "another forward": (scaled, "del model.forward"),
    "another forward, put over Accelerate's": (lambda model: scaled(prepared(model)), "del model.forward"),
    "a lock": (lambda model: replaced(model, "stem.lock", threading.Lock()), "lock"),
    "pruned": (pruned, "cannot be copied"),
    "a head of its own": (lambda model: nn.Sequential(model, nn.Linear(10, 2)), "1.weight"),
    "two networks": (lambda model: nn.ModuleDict({"one": model, "ema": copy.deepcopy(model)}), "'ema'"),
    "timm's network": (lambda model: timm.create_model("test_nfnet"), "NormFreeNet"),
    "feature maps": (lambda model: timm.create_model("nfnet_f0", features_only=True, device="meta"), "Feature"),
    "on the meta device": (lambda model: model.to("meta"), "meta"),
    "complex": (lambda model: with_bias(model, torch.full((10,), 1j)), "head.fc.bias is torch.complex64"),
    "sharded": (sharded, "sharded"),
    "not finite": (lambda model: with_bias(model, torch.full((10,), math.nan)), "head.fc.bias"),
}


@pytest.mark.parametrize(("change", "named"), REFUSED.values(), ids=REFUSED)
def test_network_that_timm_cannot_load_is_refused_before_anything_is_sent(hub, tiny, one_process, change, named):
    with pytest.raises(ValueError, match=named):
        push(change(tiny()))
    assert hub.log == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"repo_id": None}, "repo_id is None, expected str"),
        ({"label_names": ["cat", "dog"]}, "2 class names for 10"),
        ({"label_names": "abcdefghij"}, "'abcdefghij'"),
        ({"label_names": {"cat"}}, r"label_names is .*expected list\[str\]"),
        ({"label_names": dict.fromkeys("abcdefghij", 0)}, r"label_names is .*expected list\[str\]"),
        ({"metrics": [87.5]}, r"metrics is \[87.5\], expected dict\[str, float\]"),
        ({"metrics": {"top1": torch.ones(2)}}, "metrics is .*tensor"),
        ({"metrics": {"top1": "high"}}, "high"),
        ({"metrics": {"top1": math.nan}}, "nan"),
        ({"metrics": {"top1": 975}}, "top1 is 975, expected a percentage"),
        ({"license": "Apache 2.0"}, "expected the name of a licence on the Hub"),
        ({"license": None}, "license"),
        ({"revision": "a b"}, "'a b'"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be_published_are_refused_before_anything_is_sent(hub, tiny, options, named):
    with pytest.raises(ValueError, match=named):
        nfnet_timm.push_to_hub(**{"model": tiny(), "repo_id": REPO, "license": "mit", **options})
    assert hub.log == []
