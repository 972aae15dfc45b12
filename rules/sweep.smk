"""Sweeps and searches: many merges from one recipe with gaps, measured, compared, the best kept.

Needs: trials, which are builds of the plan as others are; the results of their benchmarks.
Makes: results/sweeps/NAME with its tables, best.yaml and kept.json, and a folder for each trial:
recipe.yaml and its lock, measured.json. Weights go once a trial is measured, unless they are kept.
"""


use rule run_tasks as measure_trial with:
    input:
        lambda w: ancient(SWEEPS.measured_files(w.model)),
        logits=lambda w: ancient(TARGETS.logits(w.model, tasks_of(w))),
    log:
        "<logs>/measure_trial/{model}.log",
    benchmark:
        "<benchmarks>/measure_trial/{model}.tsv"
    wildcard_constraints:
        model="|".join(map(re.escape, SWEEPS.labels)) or "-",
    priority: 3  # before other trials are built


# One job measures all of a trial, so that its weights are loaded once.
ruleorder: measure_trial > run_tasks
ruleorder: measure_trial > run_task


rule settle_trial:
    input:
        lambda w: SWEEPS.results(w.sweep, w.trial),
    output:
        scores="<results>/sweeps/{sweep}/trials/{trial}/measured.json",
        lock="<results>/sweeps/{sweep}/trials/{trial}/recipe.lock.json",
    log:
        "<logs>/settle_trial/{sweep}/{trial}.log",
    priority: 4
    conda:
        "../envs/merge.yaml"
    resources:
        # weights are read before they go
        runtime=lambda w, attempt: minutes(
            PLAN.room.bytes, RESOURCES["disk_mb_per_second"], attempt
        ),
    params:
        identity=lambda w: SWEEPS.identity(w.sweep, w.trial),
        # what it finds of other trials makes nothing run again
        sweep=lambda w, input: SWEEPS.files[w.sweep],
        plan=lambda w, input: DECISION.path,
        results=lambda w, input: SETTINGS["results"],
        inputs=lambda w, input: listed(task=BENCHMARK["tasks"], known=SWEEPS.known(w.sweep)),
    shell:
        'python "$SCRIPTS"/settle_trial.py --sweep={params.sweep:q} --plan={params.plan:q}'
        " --results={params.results:q} --trial={wildcards.trial:q}"
        " --inputs={params.inputs:q} --output={output.scores:q} --lock={output.lock:q}"
        " > {log:q} 2>&1"


rule tabulate_sweep:
    input:
        results=lambda w: SWEEPS.all_results(w.sweep),
        settled=lambda w: ancient(SWEEPS.settled(w.sweep)),
        references=SWEEPS.references(),
        reported=lambda w: SWEEPS.reported(w.sweep),
    output:
        expand("<results>/sweeps/{{sweep}}/{file}", file=SWEEP_FILES),
    log:
        "<logs>/tabulate_sweep/{sweep}.log",
    localrule: True
    conda:
        "../envs/benchmark.yaml"
    params:
        content=lambda w: SWEEPS.content(w.sweep),
        sweep=lambda w, input: SWEEPS.files[w.sweep],
        results=lambda w: SETTINGS["results"],
        folder=lambda w: SWEEPS.folder(w.sweep),
        inputs=lambda w, input: listed(
            task=BENCHMARK["tasks"], references=input.references, reported=input.reported
        ),
    shell:
        'python "$SCRIPTS"/tabulate_sweep.py --sweep={params.sweep:q} --results={params.results:q}'
        " --folder={params.folder:q} --inputs={params.inputs:q} > {log:q} 2>&1"


rule keep_trials:
    input:
        table="<results>/sweeps/{sweep}/table.json",
        sources=lambda w: ancient(SWEEPS.sources(w.sweep)),
    output:
        "<results>/sweeps/{sweep}/kept.json",
    log:
        "<logs>/keep_trials/{sweep}.log",
    conda:
        "../envs/merge.yaml"
    resources:
        mem_mb=lambda w, attempt: attempt * SWEEPS.megabytes(w.sweep),
        runtime=lambda w, attempt: minutes(
            3 * PLAN.room.bytes, RESOURCES["disk_mb_per_second"], attempt
        ),
    params:
        content=lambda w: SWEEPS.content(w.sweep),
        sweep=lambda w, input: SWEEPS.files[w.sweep],
        plan=lambda w, input: DECISION.path,
        results=lambda w, input: SETTINGS["results"],
        inputs=lambda w, input: listed(task=BENCHMARK["tasks"]),
    shell:
        'python "$SCRIPTS"/keep_trials.py --sweep={params.sweep:q} --plan={params.plan:q}'
        " --results={params.results:q} --inputs={params.inputs:q}"
        " --output={output:q} > {log:q} 2>&1"


rule plot_sweep:
    input:
        "<results>/sweeps/{sweep}/trials.json",
    output:
        # and others beside it, by the variables and objectives that there are
        "<results>/sweeps/{sweep}/plots/parallel.svg",
    log:
        "<logs>/plot_sweep/{sweep}.log",
    conda:
        "../envs/merge.yaml"
    params:
        inputs=lambda w, input: listed(output=SWEEPS.plots(w.sweep)),
    shell:
        'python "$SCRIPTS"/plot_sweep.py --trials={input:q} --inputs={params.inputs:q}'
        " > {log:q} 2>&1"


rule plot_search:
    input:
        "<results>/sweeps/{sweep}/trials.json",
    output:
        report(
            "<results>/sweeps/{sweep}/plots/convergence.svg",
            caption="../report/trials.rst",
            category="Sweeps",
            labels={"what": "{sweep}, its search"},
        ),
    log:
        "<logs>/plot_search/{sweep}.log",
    conda:
        "../envs/merge.yaml"
    shell:
        'python "$SCRIPTS"/plot_search.py --trials={input:q} --output={output:q} > {log:q} 2>&1'


rule explore_sweep:
    input:
        "<results>/sweeps/{sweep}/trials.json",
    output:
        report(
            "<results>/sweeps/{sweep}/plots/trials.html",
            caption="../report/trials.rst",
            category="Sweeps",
            labels={"what": "{sweep}"},
        ),
    log:
        "<logs>/explore_sweep/{sweep}.log",
    conda:
        "../envs/benchmark.yaml"
    shell:
        'python "$SCRIPTS"/plot_sweep.py --trials={input:q} --output={output:q} > {log:q} 2>&1'
