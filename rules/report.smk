"""What people look at: a summary, coefficients, task vectors, interference, benchmarks, times, the plan.

Needs: the plan, the records of jobs and checks, the benchmark table; of verification and loading
what there is.
Makes: results/NAME/report, and `snakemake --report report.html` puts all of it in one file.
"""


rule summarize_model:
    input:
        verified="<results>/{name}/verify.json",
        loaded=lambda w: TARGETS.loading(w.name, waits=HEAD and not REPORT_ALONE),
        table=lambda w: TARGETS.table(w.name),
        statistics="<results>/{name}/report/interference.json",
        exports=lambda w: TARGETS.exports.found(w.name, waits=HEAD and not REPORT_ALONE),
    output:
        report(
            "<results>/{name}/report/summary.html",
            caption="../report/summary.rst",
            category="{name}",
            # results are shown in the order of their labels
            labels={"what": "at a glance"},
        ),
    log:
        "<logs>/summarize_model/{name}.log",
    group:
        "report"
    conda:
        "../envs/merge.yaml"
    params:
        build=lambda w: build(w).digest,
        plan=lambda w: DECISION.path,
        folder=lambda w: TARGETS.paths.folder(w.name),
        inputs=lambda w, input: listed(exports=input.exports),
    shell:
        'python "$SCRIPTS"/summarize_model.py --plan={params.plan:q} --name={wildcards.name:q}'
        " --folder={params.folder:q} --verified={input.verified:q} --loaded={input.loaded:q}"
        " --table={input.table:q} --statistics={input.statistics:q}"
        " --inputs={params.inputs:q} --output={output:q}"
        " > {log:q} 2>&1"


rule tabulate_plan:
    output:
        report(
            "<results>/{name}/report/plan.html",
            caption="../report/plan.rst",
            category="{name}",
            labels={"what": "plan"},
        ),
    log:
        "<logs>/tabulate_plan/{name}.log",
    group:
        "report"
    conda:
        "../envs/merge.yaml"
    params:
        build=lambda w: build(w).digest,
        plan=lambda w: DECISION.path,
    shell:
        'python "$SCRIPTS"/tabulate_plan.py --plan={params.plan:q} --name={wildcards.name:q}'
        " --output={output:q} > {log:q} 2>&1"


rule plot_coefficients:
    output:
        report(
            "<results>/{name}/report/coefficients.svg",
            caption="../report/coefficients.rst",
            category="{name}",
            labels={"what": "coefficients"},
        ),
    log:
        "<logs>/plot_coefficients/{name}.log",
    group:
        "report"
    conda:
        "../envs/merge.yaml"
    params:
        build=lambda w: build(w).digest,
    shell:
        'python "$SCRIPTS"/plot_coefficients.py --build={params.build:q} --output={output:q}'
        " > {log:q} 2>&1"


rule plot_norms:
    input:
        records=records,
        deltas=lambda w: TARGETS.delta_records(w.name),
    output:
        plot=report(
            "<results>/{name}/report/norms.svg",
            caption="../report/norms.rst",
            category="{name}",
            labels={"what": "task vector"},
        ),
        table="<results>/{name}/report/norms.tsv",
    log:
        "<logs>/plot_norms/{name}.log",
    group:
        "report"
    conda:
        "../envs/merge.yaml"
    params:
        build=lambda w: build(w).digest,
        inputs=lambda w, input: listed(records=[*input.records, *input.deltas]),
    shell:
        'python "$SCRIPTS"/plot_norms.py --build={params.build:q} --inputs={params.inputs:q}'
        " --output={output.plot:q} --table={output.table:q} > {log:q} 2>&1"


rule collect_statistics:
    input:
        lambda w: TARGETS.checks(w.name),
    output:
        json="<results>/{name}/report/interference.json",
        csv="<results>/{name}/report/interference.csv",
    log:
        "<logs>/collect_statistics/{name}.log",
    group:
        "report"
    conda:
        "../envs/merge.yaml"
    params:
        build=lambda w: build(w).digest,
        inputs=lambda w, input: listed(checks=input),
    shell:
        'python "$SCRIPTS"/collect_statistics.py --build={params.build:q} --inputs={params.inputs:q}'
        " --output={output.json:q} --table={output.csv:q} > {log:q} 2>&1"


