"""Small sources that are made before anything is merged: one job each, shared by all recipes.

Needs: whole models and the text that they read, files of norms, or the embedding of a donor; see
the kinds in `plan/making.py`.
Makes: results/measured/DIGEST.safetensors (directions for routers of a mixture of experts, Gram
matrices, Fisher information, or the norm of a task vector) and
results/transplants/DIGEST.safetensors (for each token that a model lacks the rows that its row is
a sum of, and their weights). They are sources of merge jobs. The digest is of the content of what
is read, and of the options.
"""


rule make_source:
    input:
        lambda w: ancient(BUILT.to_read(made_job(w))),
    output:
        "<results>/{made}/{digest}.safetensors",
    log:
        "<logs>/make_source/{made}/{digest}.log",
    benchmark:
        "<benchmarks>/make_source/{made}/{digest}.tsv"
    wildcard_constraints:
        made="|".join(sorted({kind.folder for kind in MADE_KINDS.values()})),
        digest="[0-9a-f]{64}",
    conda:
        lambda w: {"merge": "../envs/merge.yaml", "benchmark": "../envs/benchmark.yaml"}[
            made_job(w).environment
        ]
    threads: lambda w: FIXED_THREADS[made_job(w).environment]
    resources:
        mem_mb=lambda w, attempt: megabytes(made_job(w).memory) * attempt,
        disk_mb=lambda w: megabytes(made_job(w).bytes_written),
        runtime=lambda w, attempt: 120 * attempt,
        gpu=int(ON_GPU),
    params:
        # not the threads that are there: a last bit may depend on their number
        options=lambda w: [
            f"--device={SETTINGS['device']}",
            f"--threads={FIXED_THREADS[made_job(w).environment]}",
        ],
    shell:
        'python "$SCRIPTS"/make_source.py --job={wildcards.digest:q}'
        " --output={output:q} {params.options:q} > {log:q} 2>&1"
