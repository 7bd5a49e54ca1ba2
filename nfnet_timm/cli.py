"""The ``nfnet-timm`` command. A user's mistake ends in one line and exit status 1, never in a traceback."""

from __future__ import annotations

import argparse
import sys
from importlib.resources import files
from pathlib import Path

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run the command with ``argv`` and return its exit status."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"nfnet-timm: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("nfnet-timm: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nfnet-timm", description="Normalizer-Free networks for timm, as their authors published them."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    demo = commands.add_parser("demo", help="train a small NFNet with and without AGC, save it and load it again")
    demo.add_argument("--out", type=Path, default=Path("nfnet-demo"), help="folder for the results (%(default)s)")
    demo.add_argument("--epochs", type=_positive, default=10, help="epochs of each of the two runs (%(default)s)")
    demo.set_defaults(run=_demo)

    recipe = commands.add_parser(
        "recipe", help="print the published training recipe of a network, for train.py --config"
    )
    recipe.add_argument("name", help="nfnet_f0 to nfnet_f7, nf_resnet or finetune")
    recipe.set_defaults(run=_recipe)

    convert = commands.add_parser(
        "convert",
        help="turn one of the authors' files into a folder that timm loads, or back",
        description="Turn one of the authors' F*_haiku.npz files into a folder that timm loads by its local-dir: "
        "prefix; or such a folder back into a file that the authors' code loads, if OUT ends in .npz.",
    )
    convert.add_argument("source", type=Path, help="F*_haiku.npz, or a folder with model.safetensors")
    convert.add_argument("--out", type=Path, required=True, help="folder to write, or a file ending in .npz")
    convert.set_defaults(run=_convert)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def _demo(args: argparse.Namespace) -> None:
    try:
        from nfnet_timm import demo
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: the demo needs `pip install 'nfnet-timm[demo]'`") from None
    demo.run(args.out, args.epochs)


def _recipe(args: argparse.Namespace) -> None:
    recipes = {Path(file.name).stem: file for file in files("nfnet_timm").joinpath("recipes").iterdir()}
    if args.name not in recipes:
        raise ValueError(f"no recipe for {args.name!r}: expected one of {', '.join(sorted(recipes))}")
    print(recipes[args.name].read_text(), end="")


def _convert(args: argparse.Namespace) -> None:
    # Not at the top: `nfnet-timm --help` should not wait for torch.
    from nfnet_timm import haiku

    to_file = args.out.suffix == ".npz"
    if args.source.is_dir() != to_file:
        raise ValueError(
            f"cannot convert {args.source} to {args.out}: expected a file and a new folder, or a folder written by "
            "`nfnet-timm convert` and a new file whose name ends in .npz"
        )
    if to_file:
        tree = haiku.convert_to_file(args.source, args.out)
        print(f"wrote {args.out}: {sum(map(len, tree.values()))} arrays in {len(tree)} modules")
        return
    model, digest = haiku.convert_to_folder(args.source, args.out)
    name = model.pretrained_cfg["architecture"]
    print(f"{args.source.name}: {name}, {sum(p.numel() for p in model.parameters()):,} parameters, SHA-256 {digest}")
    print(f'wrote {args.out}: timm.create_model("local-dir:{args.out}", pretrained=True)')
