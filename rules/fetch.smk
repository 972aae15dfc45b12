"""Source files from the Hugging Face Hub: one job a file, resumable, checked against the lock.

Needs: the network and, for gated models, a token (HF_TOKEN or the login file). If fetched files
are deleted after use, a job waits until there is room.
Makes: resources/models/MODEL@COMMIT/FILE.
"""


rule fetch_file:
    input:
        room=lambda w: ancient(BUILT.gate(fetch_job(w).output)),
    output:
        KEPT("<resources>/models/{repo}@{commit}/{fetched}"),
    log:
        "<logs>/fetch_file/{repo}@{commit}/{fetched}.log",
    benchmark:
        "<benchmarks>/fetch_file/{repo}@{commit}/{fetched}.tsv"
    wildcard_constraints:
        repo="[^/@]+",
        commit="[0-9a-f]{40}",
        fetched=r"(?!(.*/)?\.\.?(/|$)).+",  # never a path out of the folder
    retries: 1
    localrule: RESOURCES["fetch_on"] == "head"
    conda:
        "../envs/fetch.yaml"
    threads: 1
    resources:
        hub=1,
        mem_mb=lambda w, attempt: 500 * attempt,
        disk_mb=lambda w: megabytes(fetch_job(w).size),
        runtime=lambda w, attempt: minutes(
            fetch_job(w).size, RESOURCES["network_mb_per_second"], attempt
        ),
    params:
        source=lambda w: fetch_options(fetch_job(w)),
    shell:
        'python "$SCRIPTS"/fetch.py {params.source:q} --output={output:q} > {log:q} 2>&1'
