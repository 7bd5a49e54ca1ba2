"""The ``nfnet-timm`` command. It reports errors in one line with exit status 1, without a traceback.

Modules that import torch are imported inside functions. So ``--help`` does not wait for torch, and ``main`` handles a
Ctrl-C during an import.
"""

from __future__ import annotations

import argparse
import ast
import io
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from nfnet_timm import __version__
from nfnet_timm.signals import exit_status, interrupted_by_signals

if TYPE_CHECKING:
    from nfnet_timm.publish.sources import Source
    from nfnet_timm.publish.verify import Report

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run the command with ``argv`` and return its exit status.

    The status is 0 after success, 1 after an error, and 128 + the signal's number after a signal. Wrong usage exits
    with 2.
    """
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):  # print escapes for characters that its encoding does not have
            sys.stdout.reconfigure(errors="backslashreplace")
        with interrupted_by_signals():
            args = _parser().parse_args(argv)
            args.run(args)
            print(end="", flush=True)  # an error of stdout occurs here, and not when Python exits
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE
    except KeyboardInterrupt as error:
        with suppress(OSError):  # after SIGHUP the terminal may be gone
            print("nfnet-timm: interrupted; run the same command again", file=sys.stderr)
        return exit_status(error)
    except (ValueError, OSError, ImportError, SafetensorError) as error:
        print(f"nfnet-timm: error: {_one_line(str(error)) or type(error).__name__}", file=sys.stderr)
        return 1
    return 0


def _one_line(text: str) -> str:
    """Return a text without line breaks, colours and other terminal codes."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    text = " ".join(line.strip() for line in text.splitlines() if line.strip())
    return "".join(char if char.isprintable() else "?" for char in text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nfnet-timm", description="Normalizer-Free networks for timm, as their authors published them."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    demo = commands.add_parser("demo", help="train a small NFNet with and without AGC, save it and load it again")
    demo.add_argument("--out", type=_path, default=Path("nfnet-demo"), help="folder for the results (%(default)s)")
    demo.add_argument("--epochs", type=_positive, default=10, help="epochs of each of the two runs (%(default)s)")
    demo.add_argument("--overwrite", action="store_true", help="replace results in that folder")
    demo.set_defaults(run=_demo)

    recipe = commands.add_parser("recipe", help="print the published recipe of a network, for train.py --config")
    recipe.add_argument("name", help="nfnet_f0 to nfnet_f7, nf_resnet or finetune")
    recipe.set_defaults(run=_recipe)

    download = commands.add_parser(
        "download",
        help="download the authors' files from their release address",
        description="Download the authors' files and compare each with its recorded MD5. An interrupted download "
        "continues when you run the command again.",
    )
    download.add_argument("names", nargs="+", metavar="NAME", help="f0 to f6")
    download.add_argument("--to", type=_path, default=Path("."), metavar="DIR", help="folder for them (%(default)s)")
    download.set_defaults(run=_download)

    convert = commands.add_parser(
        "convert",
        help="convert one of the authors' files to a folder that timm loads, or back",
        description="Convert one of the authors' F*_haiku.npz files, or an Orbax checkpoint of jax_privacy (a "
        "directory), to a folder that timm loads with its local-dir: prefix. If OUT ends in .npz, convert such a "
        "folder to a file that the authors' code loads.",
    )
    convert.add_argument(
        "source",
        type=os.path.expanduser,
        help="F*_haiku.npz, an Orbax directory or a folder; also a URL of fsspec",
    )
    convert.add_argument("--out", type=_path, required=True, help="folder to write, or a file ending in .npz")
    convert.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    convert.set_defaults(run=_convert)

    publish = commands.add_parser(
        "publish",
        help="put weights on the Hugging Face Hub, with a model card",
        description="Build a Hub repo from one of the authors' files, an Orbax checkpoint of jax_privacy, a folder "
        "written by convert or timm's save_for_hf, a checkpoint of timm's train.py, or a state dict with --model. Then "
        "check it, push it in one commit and verify it. Set the access token with `hf auth login` or HF_TOKEN.",
    )
    publish.add_argument("source", type=_path, help="F*_haiku.npz, a directory, model_best.pth.tar, or a state dict")
    publish.add_argument("repo", help="Hub repo to push to: ORG/NAME")
    publish.add_argument("--out", type=_path, help="folder to build in, kept afterwards (hub-repos/NAME)")
    publish.add_argument("--overwrite", action="store_true", help="replace the files in that folder")
    publish.add_argument("--license", help="licence of your own weights, by its name on the Hub, such as apache-2.0")
    publish.add_argument("--checkpoint", metavar="NAME", help="released checkpoint that it is, if it has another hash")
    publish.add_argument("--model", metavar="NAME", help="network of a state dict, such as nfnet_f0")
    publish.add_argument(
        "--model-kwargs",
        nargs="*",
        default=[],
        type=_key_value,
        metavar="KEY=VALUE",
        help="further arguments of that network, as in train.py",
    )
    publish.add_argument("--class-names", type=_path, metavar="FILE", help="text file with a class name on each line")
    publish.add_argument("--yes", action="store_true", help="publish class names that are found, without asking")
    publish.add_argument("--dry-run", action="store_true", help="build and check, show what would be pushed, and stop")
    publish.add_argument("--private", action="store_true", help="make the repo private if it is new")
    publish.add_argument("--revision", default="main", metavar="BRANCH", help="branch to push to (%(default)s)")
    publish.add_argument("--tag", help="tag for the commit")
    publish.add_argument("--message", help="message of the commit")
    publish.add_argument("--force", action="store_true", help="replace files with the same names in the repo")
    publish.set_defaults(run=_publish)

    verify = commands.add_parser(
        "verify",
        help="download a Hub repo into an empty cache and compare it with what the Hub records",
        description="Compare the hashes of a fresh download, and of the files in your cache, with those that the Hub "
        "records. Then compare the logits with those recorded in the weights.",
    )
    verify.add_argument("repo", help="ORG/NAME")
    verify.add_argument("--revision", default="main", help="branch, tag or commit (%(default)s)")
    verify.add_argument("--remove", action="store_true", help="remove damaged files from your cache without asking")
    verify.set_defaults(run=_verify)

    doctor = commands.add_parser(
        "doctor",
        help="show what is installed, whether timm finds this package, and what to do if not",
        description="Show versions, plugins, GPUs and the settings of the Hub's client. If something is wrong, say "
        "what to do and exit with status 1.",
    )
    doctor.set_defaults(run=_doctor)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def _path(text: str) -> Path:
    if not text or "://" in text:  # Path("") is the current folder, and Path of a URL is a folder in it
        raise argparse.ArgumentTypeError(f"{text!r}: expected the path of a file or folder on this computer")
    if re.search("[\ud800-\udfff]", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not UTF-8, and torch and safetensors do not open it: rename it")
    return Path(os.path.expanduser(text))  # a shell expands "~" in `--out ~/x`, but not in `--out=~/x`


def _key_value(text: str) -> tuple[str, Any]:
    """Return the name and the value in KEY=VALUE. Source: ``ParseKwargs`` in timm/utils/misc.py."""
    key, equals, value = text.partition("=")
    if not key.isidentifier() or not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: expected KEY=VALUE, such as group_size=8")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return key, value


def _demo(args: argparse.Namespace) -> None:
    from nfnet_timm.installation import to_install

    try:
        from nfnet_timm import demo
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: the demo needs {to_install('demo')}") from None
    demo.run(args.out, args.epochs, args.overwrite)


def _recipe(args: argparse.Namespace) -> None:
    from nfnet_timm.recipes import recipe

    print(recipe(args.name), end="")


def _download(args: argparse.Namespace) -> None:
    from nfnet_timm.publish.download import download

    for name in args.names:
        path, fetched = download(name, args.to)
        print(f"{path}: {'downloaded' if fetched else 'already there'}, has the recorded MD5")


def _convert(args: argparse.Namespace) -> None:
    from nfnet_timm.formats.authors import fetched
    from nfnet_timm.formats.orbax_reader import is_orbax
    from nfnet_timm.publish.convert import convert_to_file, convert_to_folder

    with fetched(args.source) as path:
        if not (args.source and path.exists()):
            raise FileNotFoundError(
                f"{args.source or repr('')} does not exist: expected one of the authors' files, such as F0_haiku.npz, "
                "an Orbax checkpoint, or a folder written by `nfnet-timm convert`"
            )
        is_folder = path.is_dir() and not is_orbax(path)
        if is_folder != (args.out.suffix == ".npz"):
            raise ValueError(
                f"cannot convert {args.source} to {args.out}: expected a file or an Orbax checkpoint and a new folder, "
                "or a folder written by `nfnet-timm convert` and a new file whose name ends in .npz"
            )
        if is_folder:
            tree = convert_to_file(path, args.out, args.overwrite)
            print(f"wrote {args.out}: {sum(map(len, tree.values()))} arrays in {len(tree)} modules")
            return
        source = convert_to_folder(path, args.out, args.overwrite)
    parameters = sum(p.numel() for p in source.model.parameters())
    facts = source.metadata
    print(f"{facts['source']}: {source.architecture}, {parameters:,} parameters, SHA-256 {facts['source_sha256']}")
    print(source.origin())
    print(f'wrote {args.out}: timm.create_model("local-dir:{args.out.as_posix()}", pretrained=True)')


def _publish(args: argparse.Namespace) -> None:
    from nfnet_timm.publish.folder import build_repo, show_repo
    from nfnet_timm.publish.push import check_destination, publish
    from nfnet_timm.publish.sources import open_model

    check_destination(args.repo, args.revision, args.tag)
    if not args.source.exists():
        raise FileNotFoundError(
            f"{args.source} does not exist: expected one of the authors' files, a folder of a model, or a checkpoint"
        )
    folder = args.out or Path("hub-repos") / args.repo.split("/")[-1]
    source = open_model(args.source, args.checkpoint, args.model, dict(args.model_kwargs))
    if source.ema is not None:
        print("weights: " + ("the moving average (EMA)" if source.ema else "as trained; the checkpoint has no EMA"))
    else:
        print(source.origin())
    for reason in source.left_out:
        print(reason)
    _name_classes(source, args)
    kept = build_repo(source, args.repo, folder, args.license, args.overwrite)
    print(f"built and checked {folder}: timm loads it, with the logits of {args.source}")
    if source.card:
        print(f"the card is a copy of {args.source / 'README.md'}: its statements are not checked")
    if kept:
        print(f"the existing card is kept: remove {folder / 'README.md'} to get a new one")
    print(show_repo(folder, args.repo, args.revision))
    if args.dry_run:
        print("dry run: nothing was pushed")
        return
    report, new = publish(
        source,
        folder,
        args.repo,
        tag=args.tag,
        private=args.private,
        revision=args.revision,
        message=args.message,
        force=args.force,
    )
    print(f"{'pushed' if new else 'nothing to push, the repo has the same content'}: commit {report.commit}")
    _report(report)
    print(f'timm.create_model("hf-hub:{args.repo}", pretrained=True)')


def _name_classes(source: Source, args: argparse.Namespace) -> None:
    """Set the class names of ``source``: those in the user's file, or the found ones if the user agrees."""
    from nfnet_timm.publish.class_names import check_class_names, read_class_names

    found, names = source.found_names, source.label_names
    place: Path | str = args.source / "config.json"
    if args.class_names is not None:
        names, place = read_class_names(args.class_names), args.class_names
        source.label_descriptions = None  # they describe the names that are replaced
    elif names is None and found is not None:
        print(f"class names found in {found.place}: {_some(found.names)}")
        if not (args.yes or _ask("Publish them? [y/N] ")):
            print("they are not published; to publish them pass --yes, to publish others --class-names FILE")
            return
        names, place = found.names, found.place
    if names is not None:
        source.label_names = check_class_names(names, source.model.num_classes, place)
        print(f"class names from {place}: {_some(names)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f", ... ({len(names)} in all)" if len(names) > 10 else "")


def _verify(args: argparse.Namespace) -> None:
    from nfnet_timm.publish.verify import verify

    report = verify(args.repo, args.revision)
    print(f"{args.repo} at commit {report.commit}")
    _report(report)
    for path in report.bad_cached:
        print(f"DAMAGED in your cache: {_one_line(str(path))}. Its hash is not the one that the Hub records")
        if args.remove or _ask("Remove it, so that it is downloaded again? [y/N] "):
            path.resolve().unlink(missing_ok=True)  # the file that the path in the cache is a link to
            path.unlink(missing_ok=True)
            print("removed")
        else:
            raise ValueError("a damaged file is in your cache: run again with --remove, or delete it")


def _doctor(args: argparse.Namespace) -> None:
    from nfnet_timm.doctor import examine

    wrong = 0
    for finding in examine():
        print(f"{finding.subject}: {finding.found}", flush=True)
        if finding.remedy is not None:
            wrong += 1
            print(f"    WRONG. To do: {finding.remedy}", flush=True)
    if wrong:
        raise ValueError(f"{wrong} {'thing is' if wrong == 1 else 'things are'} wrong, see above")


def _ask(question: str) -> bool:
    """Return whether the user answers yes; False without a terminal or an answer."""
    if sys.stdin is None or not sys.stdin.isatty():  # it is None if it was closed
        return False
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False


def _report(report: Report) -> None:
    print(f"  {_one_line(', '.join(report.files))}: hashes as recorded by the Hub")
    if report.difference is None:
        print("  no recorded logits to compare with")
    else:
        print(f"  logits as recorded, within {report.difference:.0e}")
