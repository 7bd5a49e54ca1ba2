"""``nfnet-timm demo``: trains a small NFNet on digits without and with AGC, saves it, and loads it with timm.

The digits are 1,797 scans of handwriting, of 8 x 8 pixels, which scikit-learn contains. The demo takes about a minute
on two cores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from tqdm import tqdm

from nfnet_timm.models.variants import VARIANTS
from nfnet_timm.optim import create_optimizer
from nfnet_timm.publish.folder import save_folder
from nfnet_timm.publish.locks import locked
from nfnet_timm.publish.staging import refuse_irregular, written_beside

__all__ = ["run"]

# A tiny NFNet-F0, by keywords of timm.create_model.
ARGS: dict[str, Any] = {
    "depths": (1, 2, 2, 1),
    "channels": (32, 64, 96, 96),
    "group_size": 8,
    "in_chans": 1,
    "num_classes": 10,
}
SIZE = 32  # pixels: the network halves its input five times
TOP = 1e4  # largest loss in the plot
BATCH, LR, CLIP_FACTOR = 64, 0.4, 0.02  # at this learning rate, the network diverges without clipping


@dataclass
class Digits:
    """Images (N, 1, SIZE, SIZE), normalized, and their classes."""

    train: Tensor
    train_classes: Tensor
    test: Tensor
    test_classes: Tensor
    mean: float
    std: float


@dataclass
class Curves:
    """One training run: the loss of each step and the test accuracy after each epoch."""

    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)


def run(out: Path, epochs: int, overwrite: bool = False) -> None:
    """Write curves.png and model/ to ``out``. Wait while another run writes ``out``.

    Raises:
        ValueError: If ``out`` is a file, or has results and ``overwrite`` is not set; nothing is trained then.
        OSError: If ``out`` cannot be written.
    """
    with locked(out):
        refuse_irregular(out / "curves.png")
        existing = [str(path) for path in (out / "curves.png", out / "model") if path.exists()]
        if existing and not overwrite:
            raise ValueError(
                f"{' and '.join(existing)} would be replaced: pass --overwrite to do so, or choose another folder with "
                "--out"
            )
        print(f"timm {timm.__version__} has {len(VARIANTS)} networks of nfnet_timm.\n")
        digits = load_images()
        print(
            f"Training a small NFNet on {len(digits.train)} handwritten digits, testing on {len(digits.test)}; "
            f"SGD at learning rate {LR}, {epochs} epochs."
        )
        _, plain = train(digits, epochs, clip_factor=None)
        model, clipped = train(digits, epochs, clip_factor=CLIP_FACTOR)
        for label, curves in (("without AGC", plain), ("with AGC", clipped)):
            print(f"  {label:12} test accuracy {curves.accuracies[-1]:6.1%}, last loss {curves.losses[-1]:.3g}")
        folder = out / "model"
        with written_beside(out / "curves.png", overwrite) as curves_file:  # an interrupted run leaves neither
            _plot(plain, clipped, curves_file)
            save_folder(model, folder, ARGS, overwrite=overwrite)
    print(f"Curves: {out / 'curves.png'}")
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        logits, loaded_logits = model(digits.test), loaded(digits.test)
    if not torch.equal(logits, loaded_logits):
        difference = (logits - loaded_logits).abs().max()
        raise ValueError(f"the logits of the loaded model differ by up to {difference:.3g}: expected identical logits")
    print(
        f'Saved to {folder} and loaded by timm.create_model("local-dir:{folder.as_posix()}", pretrained=True): '
        f"logits identical, test accuracy {_accuracy(loaded_logits, digits.test_classes):.1%}.\n\n"
        "Next:\n"
        '  timm.create_model("nfnet_f0", pretrained=True, num_classes=YOURS)    fine-tune the released weights\n'
        "  nfnet-timm convert F0_haiku.npz --out nfnet_f0                       use the authors' own file\n"
        "  README.md                                                            all networks, figures, caveats"
    )


def load_images() -> Digits:
    """Return the digits, four fifths for training, scaled up to SIZE pixels."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16  # from 0..16 to 0..1
    classes = torch.tensor(data.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[: len(order) * 4 // 5], order[len(order) * 4 // 5 :]
    mean, std = images[train].mean().item(), images[train].std().item()
    images = F.interpolate((images - mean) / std, size=SIZE, mode="bilinear")
    return Digits(images[train], classes[train], images[test], classes[test], mean, std)


def train(digits: Digits, epochs: int, clip_factor: float | None) -> tuple[nn.Module, Curves]:
    """Train the small network from the same weights each time, and return it in eval mode with its curves."""
    torch.manual_seed(0)
    model = timm.create_model(
        "nfnet_f0",
        drop_path_rate=0.1,
        pretrained_cfg_overlay={
            "input_size": (1, SIZE, SIZE),
            "test_input_size": None,
            "num_classes": 10,
            "mean": (digits.mean,),
            "std": (digits.std,),
            "crop_pct": 1.0,
        },
        **ARGS,
    )
    optimizer = create_optimizer(model, "sgd", LR, weight_decay=2e-5, clip_factor=clip_factor, momentum=0.9)
    steps = math.ceil(len(digits.train) / BATCH)
    scheduler, _ = create_scheduler_v2(
        optimizer, "cosine", num_epochs=epochs, warmup_epochs=1, step_on_epochs=False, updates_per_epoch=steps
    )
    curves = Curves()
    label = "with AGC   " if clip_factor else "without AGC"
    with tqdm(total=epochs * steps, desc=label, unit="step") as progress:
        for _ in range(epochs):
            model.train()
            for batch in torch.randperm(len(digits.train)).split(BATCH):
                scheduler.step_update(len(curves.losses))
                loss = F.cross_entropy(model(digits.train[batch]), digits.train_classes[batch], label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                curves.losses.append(loss.item())
                progress.update()
            model.eval()
            with torch.no_grad():
                curves.accuracies.append(_accuracy(model(digits.test), digits.test_classes))
            progress.set_postfix(loss=f"{curves.losses[-1]:.3g}", accuracy=f"{curves.accuracies[-1]:.1%}")
    return model, curves


def _accuracy(logits: Tensor, classes: Tensor) -> float:
    return (logits.argmax(1) == classes).float().mean().item()


def _plot(plain: Curves, clipped: Curves, path: Path) -> None:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(f"A small NFNet on handwritten digits, SGD at learning rate {LR}", fontweight="bold")
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    runs = ((plain, "without AGC", "tab:red"), (clipped, f"with AGC, clip factor {CLIP_FACTOR}", "tab:blue"))
    for curves, label, color in runs:
        finite = [min(loss, TOP) for loss in curves.losses if math.isfinite(loss)]
        loss_axes.plot(finite, color=color, label=label)
        if len(finite) < len(curves.losses) and finite:
            loss_axes.plot(len(finite) - 1, finite[-1], "x", color=color, markersize=10, markeredgewidth=3)
            loss_axes.annotate(
                "diverged", (len(finite) - 1, finite[-1]), (12, -4), textcoords="offset points", color=color
            )
        epochs = range(1, len(curves.accuracies) + 1)
        accuracy_axes.plot(epochs, [100 * a for a in curves.accuracies], "o-", color=color, label=label)
    loss_axes.axhline(math.log(10), color="grey", linestyle=":", label="guessing")
    loss_axes.set(title="Training loss", xlabel="step", yscale="log", ylim=(0.3, 2 * TOP))
    accuracy_axes.axhline(10, color="grey", linestyle=":", label="guessing")
    accuracy_axes.set(title="Test accuracy (%)", xlabel="epoch", ylim=(0, 102))
    for axes in (loss_axes, accuracy_axes):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    accuracy_axes.legend(loc="center right", frameon=False)
    figure.savefig(path, dpi=150)
