"""Pickled weights of local models, written once as safetensors; the target `convert`.

Needs: `allow_pickle: true`, and folders that have pickles only. It needs no plan: a plan needs what
is made here.
Makes: resources/converted/MODEL/, a model folder that all other rules use instead.
"""


rule convert:
    input:
        [str(c.output / RECORD) for c in CONVERSIONS.values()],


rule convert_pickle:
    input:
        lambda w: ancient(CONVERSIONS[w.source].pickle(w.pickle)),
    output:
        "<resources>/converted/{source}/{pickle}.safetensors",
    log:
        "<logs>/convert_pickle/{source}/{pickle}.log",
    conda:
        "../envs/merge.yaml"
    threads: 1
    resources:
        # a file of torch before 1.6 is read whole
        mem_mb=lambda w, attempt: attempt * megabytes(CONVERSIONS[w.source].size(w.pickle), 1000),
        disk_mb=lambda w: megabytes(CONVERSIONS[w.source].size(w.pickle)),
        runtime=lambda w, attempt: minutes(
            2 * CONVERSIONS[w.source].size(w.pickle), RESOURCES["disk_mb_per_second"], attempt
        ),
    params:
        identity=lambda w: CONVERSIONS[w.source].identity,
        folder=lambda w: str(CONVERSIONS[w.source].folder),
        # the folder and the pickle tell it already
        role=lambda w, input: CONVERSIONS[w.source].role,
    shell:
        'python "$SCRIPTS"/convert.py --pickle={input:q} --model={params.folder:q}'
        " --role={params.role:q}"
        " --output={output:q} > {log:q} 2>&1"


rule finish_conversion:
    input:
        lambda w: CONVERSIONS[w.source].outputs,
    output:
        f"<resources>/converted/{{source}}/{RECORD}",
    log:
        "<logs>/finish_conversion/{source}.log",
    localrule: True
    conda:
        "../envs/merge.yaml"
    params:
        folder=lambda w: str(CONVERSIONS[w.source].folder),
        files=lambda w: list(CONVERSIONS[w.source].small),
        record=lambda w: json.dumps(CONVERSIONS[w.source].record, sort_keys=True),
        inputs=lambda w, input, output: listed(
            weights=input,
            files=CONVERSIONS[w.source].small,
            record=[json.dumps(CONVERSIONS[w.source].record, sort_keys=True)],
        ),
    shell:
        'python "$SCRIPTS"/finish_conversion.py --model={params.folder:q}'
        " --inputs={params.inputs:q} > {log:q} 2>&1"
