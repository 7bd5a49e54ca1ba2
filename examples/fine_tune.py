"""Fine-tune a network on your images, with adaptive gradient clipping: on a CPU, a GPU, or several.

    pip install '.[examples]'     in a clone of nfnet_timm
    python fine_tune.py DATA --model nfnet_f0 --pretrained
    accelerate launch --num_processes 8 fine_tune.py DATA --model nfnet_f0 --pretrained --mixed-precision bf16

DATA is a folder with train/ and val/, each with a folder of images for each class. With --dataset hfds/ORG/NAME, it is
the folder in which this dataset of the Hub is stored. Prints the mean loss after each epoch, and the accuracy of the
moving average (EMA) of the weights. Writes last.pth.tar, model_best.pth.tar and class_names.txt to the folder --output.
--resume continues from last.pth.tar. At the end, prints the command that publishes the best epoch. With
--push-to-hub ORG/NAME --license apache-2.0 the program publishes the best epoch itself.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from pathlib import Path
from typing import Any

MISSING = "error: {} is not installed: `pip install '.[examples]'` in a clone of nfnet_timm"

try:
    import timm
    import torch
    import torch.nn.functional as F
    from accelerate import Accelerator, DataLoaderConfiguration
    from accelerate.utils import set_seed
    from huggingface_hub import get_token
    from timm.data import create_dataset, create_transform, resolve_model_data_config
    from timm.models import load_checkpoint, resume_checkpoint
    from timm.scheduler import create_scheduler_v2
    from timm.utils import CheckpointSaver, ModelEmaV3
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    from nfnet_timm import VARIANTS, push_to_hub
    from nfnet_timm.optim import create_optimizer
except ModuleNotFoundError as error:
    sys.exit(MISSING.format(error.name))


def main() -> None:
    """Train, and keep the best epoch."""
    args = parse()
    seeded = DataLoaderConfiguration(use_seedable_sampler=True)  # so that the order of the images depends on the epoch
    accelerator = Accelerator(mixed_precision=args.mixed_precision, cpu=args.cpu, dataloader_config=seeded)
    set_seed(args.seed)
    splits = (args.train_split, args.val_split)
    try:
        images = {split: create_dataset(args.dataset, args.data_dir, split) for split in splits}
    except ModuleNotFoundError as error:  # of datasets, which timm imports when it is needed
        sys.exit(MISSING.format(error.name))
    except (RuntimeError, OSError, ValueError) as error:  # of timm and of datasets
        sys.exit(f"error: {args.dataset or args.data_dir}: {' '.join(str(error).split())[:200]}")
    if not args.dataset:
        known = images[args.train_split].reader
        check_folders(known, images[args.val_split].reader, args)
        # timm numbers the classes of each split by themselves: a class without images would shift the others.
        args.class_map = known.class_to_idx
        images[args.val_split] = create_dataset("", args.data_dir, args.val_split, class_map=args.class_map)
    names = class_names(images[args.train_split])
    # `nfnet-timm publish` reads these options for the card.
    args.num_classes, args.model_ema, args.script = len(names), True, "examples/fine_tune.py of nfnet_timm"
    options: dict[str, Any] = {"pretrained": args.pretrained, "num_classes": len(names), "drop_path_rate": 0.1}
    try:
        model: Any = timm.create_model(args.model, **options)
    except (RuntimeError, OSError, ValueError) as error:  # for example, there are no weights
        sys.exit(f"error: --model {args.model}: {' '.join(str(error).split())[:200]}")
    config = resolve_model_data_config(model, {"img_size": args.img_size})
    model.pretrained_cfg.update(config, test_input_size=None)  # what push_to_hub publishes as the preprocessing
    for split, dataset in images.items():
        dataset.transform = create_transform(**config, is_training=split == args.train_split)
    loaders = [
        DataLoader(dataset, args.batch_size, shuffle=split == args.train_split, num_workers=args.workers)
        for split, dataset in images.items()
    ]
    optimizer = create_optimizer(model, "sgd", lr=args.lr, weight_decay=1e-5, clip_factor=args.clip_factor)
    ema = ModelEmaV3(model, decay=0.9999, use_warmup=True, device=accelerator.device)
    first = 0
    last, best, listed = (
        Path(args.output) / name for name in ("last.pth.tar", "model_best.pth.tar", "class_names.txt")
    )
    if args.resume and last.exists():
        try:
            first = resume_checkpoint(model, str(last), optimizer, log_info=accelerator.is_main_process) or 0
            load_checkpoint(ema.module, str(last), use_ema=True)
        except RuntimeError:
            sys.exit(f"error: {last} is not of --model {args.model} with {len(names)} classes: pass another --output")
    bare = model
    model, optimizer, train, validation = accelerator.prepare(model, optimizer, *loaders)
    schedule, _ = create_scheduler_v2(
        optimizer,
        "cosine",
        num_epochs=args.epochs,
        warmup_epochs=min(1, args.epochs - 1),
        warmup_prefix=False,
        step_on_epochs=False,
        updates_per_epoch=len(train),
    )
    if accelerator.is_main_process:
        last.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("\n".join(names) + "\n", encoding="utf-8")
        saver: Any = CheckpointSaver(bare, optimizer, args, ema, checkpoint_dir=args.output, max_history=1)
        if first and best.exists():  # a worse epoch must not replace it
            kept = torch.load(best, map_location="cpu", weights_only=False)  # this program wrote it
            saver.best_metric, saver.best_epoch = kept["metric"], kept["epoch"]
    for epoch in range(first, args.epochs):
        set_seed(args.seed + epoch)
        train.set_epoch(epoch)
        loss = train_epoch(model, train, optimizer, schedule, ema, accelerator, epoch)
        top1 = accuracy(ema.module, validation, accelerator)
        accelerator.print(f"epoch {epoch + 1} of {args.epochs}: loss {loss:.3f}, accuracy of the EMA {top1:.1f} %")
        if accelerator.is_main_process:
            saver.save_checkpoint(epoch, metric=top1)
    accelerator.print(f"Classes: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}")
    command = ["nfnet-timm", "publish", str(best), args.push_to_hub or "ORG/NAME"]
    command += ["--license", args.license or "apache-2.0", "--class-names", str(listed)]
    to_publish = f"To publish the best epoch:\n  {shlex.join(command)}"
    if not args.push_to_hub:
        accelerator.print(to_publish)
    elif accelerator.is_main_process:
        load_checkpoint(ema.module, str(best), use_ema=True)
        try:
            report = push_to_hub(
                ema.module,
                args.push_to_hub,
                license=args.license,
                label_names=names,
                metrics=None if saver.best_metric is None else {"top1": saver.best_metric},
                dataset=args.dataset.removeprefix("hfds/") or args.data_dir,
            )
        except (ValueError, OSError) as error:  # for example, the Hub cannot be reached
            sys.exit(f"error: {error}\n{to_publish}")
        print(f"Published as {args.push_to_hub}, commit {report.commit}")
    accelerator.end_training()


def parse() -> argparse.Namespace:
    """Return the options, named as train.py's are."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data_dir", metavar="DATA", help="folder of the images")
    parser.add_argument("--dataset", default="", help="hfds/ORG/NAME: a dataset of the Hub instead")
    parser.add_argument("--train-split", default="train", help="(%(default)s)")
    parser.add_argument("--val-split", default="validation", help="(%(default)s)")
    parser.add_argument("--model", default="nfnet_f0", help="(%(default)s)")
    parser.add_argument("--pretrained", action="store_true", help="start from published weights")
    parser.add_argument("--img-size", type=int, help="pixels (the size at which the network was trained)")
    parser.add_argument("--batch-size", type=int, default=32, help="images in a batch of one process (%(default)s)")
    parser.add_argument("--epochs", type=int, default=10, help="(%(default)s)")
    parser.add_argument("--lr", type=float, default=0.02, help="(%(default)s)")
    parser.add_argument("--clip-factor", type=float, default=0.05, help="larger for smaller batches (%(default)s)")
    parser.add_argument("--mixed-precision", default="no", choices=("no", "bf16"), help="(%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes that load images (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--output", default="fine_tuned", help="folder of the checkpoints (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="continue from last.pth.tar in --output, if it exists")
    parser.add_argument("--push-to-hub", metavar="ORG/NAME", help="publish the best epoch on the Hub, with class names")
    parser.add_argument("--license", help="of these weights, for --push-to-hub, such as apache-2.0")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    args = parser.parse_args()
    for name, least in (("img_size", 1), ("batch_size", 1), ("epochs", 1), ("workers", 0), ("seed", 0)):
        value = getattr(args, name)
        if value is not None and not least <= value < 2**31:
            parser.error(f"--{name.replace('_', '-')} {value}: expected a number from {least} to {2**31 - 1}")
    for name in ("lr", "clip_factor"):
        if not 0 < getattr(args, name) < math.inf:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: expected a number above 0")
    if args.push_to_hub and not args.license:
        parser.error("--push-to-hub needs the licence of the weights: expected --license apache-2.0, or another one")
    if args.push_to_hub and not get_token():
        parser.error("--push-to-hub needs an access token: log in with `hf auth login`, or set HF_TOKEN")
    if Path(args.output).is_file():
        parser.error(f"--output {args.output} is a file: expected a new or existing folder")
    if args.train_split == args.val_split:
        parser.error(f"--train-split and --val-split are both {args.val_split}: expected two splits")
    if not args.dataset and not (Path(args.data_dir) / args.train_split).is_dir():
        parser.error(
            f"there is no folder {Path(args.data_dir) / args.train_split}: expected one folder in it per class"
        )
    if args.model.split(".")[0] not in VARIANTS:  # `nfnet-timm publish` has no card for others
        parser.error(f"--model {args.model}: expected one of {', '.join(VARIANTS)}")
    return args


def check_folders(train: Any, validation: Any, args: argparse.Namespace) -> None:
    """Stop if validation would use training images, which timm reads for a split without a folder, or other classes."""
    if any(os.path.samefile(validation.root, seen) for seen in (train.root, args.data_dir)):
        sys.exit(
            f"{args.data_dir} has no separate folder for --val-split {args.val_split}: expected "
            f"{Path(args.data_dir) / 'val'}, with one folder in it per class"
        )
    for split in (train, validation):
        if "" in split.class_to_idx:
            sys.exit(f"error: images lie directly in {split.root}: expected them in one folder per class")
    if unknown := sorted(validation.class_to_idx.keys() - train.class_to_idx.keys()):
        sys.exit(f"error: {validation.root} has images of {', '.join(unknown[:10])}: expected classes of {train.root}")


def class_names(dataset: Any) -> list[str]:
    """Return the names of the classes in the order of the labels."""
    by_folder = getattr(dataset.reader, "class_to_idx", None)
    if by_folder:
        return sorted(by_folder, key=by_folder.get)
    return list(dataset.reader.dataset.features["label"].names)


def train_epoch(
    model: Any, loader: Any, optimizer: Any, schedule: Any, ema: Any, accelerator: Accelerator, epoch: int
) -> float:
    """Train for one epoch and return the mean loss."""
    model.train()
    losses = []
    bar = tqdm(loader, desc=f"epoch {epoch + 1}", unit="step", disable=not accelerator.is_local_main_process)
    for step, (images, labels) in enumerate(bar, epoch * len(loader)):
        schedule.step_update(step)
        with accelerator.autocast():
            loss = F.cross_entropy(model(images), labels, label_smoothing=0.1)
        accelerator.backward(loss)
        optimizer.step()  # clips first
        optimizer.zero_grad()
        ema.update(accelerator.unwrap_model(model), step)
        losses.append(loss.detach())
    return accelerator.gather(torch.stack(losses)).mean().item()


@torch.no_grad()
def accuracy(model: Any, loader: Any, accelerator: Accelerator) -> float:
    """Return the percentage of images that are classified correctly."""
    model.eval()
    right = total = 0
    for images, labels in loader:
        with accelerator.autocast():
            guesses = model(images).argmax(1)
        guesses, labels = accelerator.gather_for_metrics((guesses, labels))
        right, total = right + int((guesses == labels).sum()), total + len(labels)
    return 100 * right / total


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped; --resume continues after the last complete epoch")
