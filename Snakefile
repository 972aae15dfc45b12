# shardmerge: merged language models from mergekit recipes, one shard at a time.
#
# Lock, then plan, then run: rules/common.smk decides all jobs from recipes, locks and
# configuration; the rules below only carry them out.


from pathlib import Path

from snakemake.utils import min_version

min_version("9.20")


# Without one in the working folder everything has its default.
if Path("config/config.yaml").is_file():

    configfile: "config/config.yaml"


report: "report/workflow.rst"


include: "rules/home.smk"
include: "rules/common.smk"
include: "rules/runs.smk"
include: "rules/lock.smk"
include: "rules/convert.smk"
include: "rules/fetch.smk"
include: "rules/made.smk"
include: "rules/merge.smk"
include: "rules/package.smk"
include: "rules/verify.smk"
include: "rules/delta.smk"
include: "rules/adapter.smk"
include: "rules/benchmark.smk"
include: "rules/sweep.smk"
include: "rules/export.smk"
include: "rules/report.smk"
include: "rules/publish.smk"


rule all:
    default_target: True
    input:
        wanted(TARGETS.models()),
        wanted(TARGETS.loaded()),
        wanted(TARGETS.tables()),
        wanted(TARGETS.comparison()),
        wanted(TARGETS.cards()),
        wanted(TARGETS.exports.packages()),
        wanted(TARGETS.reports()),


rule models:
    input:
        wanted(TARGETS.models()),


rule benchmarks:
    input:
        wanted(TARGETS.tables()),
        wanted(TARGETS.comparison()),
        wanted(TARGETS.cards()),


rule report:
    input:
        wanted(TARGETS.reports()),


rule sweep:
    input:
        wanted(SWEEPS.finished() if SWEEPING else []),


rule search:
    input:
        wanted(SWEEPS.generation() if SWEEPING else []),
