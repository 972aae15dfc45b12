"""Places of results: the same in Python and in the rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardmerge.plan.paths import Paths, check_record_path, record_of_check, record_path
from shardmerge.report.interference_plots import PLOTS

RULES = "".join(p.read_text() for p in (Path(__file__).parents[3] / "rules").glob("*.smk"))
PATHS = Paths("<results>")
SHARD = PATHS.model_file("{name}", "{shard}.safetensors")
DELTA = PATHS.delta("{pair}", "{delta}.safetensors")


@pytest.mark.parametrize(
    "path",
    [
        SHARD,
        DELTA,
        *(make(shard) for make in (record_path, check_record_path) for shard in (SHARD, DELTA)),
        *(PATHS.build("{name}", f"{what}.json") for what in ("verify", "loaded", "published")),
        PATHS.model_file("{name}", "config.json"),
        PATHS.tokenizer_file("{name}", "{file}"),
        PATHS.benchmark_file("{name}", "{model}/{task}.json"),
        PATHS.benchmark_file("{name}", "table.json"),
        *(PATHS.report_file("{name}", file) for file in ("summary.html", "plan.html", "norms.svg")),
        *(PATHS.report_file("{name}", f"interference.{kind}") for kind in ("json", "csv")),
        *(PATHS.report_file("{name}", f"{plot}.svg") for plot in PLOTS),
    ],
)
def test_a_rule_makes_it(path: str) -> None:
    assert f'"{path}"' in RULES


@pytest.mark.parametrize("shard", [SHARD, DELTA])
def test_a_check_tells_its_record(shard: str) -> None:
    assert record_of_check(check_record_path(shard)) == record_path(shard)
