"""Lock, plan and explanation for people: what is pinned, what would be built, and from what.

Needs: nothing but the plan, which exists by the time a rule runs.
Makes: text on the terminal. (`snakemake lock` renews the locks while the Snakefile is parsed;
a dry run writes none.)
"""


rule lock:
    log:
        "<logs>/lock.log",
    localrule: True
    conda:
        "../envs/merge.yaml"
    params:
        locks=lambda w: lock_paths(SETTINGS),
    shell:
        'python "$SCRIPTS"/show_locks.py -- {params.locks:q} 2> {log:q}'


rule plan:
    log:
        "<logs>/plan.log",
    localrule: True
    conda:
        "../envs/merge.yaml"
    params:
        plan=DECISION.path,
        results=SETTINGS["results"],
        inputs=lambda w: listed(sweeps=SWEEPS.files.values()),
    shell:
        'python "$SCRIPTS"/show_plan.py --plan={params.plan:q} --results={params.results:q}'
        " --inputs={params.inputs:q} 2> {log:q}"


rule explain:
    log:
        "<logs>/explain.log",
    localrule: True
    conda:
        "../envs/merge.yaml"
    params:
        options=lambda w: explain_options(SETTINGS),
    shell:
        'python "$SCRIPTS"/explain.py {params.options:q} 2> {log:q}'
