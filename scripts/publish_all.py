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

from nfnet_timm.publish.card import render_card
from nfnet_timm.publish.checkpoints import load_published
from nfnet_timm.publish.download import download
from nfnet_timm.publish.folder import build_repo, show_repo
from nfnet_timm.publish.push import publish
from nfnet_timm.publish.sources import Source, open_model
from nfnet_timm.signals import exit_status, interrupted_by_signals


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
    for number, (name, checkpoint) in enumerate(published["checkpoints"].items(), start=1):
        print(f"[{number}/{len(published['checkpoints'])}] {name}")
        file, repo_id = args.folder / checkpoint["file"], f"{args.organization}/{name}"
        try:
            if args.download:
                download(name, args.folder)
            if not file.exists():
                raise ValueError(f"{file} is missing: pass --download, or fetch {checkpoint['url']}")
            source = open_model(file)
            if source.checkpoint != name:
                raise ValueError(f"{file} is not the released file: {source.origin()}")
            build_repo(source, repo_id, args.out / name)
            if args.dry_run:
                print(show_repo(args.out / name, repo_id, "main"))
                continue
            report, new = publish(source, args.out / name, repo_id, force=args.force)
            print(f"  {'pushed' if new else 'was there'}: commit {report.commit}, verified")
        except (ValueError, OSError) as error:
            failed.append(name)
            print(f"  error: {error}", file=sys.stderr)
    if failed:
        print(f"failed: {', '.join(failed)}. Run the same command again after you have fixed this", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    try:
        with interrupted_by_signals():
            sys.exit(main())
    except KeyboardInterrupt as error:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(exit_status(error))
