"""Output shards: one job each. Its memory does not depend on tensor, shard or model.

Needs: the source files that hold the shard's tensors, and stored task vectors if there are any.
Makes: results/NAME/model/model-0000k-of-0000n.safetensors and a record of how it went.
"""


rule merge_shard:
    input:
        sources=lambda w: ancient(BUILT.to_make(job_of(w)).sources),
        deltas=lambda w: ancient(BUILT.to_make(job_of(w)).deltas),
        delta_records=lambda w: ancient(delta_records(BUILT.to_make(job_of(w)))),
        room=lambda w: ancient(room_for(w)),
    output:
        shard="<results>/{name}/model/{shard}.safetensors",
        record="<results>/{name}/records/{shard}.json",
    log:
        "<logs>/merge_shard/{name}/{shard}.log",
    benchmark:
        "<benchmarks>/merge_shard/{name}/{shard}.tsv"
    priority: 2  # first, since the disk is what takes longest; checks come last
    conda:
        "../envs/merge.yaml"
    threads: lambda w: merge_threads(job_of(w))
    resources:
        mem_mb=lambda w, threads, attempt: megabytes(job_of(w).memory_for(threads)) * attempt,
        disk_mb=lambda w: megabytes(job_of(w).bytes_written),
        runtime=lambda w, attempt: shard_minutes(job_of(w), attempt),
        gpu=lambda w: int(job_of(w).card),
    params:
        spec=lambda w: job_of(w).digest,
        inputs=lambda w, input: listed(sources=input.sources, deltas=input.deltas),
        options=lambda w, input: MERGE_OPTIONS,
    shell:
        'python "$SCRIPTS"/merge.py --spec={params.spec:q} --inputs={params.inputs:q}'
        " --output={output.shard:q} --record={output.record:q} --threads={threads}"
        " {params.options:q} > {log:q} 2>&1"
