"""Lock and plan for people: what is pinned, what would be built.

Needs: nothing but the plan, which exists by the time a rule runs.
Makes: text on the terminal. (`snakemake lock` renews the locks while the Snakefile is parsed.)
"""


rule lock:
    localrule: True
    params:
        locks=lock_paths(SETTINGS),
    log:
        "<logs>/lock.log",
    conda:
        "../envs/merge.yaml"
    shell:
        "{PYTHON} {SCRIPTS}/show_locks.py {params.locks} 2> {log}"


rule plan:
    localrule: True
    params:
        plan=plan_path(SETTINGS),
    log:
        "<logs>/plan.log",
    conda:
        "../envs/merge.yaml"
    shell:
        "{PYTHON} {SCRIPTS}/show_plan.py --plan {params.plan} 2> {log}"
