"""Prompts read by the base model of a mixture of experts (`gate_mode: hidden`): one job a model.

Needs: all files of that model, and transformers.
Makes: results/hidden/DIGEST.safetensors, a direction for each expert and layer. It is a source of
the jobs that write the routers. The digest is of the model's files and the prompts.
"""


rule read_prompts:
    input:
        lambda w: ancient(BUILT.to_read(hidden_job(w))),
    output:
        "<results>/hidden/{hidden}.safetensors",
    log:
        "<logs>/read_prompts/{hidden}.log",
    benchmark:
        "<benchmarks>/read_prompts/{hidden}.tsv"
    wildcard_constraints:
        hidden="[0-9a-f]{64}",
    conda:
        "../envs/benchmark.yaml"
    threads: RESOURCES["benchmark_threads"]
    resources:
        mem_mb=lambda w, attempt: megabytes(3 * hidden_job(w).size, 2000) * attempt,
        runtime=lambda w, attempt: 60 * attempt,
        gpu=int(ON_GPU),
    params:
        options=lambda w: [f"--device={SETTINGS['device']}"],
    shell:
        'python "$SCRIPTS"/read_prompts.py --job={wildcards.hidden:q} --threads={threads}'
        " --output={output:q} {params.options:q} > {log:q} 2>&1"
