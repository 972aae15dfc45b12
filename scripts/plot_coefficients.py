"""Plot a model's effective coefficients: layers, modules, sources."""

from __future__ import annotations

from shardmerge.run.worker import start_job


def main() -> None:
    # not before a job is known to run here
    import argparse

    from shardmerge.plan.description import load_description
    from shardmerge.report.coefficients import coefficients
    from shardmerge.report.plots import draw_coefficients
    from shardmerge.run.cli import claim

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True, help="digest of the build's description")
    parser.add_argument("--output", required=True, help="SVG file")
    args = parser.parse_args()
    claim(args.output)
    build = load_description(args.build)
    found = coefficients(build.coefficients)
    draw_coefficients(build.name, found, list(build.sources), args.output)


if __name__ == "__main__":
    start_job(main)
