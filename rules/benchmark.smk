"""lm-eval over merged models, sources and stages: one job for each model and task.

Needs: whole models, task files; GPUs where `benchmark.device` is cuda.
Makes: the data sets of tasks in the cache of the Hub's libraries (target `prefetch`);
results/NAME/benchmarks/MODEL/TASK.json and the table of all of them, which the model's card
gets too. A source is measured once for all builds: its results are in results/benchmarks and
are copied to each build. results/benchmarks/table.json compares all models of the run.
For the divergence of models, results/benchmarks/MODEL/logits.safetensors of each that others are
compared with; it goes when all are.
"""


rule prefetch:
    log:
        "<logs>/prefetch.log",
    localrule: True
    conda:
        "../envs/benchmark.yaml"
    params:
        output=f"{SETTINGS['results']}/benchmarks/datasets.json",
        inputs=lambda w: listed(task=lm_eval_tasks(BENCHMARK), options=task_options()),
        options=lambda w: TARGETS.benchmark_options(),
    shell:
        'python "$SCRIPTS"/prefetch.py --inputs={params.inputs:q} --output={params.output:q}'
        " {params.options:q} 2> {log:q}"


rule run_task:
    input:
        lambda w: ancient(measured(w).files),
        logits=lambda w: ancient(TARGETS.logits(w.model, tasks_of(w))),
    output:
        results="<results>/benchmarks/{model}/{task}.json",
        samples="<results>/benchmarks/{model}/{task}.samples.jsonl",
    log:
        "<logs>/run_task/{model}/{task}.log",
    benchmark:
        "<benchmarks>/run_task/{model}/{task}.tsv"
    conda:
        lambda w: environment(
            w,
            "../envs/benchmark.yaml",
            vllm="../envs/vllm.yaml",
            llama_cpp="../envs/llama_cpp.yaml",
        )
    threads: RESOURCES["benchmark_threads"]
    resources:
        mem_mb=lambda w, attempt: attempt * benchmark_megabytes(w),
        runtime=lambda w, attempt: 240 * attempt * len(tasks_of(w)),
        gpu=lambda w: measuring(w).gpus_asked,
    params:
        identity=lambda w: [TARGETS.benchmark_identity(w.model, t) for t in tasks_of(w)],
        folder=lambda w: measured(w).folder,
        # made of the input: the identity has what counts of it
        beside=lambda w, input: TARGETS.benchmark_beside(w.model),
        inputs=lambda w, output: listed(
            task=tasks_of(w),
            output=output.results,
            options=[TARGETS.benchmark_job(w.model, t).to_json() for t in tasks_of(w)],
            key=[TARGETS.benchmark_identity(w.model, t) for t in tasks_of(w)],
            **TARGETS.probe_lists(w.model, tasks_of(w)),
        ),
        options=lambda w: TARGETS.benchmark_options(),
    shell:
        'python "$SCRIPTS"/benchmark.py --model={params.folder:q} --name={wildcards.model:q}'
        " --inputs={params.inputs:q} --store=.shardmerge/benchmarks --threads={threads}"
        " {params.beside:q} {params.options:q} > {log:q} 2>&1"


use rule run_task as run_tasks with:
    output:
        results=expand("<results>/benchmarks/{{model}}/{task}.json", task=BENCHMARK["tasks"]),
        samples=expand(
            "<results>/benchmarks/{{model}}/{task}.samples.jsonl", task=BENCHMARK["tasks"]
        ),
    log:
        "<logs>/run_tasks/{model}.log",
    benchmark:
        "<benchmarks>/run_tasks/{model}.tsv"


# Where loading the model costs more than a task, one job does them all; else one job each.
if BENCHMARK["per"] == "model":

    ruleorder: run_tasks > run_task

else:

    ruleorder: run_task > run_tasks


rule keep_logits:
    input:
        lambda w: ancient(measured(w).files),
    output:
        temp("<results>/benchmarks/{reference}/logits.safetensors"),
    log:
        "<logs>/keep_logits/{reference}.log",
    benchmark:
        "<benchmarks>/keep_logits/{reference}.tsv"
    conda:
        "../envs/benchmark.yaml"
    threads: RESOURCES["benchmark_threads"]
    resources:
        mem_mb=lambda w, attempt: attempt * benchmark_megabytes(w),
        runtime=lambda w, attempt: 240 * attempt,
        gpu=lambda w: TARGETS.logits_job(w.reference).gpus_asked,
    params:
        identity=lambda w: TARGETS.logits_identity(w.reference),
        folder=lambda w: measured(w).folder,
        options=lambda w: TARGETS.logits_job(w.reference).to_json(),
        probes=lambda w: TARGETS.probes.to_json(),
    shell:
        'python "$SCRIPTS"/keep_logits.py --model={params.folder:q} --name={wildcards.reference:q}'
        " --options={params.options:q} --probes={params.probes:q} --threads={threads}"
        " --output={output:q} > {log:q} 2>&1"


