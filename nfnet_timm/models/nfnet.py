"""NFNets, NF-ResNets and NF-RegNets as their authors published them, with timm's interface.

Papers: "Characterizing signal propagation to close the performance gap in unnormalized ResNets" (arXiv 2101.08692),
"High-Performance Large-Scale Image Recognition Without Normalization" (arXiv 2102.06171).
Source: deepmind-research/nfnets (Apache-2.0): nfnet.py, nf_resnet.py, nf_regnet.py, base.py. The released weights come
from the same repository, which states no separate licence for them.

The state dict has the same names and shapes as timm's ``dm_nfnet_*``, except that ``gain`` has shape (O,).
"""

import warnings
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from timm.layers import ClassifierHead
from timm.models import checkpoint_seq, generate_default_cfgs, load_pretrained, register_model, register_notrace_module
from timm.utils import reparameterize_model
from torch import Tensor, nn

from nfnet_timm.compat.timm import keep_cfgs_of_entrypoints, take_feature_indices
from nfnet_timm.formats import authors
from nfnet_timm.layers.activations import GELUTanh, ScaledAct
from nfnet_timm.layers.recompute import recompute_acts_of
from nfnet_timm.layers.same_padding import AvgPool2dSame, Conv2dSame, MaxPool2dSame
from nfnet_timm.layers.squeeze_excite import GlobalMean
from nfnet_timm.layers.ws_conv import WSConv2d
from nfnet_timm.models.block import NormFreeBlock, create_stem
from nfnet_timm.models.build import build_network
from nfnet_timm.models.state_dict import check_state_dict
from nfnet_timm.models.variants import VARIANTS, NormFreeCfg, Variant, checked_count
from nfnet_timm.optim.param_groups import exempt_classifier

__all__ = ["NormFreeBlock", "NormFreeCfg", "NormFreeNet", "default_cfgs"]


