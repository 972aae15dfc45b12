"""LoRA adapters: what a model has beyond its base, as two factors for each module.

Needs: the source files of the model and of its base.
Makes: results/NAME/updates (temporary), results/NAME/factors with records/ and checks/, the folder
results/NAME/adapter that peft reads, results/NAME/loaded.json of what peft made of it, and
results/NAME/report.
"""


use rule merge_shard as write_update with:
    output:
        shard=temp("<results>/{adapter}/updates/{updates}.safetensors"),
        record="<results>/{adapter}/updates/records/{updates}.json",
    log:
        "<logs>/write_update/{adapter}/{updates}.log",
    benchmark:
        "<benchmarks>/write_update/{adapter}/{updates}.tsv"


use rule check_shard as check_update with:
    output:
        "<results>/{adapter}/updates/checks/{updates}.json",
    log:
        "<logs>/check_update/{adapter}/{updates}.log",


rule build_factors:
    input:
        updates=lambda w: factor_job(w).update,
        record=lambda w: record_path(factor_job(w).update),
    output:
        factors="<results>/{adapter}/factors/{factors}.safetensors",
        record="<results>/{adapter}/factors/records/{factors}.json",
    log:
        "<logs>/build_factors/{adapter}/{factors}.log",
    benchmark:
        "<benchmarks>/build_factors/{adapter}/{factors}.tsv"
    conda:
        "../envs/merge.yaml"
    threads: FIXED_THREADS["merge"]
    resources:
        mem_mb=lambda w, attempt: megabytes(factor_job(w).memory) * attempt,
        disk_mb=lambda w: megabytes(2 * factor_job(w).bytes_written),
        runtime=lambda w, attempt: 20 * shard_minutes(factor_job(w), attempt),
        gpu=int(ON_GPU),
    params:
        spec=lambda w: factor_job(w).digest,
        # not the threads that are there: bits of singular values may depend on their number
        options=lambda w, input: FACTOR_OPTIONS,
    shell:
        'python "$SCRIPTS"/build_factors.py --spec={params.spec:q} --update={input.updates:q}'
        " --output={output.factors:q} --record={output.record:q} {params.options:q} > {log:q} 2>&1"


rule check_factors:
    input:
        updates=lambda w: factor_job(w).update,
        factors="<results>/{adapter}/factors/{factors}.safetensors",
        record="<results>/{adapter}/factors/records/{factors}.json",
    output:
        "<results>/{adapter}/factors/checks/{factors}.json",
    log:
        "<logs>/check_factors/{adapter}/{factors}.log",
    conda:
        "../envs/merge.yaml"
    resources:
        mem_mb=lambda w, attempt: megabytes(factor_job(w).memory) * attempt,
        runtime=lambda w, attempt: 5 * shard_minutes(factor_job(w), attempt),
    params:
        spec=lambda w: factor_job(w).digest,
    shell:
        'python "$SCRIPTS"/check_factors.py --spec={params.spec:q} --update={input.updates:q}'
        " --factors={input.factors:q} --record={input.record:q} --output={output:q} > {log:q} 2>&1"


rule package_adapter:
    input:
        factors=lambda w: [job.output for job in adapter(w).factors],
        records=lambda w: [record_path(job.output) for job in adapter(w).factors],
        checks=lambda w: TARGETS.adapters.checks(w.adapter),
    output:
        weights="<results>/{adapter}/adapter/adapter_model.safetensors",
        config="<results>/{adapter}/adapter/adapter_config.json",
        recipe="<results>/{adapter}/adapter/mergekit_config.yml",
        readme="<results>/{adapter}/adapter/README.md",
        provenance="<results>/{adapter}/adapter/provenance.json",
        checksums="<results>/{adapter}/adapter/SHA256SUMS",
    log:
        "<logs>/package_adapter/{adapter}.log",
    conda:
        "../envs/merge.yaml"
    params:
        adapter=lambda w: adapter(w).digest,
        card=lambda w: TARGETS.adapter_card(),
        base=lambda w: TARGETS.publishing.base_of(w.adapter) or "",
        repository=lambda w: TARGETS.publishing.own_of(w.adapter) or "",
        inputs=lambda w, input: listed(factors=input.factors, records=input.records),
    shell:
        'python "$SCRIPTS"/package_adapter.py --adapter={params.adapter:q}'
        " --inputs={params.inputs:q} --card={params.card:q} --base={params.base:q} --repository={params.repository:q}"
        " --weights={output.weights:q}"
        " --config={output.config:q} --recipe={output.recipe:q} --readme={output.readme:q}"
        " --provenance={output.provenance:q} --checksums={output.checksums:q} > {log:q} 2>&1"


rule load_adapter:
    input:
        adapter=[
            "<results>/{adapter}/adapter/adapter_model.safetensors",
            "<results>/{adapter}/adapter/adapter_config.json",
        ],
        base=exit_on_user_error(lambda w: ancient(TARGETS.adapters.base_files(w.adapter))),
    output:
        "<results>/{adapter}/loaded.json",
    log:
        "<logs>/load_adapter/{adapter}.log",
    conda:
        "../envs/benchmark.yaml"
    resources:
        mem_mb=lambda w, attempt: megabytes(TARGETS.adapters.load_bytes(w.adapter), 2000) * attempt,
        runtime=lambda w, attempt: 30 * attempt,
    params:
        adapter=lambda w: adapter(w).digest,
        folder=lambda w: TARGETS.paths.adapter(w.adapter),
        base=lambda w: TARGETS.adapters.base(w.adapter).folder,
        options=lambda w: [] if TARGETS.adapters.on_weights(w.adapter) else ["--architecture"],
    shell:
        'python "$SCRIPTS"/load_adapter.py --adapter={params.folder:q} --base={params.base:q}'
        " {params.options:q} --output={output:q} > {log:q} 2>&1"


rule report_adapter:
    input:
        lambda w: [record_path(job.output) for job in adapter(w).factors],
    output:
        page=report(
            "<results>/{adapter}/report/adapter.html",
            caption="../report/adapter.rst",
            category="{adapter}",
            labels={"what": "at a glance"},
        ),
        table="<results>/{adapter}/report/adapter.tsv",
        errors=report(
            "<results>/{adapter}/report/errors.svg",
            caption="../report/adapter_errors.rst",
            category="{adapter}",
            labels={"what": "left out"},
        ),
        ranks=report(
            "<results>/{adapter}/report/ranks.svg",
            caption="../report/adapter_ranks.rst",
            category="{adapter}",
            labels={"what": "ranks"},
        ),
    log:
        "<logs>/report_adapter/{adapter}.log",
    conda:
        "../envs/merge.yaml"
    params:
        adapter=lambda w: adapter(w).digest,
        inputs=lambda w, input: listed(records=input),
    shell:
        'python "$SCRIPTS"/report_adapter.py --adapter={params.adapter:q}'
        " --inputs={params.inputs:q} --page={output.page:q} --table={output.table:q}"
        " --errors={output.errors:q} --ranks={output.ranks:q} > {log:q} 2>&1"