rule collect_benchmark:
    input:
        results="<results>/benchmarks/{model}/{task}.json",
        samples="<results>/benchmarks/{model}/{task}.samples.jsonl",
    output:
        results="<results>/{name}/benchmarks/{model}/{task}.json",
        samples="<results>/{name}/benchmarks/{model}/{task}.samples.jsonl",
    log:
        "<logs>/collect_benchmark/{name}/{model}/{task}.log",
    localrule: True
    conda:
        "../envs/benchmark.yaml"
    params:
        inputs=lambda w, input, output: listed(source=input, output=output),
    shell:
        'python "$SCRIPTS"/copy_file.py --inputs={params.inputs:q} > {log:q} 2>&1'


rule tabulate_benchmarks:
    input:
        results=lambda w: TARGETS.measurements(w.name),
        samples=lambda w: samples_of(TARGETS.measurements(w.name)),
    output:
        json="<results>/{name}/benchmarks/table.json",
        csv="<results>/{name}/benchmarks/table.csv",
        markdown="<results>/{name}/benchmarks/table.md",
    log:
        "<logs>/tabulate_benchmarks/{name}.log",
    group:
        "scores"
    conda:
        "../envs/benchmark.yaml"
    params:
        build=lambda w: build(w).digest,
        measured=lambda w: TARGETS.measurements(w.name),
        plan=lambda w, input: DECISION.path,
        inputs=lambda w, input: listed(results=input.results),
    shell:
        'python "$SCRIPTS"/benchmark_table.py --plan={params.plan:q} --name={wildcards.name:q}'
        " --inputs={params.inputs:q} --json={output.json:q}"
        " --csv={output.csv:q} --markdown={output.markdown:q} > {log:q} 2>&1"


rule compare_models:
    input:
        results=TARGETS.all_measurements(),
        samples=samples_of(TARGETS.all_measurements()),
    output:
        json="<results>/benchmarks/table.json",
        csv="<results>/benchmarks/table.csv",
        markdown="<results>/benchmarks/table.md",
        flips="<results>/benchmarks/flips.csv",
    log:
        "<logs>/compare_models.log",
    conda:
        "../envs/benchmark.yaml"
    params:
        builds=lambda w: [made.digest for made in PLAN.models.values()],
        reference=lambda w: TARGETS.reference or "",
        measured=lambda w: TARGETS.all_measurements(),
        derived=lambda w: json.dumps(TARGETS.derived()),
        plan=lambda w, input: DECISION.path,
        inputs=lambda w, input: listed(results=input.results),
    shell:
        'python "$SCRIPTS"/compare_benchmarks.py --plan={params.plan:q}'
        " --reference={params.reference:q} --derived={params.derived:q} --inputs={params.inputs:q} --json={output.json:q}"
        " --csv={output.csv:q} --markdown={output.markdown:q} --flips={output.flips:q}"
        " > {log:q} 2>&1"


rule add_scores:
    input:
        results=lambda w: TARGETS.measurements(w.name),
        # written anew in place: the card, and its line in the checksums
        card="<results>/{name}/model/README.md",
        checksums="<results>/{name}/model/SHA256SUMS",
    output:
        "<results>/{name}/benchmarks/card.json",
    log:
        "<logs>/add_scores/{name}.log",
    wildcard_constraints:
        name=MODELS_ALONE,
    group:
        "scores"
    conda:
        "../envs/merge.yaml"
    params:
        build=lambda w: build(w).digest,
        card=lambda w: TARGETS.card(w.name),
        measured=lambda w: TARGETS.measurements(w.name),
        inputs=lambda w, input: listed(results=input.results),
    shell:
        'python "$SCRIPTS"/add_scores.py --build={params.build:q} --card={params.card:q}'
        " --inputs={params.inputs:q} --readme={input.card:q} --output={output:q} > {log:q} 2>&1"
