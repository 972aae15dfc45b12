"""Task vectors that are worth storing: the difference of a fine-tuned model and its base.

Needs: the fine-tuned model's file and the base model's files that hold the same tensors.
Makes: results/deltas/FINETUNED-minus-BASE-DTYPE/delta-0000k-of-0000n.safetensors, and beside them
records/ and checks/, as for output shards.
"""


rule store_delta:
    input:
        sources=lambda w: ancient(BUILT.to_make(delta_job(w)).sources),
    output:
        shard=DELTA("<results>/deltas/{pair}/{delta}.safetensors"),
        record="<results>/deltas/{pair}/records/{delta}.json",
    log:
        "<logs>/store_delta/{pair}/{delta}.log",
    benchmark:
        "<benchmarks>/store_delta/{pair}/{delta}.tsv"
    conda:
        "../envs/merge.yaml"
    threads: RESOURCES["merge_threads"]
    resources:
        mem_mb=lambda w, attempt: megabytes(delta_job(w).memory) * attempt,
        disk_mb=lambda w: megabytes(delta_job(w).bytes_written),
        runtime=lambda w, attempt: shard_minutes(delta_job(w), attempt),
        gpu=int(ON_GPU),
    params:
        spec=lambda w: delta_job(w).digest,
        inputs=lambda w, input: listed(sources=input.sources),
        options=lambda w, input: MERGE_OPTIONS,
    shell:
        'python "$SCRIPTS"/merge.py --spec={params.spec:q} --inputs={params.inputs:q}'
        " --output={output.shard:q} --record={output.record:q} --threads={threads}"
        " {params.options:q} > {log:q} 2>&1"


rule check_delta:
    input:
        shard=lambda w: BUILT.to_check(delta_job(w)).output or [],
        record="<results>/deltas/{pair}/records/{delta}.json",
        sources=lambda w: ancient(BUILT.to_check(delta_job(w)).sources),
    output:
        "<results>/deltas/{pair}/checks/{delta}.json",
    log:
        "<logs>/check_delta/{pair}/{delta}.log",
    retries: 1
    conda:
        "../envs/merge.yaml"
    resources:
        mem_mb=lambda w, attempt: megabytes(delta_job(w).check_memory) * attempt,
        runtime=lambda w, attempt: shard_minutes(delta_job(w), attempt),
    params:
        spec=lambda w: delta_job(w).digest,
        inputs=lambda w, input: listed(sources=input.sources),
    shell:
        'python "$SCRIPTS"/check_shard.py --spec={params.spec:q} --shard={input.shard:q}'
        " --record={input.record:q} --inputs={params.inputs:q} --output={output:q} > {log:q} 2>&1"
