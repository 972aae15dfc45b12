"""Places of results: the same in Python and in the rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardmerge.package.adapter import FILES
from shardmerge.plan.paths import CHECKSUMS, Paths, check_record_path, record_of_check, record_path
from shardmerge.report.interference_plots import PLOTS
from shardmerge.run.targets import ADAPTER_PAGES

RULES = "".join(p.read_text() for p in (Path(__file__).parents[3] / "rules").glob("*.smk"))
PATHS = Paths("<results>")
SHARD = PATHS.model_file("{name}", "{shard}.safetensors")
DELTA = PATHS.delta("{pair}", "{delta}.safetensors")
UPDATES = PATHS.update("{adapter}", "{updates}.safetensors")
FACTORS = PATHS.factors("{adapter}", "{factors}.safetensors")
SHARDS = (SHARD, DELTA, UPDATES, FACTORS)


@pytest.mark.parametrize(
    "path",
    [
        SHARD,
        DELTA,
        UPDATES,
        FACTORS,
        *(make(shard) for make in (record_path, check_record_path) for shard in SHARDS),
        *(PATHS.adapter_file("{adapter}", file) for file in (*FILES, CHECKSUMS)),
        *(PATHS.report_file("{adapter}", file) for file in ADAPTER_PAGES),
        *(PATHS.build("{name}", f"{what}.json") for what in ("verify", "loaded", "published")),
        PATHS.model_file("{name}", "config.json"),
        PATHS.tokenizer_file("{name}", "{tokenizer}"),
        PATHS.benchmark_file("{name}", "{model}/{task}.json"),
        PATHS.benchmark_file("{name}", "table.json"),
        *(PATHS.report_file("{name}", file) for file in ("summary.html", "plan.html", "norms.svg")),
        *(PATHS.report_file("{name}", f"interference.{kind}") for kind in ("json", "csv")),
        *(PATHS.report_file("{name}", f"{plot}.svg") for plot in PLOTS),
    ],
)
def test_a_rule_makes_it(path: str) -> None:
    assert f'"{path}"' in RULES


@pytest.mark.parametrize("shard", SHARDS)
def test_a_check_tells_its_record(shard: str) -> None:
    assert record_of_check(check_record_path(shard)) == record_path(shard)
