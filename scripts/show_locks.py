"""Print what the locks of recipes pin."""

from __future__ import annotations

import argparse

from shardmerge.base.text import human_bytes
from shardmerge.run.cli import run, show
from shardmerge.sources.lock import read_lock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("locks", nargs="+", help="lock files")
    for path in parser.parse_args().locks:
        show(f"{path}\n")
        for name, source in read_lock(path).sources.items():
            size = sum(file.size for file in source.files.values())
            origin = f"{source.repo}@{source.commit}" if source.repo else source.store.title
            show(
                f"  {name}: {origin}, {len(source.tensors)} tensors in "
                f"{len({t.file for t in source.tensors.values()})} files, {human_bytes(size)}\n"
            )


if __name__ == "__main__":
    run(main)
