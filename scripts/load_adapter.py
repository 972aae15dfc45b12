"""Load a finished LoRA adapter with peft on its base, and let the two generate."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base.files import write_json
from shardmerge.check.adapter_load import try_adapter
from shardmerge.check.load import stay_offline
from shardmerge.run.cli import claim, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", required=True, type=Path, help="the adapter's folder")
    parser.add_argument("--base", required=True, type=Path, help="its base's folder")
    parser.add_argument("--architecture", action="store_true", help="of the base only this")
    parser.add_argument("--output", required=True, type=Path, help="where to write what was found")
    args = parser.parse_args()
    claim(args.output)

    args.output.unlink(missing_ok=True)  # an earlier pass must not outlive a failure
    stay_offline()
    found = try_adapter(args.adapter, args.base, weights=not args.architecture)
    write_json(args.output, {"passed": True, **found})
    print(f"loaded on {found['architecture']}, {found['loaded']}")
    if found.get("text") is not None:
        print(f'after "{found["prompt"]}" it goes on: "{found["text"]}"')


if __name__ == "__main__":
    run(main)
