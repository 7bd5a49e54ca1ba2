"""Publishes every released checkpoint: the authors' files in a folder, to the organization of hub/checkpoints.toml.

python scripts/publish_all.py FOLDER [--download] [--organization ORG] [--out DIR] [--dry-run] [--force]

It can be interrupted and started again: what is on the Hub already makes no new commit. A file that is missing or fails
does not keep the others; the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from safetensors import SafetensorError

from nfnet_timm.publish.checkpoints import load_published
from nfnet_timm.publish.download import download
from nfnet_timm.publish.folder import build_repo, show_repo
from nfnet_timm.publish.push import publish
from nfnet_timm.publish.sources import open_model


def main(argv: list[str] | None = None) -> int:
    """Publish them and return the exit status."""
    published = load_published()
    parser = argparse.ArgumentParser(description="Publish every checkpoint of hub/checkpoints.toml.")
    parser.add_argument("folder", type=Path, help="where the authors' F*_haiku.npz are")
    parser.add_argument("--download", action="store_true", help="fetch those that are missing, 7 GB in all")
    parser.add_argument("--organization", default=published["organization"], help="whose repos (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("hub-repos"), help="where to build (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="build, check and show; push nothing")
    parser.add_argument("--force", action="store_true", help="replace what repos have under the same names")
    args = parser.parse_args(argv)
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
        except (ValueError, OSError, SafetensorError) as error:
            failed.append(name)
            print(f"  error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print("interrupted; run the same command again to go on", file=sys.stderr)
            return 130
    if failed:
        print(f"failed: {', '.join(failed)}. Run the same command again when this is mended", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
