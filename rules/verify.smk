"""Checks that a model is whole, finite and as planned, and that transformers loads it.

Needs: the shards, the files that they were made from, the package.
Makes: results/NAME/checks/SHARD.json (a sample of each tensor, recomputed in float64),
results/NAME/verify.json and results/NAME/loaded.json. With `sources_check: full` also
.shardmerge/sources/KEY.json, the SHA-256 of a large file of a local model.
"""


rule check_shard:
    input:
        shard=lambda w: BUILT.to_check(job_of(w)).output or [],
        record=lambda w: record_path(job_of(w).output),
        sources=lambda w: ancient(BUILT.to_check(job_of(w)).sources),
        deltas=lambda w: ancient(BUILT.to_check(job_of(w)).deltas),
    output:
        "<results>/{name}/checks/{shard}.json",
    log:
        "<logs>/check_shard/{name}/{shard}.log",
    retries: 1
    conda:
        "../envs/merge.yaml"
    resources:
        mem_mb=lambda w, attempt: megabytes(job_of(w).check_memory) * attempt,
        runtime=lambda w, attempt: shard_minutes(job_of(w), attempt),
    params:
        spec=lambda w: job_of(w).digest,
        inputs=lambda w, input: listed(sources=input.sources, deltas=input.deltas),
    shell:
        'python "$SCRIPTS"/check_shard.py --spec={params.spec:q} --shard={input.shard:q}'
        " --record={input.record:q} --inputs={params.inputs:q} --output={output:q} > {log:q} 2>&1"


rule hash_source:
    input:
        lambda w: ancient(TARGETS.large[w.hashed][0]),
    output:
        f"{HASHES}/{{hashed}}.json",
    log:
        "<logs>/hash_source/{hashed}.log",
    wildcard_constraints:
        hashed="[0-9a-f]+",
    conda:
        "../envs/merge.yaml"
    resources:
        runtime=lambda w, input, attempt: minutes(
            input.size, RESOURCES["disk_mb_per_second"], attempt
        ),
    params:
        identity=lambda w: TARGETS.large[w.hashed][1],
        # an edited file is hashed again, even if its time of change was set back
        stamp=lambda w: TARGETS.stamp(w.hashed),
    shell:
        'python "$SCRIPTS"/hash_source.py --source={input:q} --identity={params.identity:q}'
        " --output={output:q} > {log:q} 2>&1"


rule verify_model:
    input:
        shards=lambda w: TARGETS.shards(w.name),
        records=records,
        checks=lambda w: TARGETS.checks(w.name),
        deltas=lambda w: TARGETS.delta_checks(w.name),
        hashes=lambda w: TARGETS.hashes(w.name),
        files=package_files,
    output:
        "<results>/{name}/verify.json",
    log:
        "<logs>/verify_model/{name}.log",
    conda:
        "../envs/merge.yaml"
    resources:
        # shards that an earlier plan left are read before they go
        runtime=lambda w, attempt: minutes(
            build(w).bytes_written, RESOURCES["disk_mb_per_second"], attempt
        ),
    params:
        build=lambda w: build(w).digest,
        # so that hashes are asked for as soon as they are wanted, and again if a file was edited
        stamps=lambda w: TARGETS.stamps(w.name),
        model=lambda w: TARGETS.paths.model(w.name),
        inputs=lambda w, input: listed(
            checks=input.checks,
            deltas=input.deltas,
            records=input.records,
            hashes=input.hashes,
        ),
    shell:
        'python "$SCRIPTS"/verify_model.py --build={params.build:q} --model={params.model:q}'
        " --inputs={params.inputs:q} --output={output:q} > {log:q} 2>&1"


rule load_model:
    input:
        verified="<results>/{name}/verify.json",
        shards=lambda w: TARGETS.shards(w.name),
        records=records,
        files=package_files,
    output:
        "<results>/{name}/loaded.json",
    log:
        "<logs>/load_model/{name}.log",
    wildcard_constraints:
        name=MODELS_ALONE,
    conda:
        "../envs/benchmark.yaml"
    resources:
        mem_mb=lambda w, attempt: min(megabytes(build(w).bytes_written, 2000), 12000) * attempt,
        runtime=lambda w, attempt: 30 * attempt,
    params:
        build=lambda w: build(w).digest,
        model=lambda w: TARGETS.paths.model(w.name),
        inputs=lambda w, input: listed(records=input.records),
    shell:
        'python "$SCRIPTS"/load_model.py --build={params.build:q} --model={params.model:q}'
        " --inputs={params.inputs:q} --output={output:q} > {log:q} 2>&1"
