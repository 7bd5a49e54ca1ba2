"""Publishes every released checkpoint: the authors' files in a folder, to the organization of hub/checkpoints.toml.

    python scripts/publish_all.py FOLDER [--download] [--organization ORG] [--out DIR] [--dry-run] [--force]
    python scripts/publish_all.py --cards       print the model card of each, which needs no files

After an interruption, run the same command again: a repo with the same content gets no new commit. After a missing file
or a failure, the script continues with the next checkpoint and ends with exit status 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import timm

from nfnet_timm import cli
from nfnet_timm.publish.card import render_card
from nfnet_timm.publish.checkpoints import load_published
from nfnet_timm.publish.sources import Source
from nfnet_timm.signals import exit_status


def main() -> int:
    """Publish them and return the exit status."""
    published = load_published()
    parser = argparse.ArgumentParser(description="Publish every checkpoint of hub/checkpoints.toml.")
    parser.add_argument("folder", type=Path, nargs="?", help="where the authors' F*_haiku.npz are")
    parser.add_argument(
        "--cards", action="store_true", help="print the model cards and publish nothing; needs no folder"
    )
    parser.add_argument("--download", action="store_true", help="fetch those that are missing, 7 GB in all")
    parser.add_argument("--organization", default=published["organization"], help="whose repos (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("hub-repos"), help="where to build (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="build, check and show; push nothing")
    parser.add_argument("--force", action="store_true", help="replace what repos have under the same names")
    args = parser.parse_args()
    if args.cards:
        for name in published["checkpoints"]:
            model = timm.create_model(name.split(".")[0], device="meta").eval()
            source = Source(model, {}, {}, checkpoint=name, identified_by="MD5")
            print(render_card(source, f"{args.organization}/{name}"))
        return 0
    if args.folder is None:
        parser.error("FOLDER is missing: name the folder with the authors' files, or pass --cards")
    failed = []
    options = [*(["--dry-run"] if args.dry_run else []), *(["--force"] if args.force else [])]
    for number, (name, checkpoint) in enumerate(published["checkpoints"].items(), start=1):
        print(f"[{number}/{len(published['checkpoints'])}] {name}")
        file = args.folder / checkpoint["file"]
        if not (args.download or file.exists()):
            print(f"error: {file} is missing: pass --download, or fetch {checkpoint['url']}", file=sys.stderr)
            failed.append(name)
            continue
        fetch = ["download", name, "--to", str(args.folder)]  # compares the MD5 of a file that exists
        publish = ["publish", str(file), f"{args.organization}/{name}", "--out", str(args.out / name), *options]
        status = cli.main(fetch) or cli.main(publish)
        if status >= 128:  # a signal
            return status
        if status:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}. Run the same command again after you have fixed this", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt as error:  # between two commands; each command handles its own
        print("interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(exit_status(error))
