"""Whole models measured before anything is merged: one job a model, shared by all recipes.

Needs: all files of the model, the text that it reads (if it reads one), and transformers (but for
norms).
Makes: results/measured/DIGEST.safetensors. It is a source of merge jobs: directions for routers of
a mixture of experts, Gram matrices, Fisher information, or the norm of a task vector. The digest
is of the content of the model's files and of the text, and of the options.
"""


rule measure_model:
    input:
        lambda w: ancient(BUILT.to_read(measure_job(w))),
    output:
        "<results>/measured/{measured}.safetensors",
    log:
        "<logs>/measure_model/{measured}.log",
    benchmark:
        "<benchmarks>/measure_model/{measured}.tsv"
    wildcard_constraints:
        measured="[0-9a-f]{64}",
    conda:
        "../envs/benchmark.yaml"
    threads: RESOURCES["benchmark_threads"]
    resources:
        mem_mb=lambda w, attempt: megabytes(measure_job(w).memory) * attempt,
        runtime=lambda w, attempt: 60 * attempt,
        gpu=int(ON_GPU),
    params:
        options=lambda w: [f"--device={SETTINGS['device']}"],
    shell:
        'python "$SCRIPTS"/measure_model.py --job={wildcards.measured:q} --threads={threads}'
        " --output={output:q} {params.options:q} > {log:q} 2>&1"