class NormFreeNet(nn.Module):
    """A network of ``NormFreeBlock``s whose outputs and gradients equal the authors' JAX code to float32 rounding.

    Args:
        cfg: The architecture; further keyword arguments override its fields.
        num_classes: Classes. Forward takes (N, in_chans, H, W) with any H and W, and returns (N, num_classes) logits.
            With 0 classes it returns the pooled features (N, num_features).
        output_stride: 8, 16 or 32; below 32 the last stages dilate instead of striding.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth: block ``i`` of ``n`` drops with probability ``drop_path_rate * i / n``.
        recompute_acts: Whether training saves only the inputs of activations and recomputes their outputs. The
            gradients are the same, and feature maps take about 0.6 of the memory.
    Raises:
        UnknownFieldError: If a keyword is neither an argument nor a field of ``NormFreeCfg``.
        ValueError: If an argument has an invalid value.
    Source: deepmind-research/nfnets/nfnet.py, nf_resnet.py and nf_regnet.py.
    Differs from timm: see ``WSConv2d``, ``SqueezeExcite`` and ``NormFreeBlock``. As in timm, dropout and stochastic
        depth are off by default. The authors' values are in ``nfnet_timm/recipes``.
    """

    def __init__(
        self,
        cfg: NormFreeCfg,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        output_stride: int = 32,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        recompute_acts: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ):
        super().__init__()
        cfg = cfg.override(**kwargs)
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride={output_stride}: expected 8, 16 or 32")
        in_chans = checked_count("in_chans", in_chans, 1)
        num_classes = checked_count("num_classes", num_classes, 0)
        for name, rate in (("drop_rate", drop_rate), ("drop_path_rate", drop_path_rate)):
            if not (isinstance(rate, Real) and 0 <= rate <= 1):
                raise ValueError(f"{name}={rate!r}: expected a probability, 0 to 1")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.cfg = cfg
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        self.stem, net_stride, stem_feature = create_stem(cfg, in_chans, **dd)
        # The child of the stem whose output is the first feature map.
        self.stem_feat_idx = list(self.stem).index(self.get_submodule(stem_feature["module"]))
        self.feature_info = [stem_feature]
        prev_chs = cfg.out_chs_of_stem
        dilation = 1
        expected_var = 1.0
        index = 0
        stages = []
        for stage_idx, (depth, out_chs) in enumerate(zip(cfg.depths, cfg.stage_chs, strict=True)):
            stride = 1 if stage_idx == 0 and net_stride > 2 else 2
            first_dilation = dilation
            if net_stride >= output_stride and stride > 1:
                dilation *= stride
                stride = 1
            net_stride *= stride
            blocks = []
            for block_idx in range(depth):
                first = block_idx == 0
                blocks.append(
                    NormFreeBlock(
                        prev_chs,
                        out_chs,
                        stride=stride if first else 1,
                        dilation=dilation,
                        first_dilation=first_dilation if first else dilation,
                        alpha=cfg.alpha,
                        beta=expected_var**-0.5,
                        # The first block of an NF-RegNet does not widen.
                        bottle_ratio=1.0 if cfg.reg and index == 0 else cfg.bottle_ratio,
                        group_size=cfg.group_size,
                        reg=cfg.reg,
                        extra_conv=cfg.extra_conv,
                        avg_down=cfg.stem_type != "7x7_pool",
                        rd_ratio=cfg.rd_ratio,
                        act_layer=cfg.act_layer,
                        drop_path_rate=drop_path_rate * index / sum(cfg.depths),
                        **dd,
                    )
                )
                # The first block of a stage has a convolution in its shortcut, which resets the variance to 1. The
                # residual branch of each block adds alpha**2.
                expected_var = (1.0 if first else expected_var) + cfg.alpha**2
                prev_chs = out_chs
                index += 1
            stages.append(nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": prev_chs, "reduction": net_stride, "module": f"stages.{stage_idx}"})
        self.stages = nn.Sequential(*stages)

        self.num_features = cfg.final_chs or prev_chs
        self.final_conv: nn.Module = nn.Identity()
        if cfg.final_chs:
            self.final_conv = WSConv2d(prev_chs, cfg.final_chs, 1, **dd)
            self.feature_info[-1] = {"num_chs": cfg.final_chs, "reduction": net_stride, "module": "final_conv"}
        self.final_act: nn.Module = ScaledAct(cfg.act_layer)
        self.head = ClassifierHead(self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd)
        self.head_hidden_size = self.num_features * self.head.global_pool.feat_mult()
        self.init_weights(needs_reset=False)
        exempt_classifier(self)
        if recompute_acts:
            recompute_acts_of(self)

    def __setstate__(self, state: Any) -> None:  # called by copy and pickle
        super().__setstate__(state)
        exempt_classifier(self)

    @torch.jit.ignore
    def init_weights(self, needs_reset: bool = True) -> None:
        """Initialise all parameters as the authors do: the classifier's weight N(0, 0.01), or 0 in NF-RegNets.

        Args:
            needs_reset: Whether to call ``reset_parameters`` of all modules, or to initialise the classifier alone.
        Source: ``fc_init`` in deepmind-research/nfnets/nfnet.py and nf_regnet.py.
        """
        modules: Any = self.modules() if needs_reset else ()
        for module in modules:
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        fc = getattr(self.head, "fc", None)
        if isinstance(fc, nn.Linear):
            nn.init.normal_(fc.weight, std=0.0 if self.cfg.zero_init_fc else 0.01)
            if fc.bias is not None:
                nn.init.zeros_(fc.bias)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's description of the parameter groups for layer-wise learning rate decay."""
        block = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"
        return {"stem": r"^stem", "blocks": [(block, None), (r"^final_conv", (99999,))]}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set whether to recompute each block in the backward pass instead of saving its activations."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def vectorize_skip_gains(self) -> "NormFreeNet":
        """Give skip gains the shape (1,) instead of (), and return the model. FSDP2's fully_shard needs this.

        Outputs, gradients and clipping do not change. State dicts with either shape load into a model with either
        shape. The parameters stay the same objects, so an optimizer that has not made a step still trains them.
        """
        for module in self.modules():
            if isinstance(module, NormFreeBlock):
                gain = module.skipinit_gain
                grad, gain.grad = gain.grad, None
                gain.data = gain.data.reshape(1)
                gain.grad = None if grad is None else grad.reshape(1)
        return self

    @torch.jit.ignore
    def reparameterize(self) -> "NormFreeNet":
        """Replace each standardized convolution by a plain one, as ``nfnet_timm.reparameterize``; return the model."""
        reparameterize_model(self, inplace=True)
        return self

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the classifier: ``nn.Identity`` if there is none, or the whole head if the user has replaced it."""
        return getattr(self.head, "fc", self.head)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one of ``num_classes`` classes (0: none), initialised as the authors do."""
        self.num_classes = num_classes = checked_count("num_classes", num_classes, 0)
        reference = next(self.parameters())
        training = self.head.training
        if not isinstance(self.head, ClassifierHead):  # the user has replaced it
            self.head = ClassifierHead(self.num_features, num_classes, drop_rate=self.drop_rate)
        self.head.in_features = self.num_features
        self.head.reset(num_classes, global_pool)
        self.head.to(device=reference.device, dtype=reference.dtype).train(training)
        self.head_hidden_size = self.num_features * self.head.global_pool.feat_mult()
        self.init_weights(needs_reset=False)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the activated feature map (N, num_features, H / 32, W / 32) of images (N, in_chans, H, W)."""
        x = self.stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            for stage in self.stages:
                x = checkpoint_seq(stage, x)
        else:
            x = self.stages(x)
        return self.final_act(self.final_conv(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of a feature map, or its pooled features before the classifier."""
        # A head from the user may not have the argument pre_logits.
        return self.head(x, pre_logits=pre_logits) if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes), before softmax."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the final feature map and a list of the feature maps at ``indices`` (0: stem, 1 to 4: stages).

        The feature map of the last stage is taken after the final convolution, before its activation.

        Args:
            norm: Not used, because these networks have no norm. timm's signature contains it.
            stop_early: Whether to skip the stages after the last index.
            intermediates_only: Whether to return only the list.
        Raises:
            ValueError: If ``output_fmt`` is not "NCHW".
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r}: expected 'NCHW'")
        take_indices, max_index = take_feature_indices(len(self.feature_info), indices)
        intermediates = []
        for i, module in enumerate(self.stem):
            x = module(x)
            if i == self.stem_feat_idx and 0 in take_indices:
                intermediates.append(x)
        stages = self.stages[:max_index] if stop_early else self.stages
        for i, stage in enumerate(stages, start=1):
            x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
            if i == len(self.feature_info) - 1:
                x = self.final_conv(x)
            if i in take_indices:
                intermediates.append(x)
        if intermediates_only:
            return intermediates
        if len(stages) == len(self.feature_info) - 1:
            x = self.final_act(x)
        return x, intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the layers that the feature maps at ``indices`` do not need, and return the indices as a list."""
        take_indices, max_index = take_feature_indices(len(self.feature_info), indices)
        pruned = max_index < len(self.feature_info) - 1
        if pruned:
            self.stages = self.stages[:max_index]
            self.final_conv = nn.Identity()
            self.final_act = nn.Identity()
            self.num_features = self.head_hidden_size = self.feature_info[max_index]["num_chs"]
        if max_index == 0:
            self.stem = self.stem[: self.stem_feat_idx + 1]
        if prune_head or pruned:
            self.reset_classifier(0, "")
        return take_indices

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load ``state_dict``. On the meta device, its tensors become the parameters, in the model's dtype."""
        own = dict(self.named_parameters())
        if isinstance(state_dict, Mapping) and any(p.is_meta for p in own.values()):
            assign = True
            state_dict = {name: t.to(own[name].dtype) if name in own else t for name, t in state_dict.items()}
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    @torch.jit.ignore
    def load_pretrained(self, checkpoint_path: str | Path) -> None:
        """Load one of the authors' files, ``F*_haiku.npz``.

        As in timm, the first convolution is adapted to ``in_chans``, and a classifier that does not fit is left out.

        Raises:
            ValueError: If the file cannot be read, or contains another architecture.
        """
        cfg = {**getattr(self, "pretrained_cfg", {}), "source": "", "file": None, "custom_load": False}
        state_dict = authors.load_state_dict(checkpoint_path)
        try:
            check_state_dict(state_dict, self, cfg.get("architecture", "the model"))
        except ValueError as error:
            raise ValueError(f"{checkpoint_path}: {error}") from None
        load_pretrained(
            self,
            # The file's own number of classes decides whether its classifier fits.
            pretrained_cfg={**cfg, "state_dict": state_dict, "num_classes": len(state_dict["head.fc.bias"])},
            num_classes=self.num_classes,
            in_chans=self.in_chans,
        )