rule plot_directions:
    input:
        "<results>/{name}/report/interference.json",
    output:
        report(
            "<results>/{name}/report/directions.svg",
            caption="../report/directions.rst",
            category="{name}",
            labels={"what": "interference: directions"},
        ),
    log:
        "<logs>/plot_directions/{name}.log",
    group:
        "report"
    conda:
        "../envs/merge.yaml"
    params:
        what="directions",
    shell:
        'python "$SCRIPTS"/plot_statistics.py --what={params.what:q} --statistics={input:q}'
        " --output={output:q} > {log:q} 2>&1"


use rule plot_directions as plot_signs with:
    output:
        report(
            "<results>/{name}/report/signs.svg",
            caption="../report/signs.rst",
            category="{name}",
            labels={"what": "interference: signs"},
        ),
    log:
        "<logs>/plot_signs/{name}.log",
    params:
        what="signs",


use rule plot_directions as plot_kept with:
    output:
        report(
            "<results>/{name}/report/kept.svg",
            caption="../report/kept.rst",
            category="{name}",
            labels={"what": "kept"},
        ),
    log:
        "<logs>/plot_kept/{name}.log",
    params:
        what="kept",


use rule plot_directions as plot_distances with:
    output:
        report(
            "<results>/{name}/report/distances.svg",
            caption="../report/distances.rst",
            category="{name}",
            labels={"what": "distance to parents"},
        ),
    log:
        "<logs>/plot_distances/{name}.log",
    params:
        what="distances",


rule plot_timings:
    input:
        records=records,
        deltas=lambda w: TARGETS.delta_records(w.name),
    output:
        report(
            "<results>/{name}/report/timings.svg",
            caption="../report/timings.rst",
            category="{name}",
            labels={"what": "time"},
        ),
    log:
        "<logs>/plot_timings/{name}.log",
    group:
        "report"
    conda:
        "../envs/merge.yaml"
    params:
        inputs=lambda w, input: listed(records=[*input.records, *input.deltas]),
    shell:
        'python "$SCRIPTS"/plot_timings.py --inputs={params.inputs:q} --output={output:q}'
        " > {log:q} 2>&1"


rule plot_benchmarks:
    input:
        "<results>/{name}/benchmarks/table.json",
    output:
        report(
            "<results>/{name}/report/benchmarks.svg",
            caption="../report/benchmarks.rst",
            category="{name}",
            labels={"what": "benchmarks"},
        ),
    log:
        "<logs>/plot_benchmarks/{name}.log",
    group:
        "report"
    conda:
        "../envs/merge.yaml"
    shell:
        'python "$SCRIPTS"/plot_benchmarks.py --table={input:q} --merged={wildcards.name:q}'
        " --output={output:q} > {log:q} 2>&1"


rule plot_divergence:
    input:
        "<results>/{name}/benchmarks/table.json",
    output:
        report(
            "<results>/{name}/report/divergence.svg",
            caption="../report/divergence.rst",
            category="{name}",
            labels={"what": "divergence"},
        ),
    log:
        "<logs>/plot_divergence/{name}.log",
    group:
        "report"
    conda:
        "../envs/merge.yaml"
    shell:
        'python "$SCRIPTS"/plot_probes.py --table={input:q} --merged={wildcards.name:q}'
        " --output={output:q} > {log:q} 2>&1"


rule plot_needles:
    input:
        results=lambda w: TARGETS.probe_results(w.name, "needle"),
        samples=lambda w: samples_of(TARGETS.probe_results(w.name, "needle")),
    output:
        report(
            "<results>/{name}/report/needles.svg",
            caption="../report/needles.rst",
            category="{name}",
            labels={"what": "needles"},
        ),
    log:
        "<logs>/plot_needles/{name}.log",
    group:
        "report"
    conda:
        "../envs/merge.yaml"
    params:
        inputs=lambda w, input: listed(results=input.results),
    shell:
        'python "$SCRIPTS"/plot_probes.py --inputs={params.inputs:q} --merged={wildcards.name:q}'
        " --output={output:q} > {log:q} 2>&1"


rule compare_page:
    input:
        "<results>/benchmarks/table.json",
    output:
        report(
            "<results>/benchmarks/compare.html",
            caption="../report/compare.rst",
            category="Compare",
            labels={"what": "all models"},
        ),
    log:
        "<logs>/compare_page.log",
    group:
        "report"
    conda:
        "../envs/merge.yaml"
    params:
        builds=lambda w: [made.digest for made in PLAN.models.values()],
        plan=lambda w: DECISION.path,
    shell:
        'python "$SCRIPTS"/compare_page.py --plan={params.plan:q} --table={input:q}'
        " --output={output:q} > {log:q} 2>&1"
