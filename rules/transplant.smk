"""Rows of tokens that a model lacks (`approximate` in a tokenizer block): one job for each kind.

Needs: the file of a donor's embedding, or the tokenizer that splits the tokens.
Makes: results/transplants/DIGEST.safetensors: for each token the rows that its row is a sum of, and
their weights. It is a source of the jobs that write the embeddings. The digest is of the donor's
embedding, the tokens and the method.
"""


rule transplant_tokens:
    input:
        lambda w: ancient(BUILT.to_read(transplant_job(w))),
    output:
        "<results>/transplants/{transplant}.safetensors",
    log:
        "<logs>/transplant_tokens/{transplant}.log",
    benchmark:
        "<benchmarks>/transplant_tokens/{transplant}.tsv"
    wildcard_constraints:
        transplant="[0-9a-f]{64}",
    conda:
        "../envs/benchmark.yaml"
    threads: RESOURCES["merge_threads"]
    resources:
        mem_mb=lambda w, attempt: megabytes(transplant_job(w).memory) * attempt,
        runtime=lambda w, attempt: 120 * attempt,
        gpu=int(ON_GPU),
    params:
        # not the threads that are there: a last bit may depend on their number
        options=lambda w: FACTOR_OPTIONS,
    shell:
        'python "$SCRIPTS"/transplant.py --job={wildcards.transplant:q}'
        " --output={output:q} {params.options:q} > {log:q} 2>&1"