# torch.fx does not trace into these, because they choose an implementation by the tensor.
for _module in (AvgPool2dSame, Conv2dSame, GELUTanh, GlobalMean, MaxPool2dSame, WSConv2d):
    register_notrace_module(_module)


def _default_cfg(name: str, variant: Variant) -> tuple[str, dict[str, Any]]:
    train, test = variant.train_size, variant.test_size
    cfg: dict[str, Any] = {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, train, train),
        "pool_size": (-(-train // 32), -(-train // 32)),
        "test_input_size": (3, test, test),
        "interpolation": "bicubic",
        "crop_pct": variant.crop_pct,
        "crop_mode": variant.crop_mode,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "stem.conv1" if variant.cfg.stem_type == "deep_quad" else "stem.conv",
        "classifier": "head.fc",
        "license": "apache-2.0",
        "paper_ids": variant.paper_ids,
        "origin_url": "https://github.com/google-deepmind/deepmind-research/tree/master/nfnets",
    }
    if variant.hf_hub_id:
        return f"{name}.dm_in1k", {**cfg, "hf_hub_id": variant.hf_hub_id}
    return name, cfg


# timm reads this name in the module of an entrypoint.
default_cfgs = generate_default_cfgs(dict(_default_cfg(*item) for item in VARIANTS.items()))


def _register(name: str) -> None:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_network(NormFreeNet, name, pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"Build {VARIANTS[name].title}, as its authors published it."
    globals()[name] = register_model(entrypoint)


with warnings.catch_warnings():
    # timm's own nfnet_f* have no weights and differ from the paper. This package replaces them.
    warnings.filterwarnings("ignore", message="Overwriting .* in registry with nfnet_timm")
    for _name in VARIANTS:
        _register(_name)
keep_cfgs_of_entrypoints(f"nfnet_f{i}" for i in range(8))
