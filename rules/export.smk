"""Other forms of finished models, by other projects' tools: GGUF by llama.cpp, and quantised
safetensors by compressed-tensors, shard by shard.

Needs: a verified model, `exports` in the configuration, the tools of the form.
Makes: results/NAME/exports/FORM (what one would upload), and results/NAME/exports/checks with
what was compared with the model. The files between are in results/NAME/exports/work.
"""


wildcard_constraints:
    form="|".join(form.name for form in TARGETS.exports.forms()) or "-",
    gguf="|".join(map(re.escape, TARGETS.exports.variants("gguf"))) or "-",
    scheme="|".join(TARGETS.exports.mirrors()) or "-",


rule convert_gguf:
    input:
        verified="<results>/{name}/verify.json",
        shards=lambda w: TARGETS.shards(w.name),
        files=package_files,
    output:
        temp("<results>/{name}/exports/work/base.gguf"),
    log:
        "<logs>/convert_gguf/{name}.log",
    conda:
        "../envs/gguf.yaml"
    resources:
        mem_mb=lambda w, attempt: 8000 * attempt,
        runtime=lambda w, attempt: minutes(
            4 * build(w).bytes_written, RESOURCES["disk_mb_per_second"], attempt
        ),
    params:
        build=lambda w: build(w).digest,
        model=lambda w: TARGETS.paths.model(w.name),
        tools=llama_cpp,
    shell:
        'python "$SCRIPTS"/convert_gguf.py --build={params.build:q} --model={params.model:q}'
        " --verify={input.verified:q} {params.tools:q} --output={output:q} > {log:q} 2>&1"


rule measure_importance:
    input:
        base="<results>/{name}/exports/work/base.gguf",
        text=ancient(GGUF["imatrix"] or []),
    output:
        "<results>/{name}/exports/work/imatrix.gguf",
    log:
        "<logs>/measure_importance/{name}.log",
    wildcard_constraints:
        name=MODELS_ALONE if GGUF["imatrix"] else "(?!)",
    conda:
        "../envs/gguf.yaml"
    threads: RESOURCES["benchmark_threads"]
    resources:
        mem_mb=lambda w, attempt: megabytes(build(w).bytes_written, 2000) * attempt,
        runtime=lambda w, attempt: 240 * attempt,
    params:
        build=lambda w: build(w).digest,
        text=lambda w: sha256_of(GGUF["imatrix"]),
        tools=llama_cpp,
    shell:
        'python "$SCRIPTS"/measure_importance.py --base={input.base:q} --text={input.text:q}'
        " --threads={threads} {params.tools:q} --output={output:q} > {log:q} 2>&1"


rule quantize_gguf:
    input:
        base="<results>/{name}/exports/work/base.gguf",
        imatrix=importance,
    output:
        directory("<results>/{name}/exports/gguf/{gguf}"),
    log:
        "<logs>/quantize_gguf/{name}/{gguf}.log",
    conda:
        "../envs/gguf.yaml"
    threads: RESOURCES["benchmark_threads"]
    resources:
        mem_mb=lambda w, attempt: 8000 * attempt,
        runtime=lambda w, attempt: 30 * attempt
        + minutes(4 * build(w).bytes_written, RESOURCES["disk_mb_per_second"], attempt),
    params:
        build=lambda w: build(w).digest,
        identity=lambda w: TARGETS.exports.identity("gguf", w.gguf),
        stem=lambda w: TARGETS.exports.label(w.name, "gguf", w.gguf),
        split=GGUF["split_size"],
        imatrix=lambda w, input: [f"--imatrix={path}" for path in input.imatrix],
        tools=llama_cpp,
    shell:
        'python "$SCRIPTS"/quantize_gguf.py --build={params.build:q} --base={input.base:q}'
        " --type={wildcards.gguf:q} --stem={params.stem:q} --split-size={params.split:q}"
        " {params.imatrix:q} --threads={threads} {params.tools:q} --output={output:q}"
        " > {log:q} 2>&1"


rule check_gguf:
    input:
        folder="<results>/{name}/exports/gguf/{gguf}",
        shards=lambda w: TARGETS.shards(w.name),
        files=package_files,
    output:
        "<results>/{name}/exports/checks/gguf/{gguf}.json",
    log:
        "<logs>/check_gguf/{name}/{gguf}.log",
    conda:
        "../envs/gguf.yaml"
    resources:
        mem_mb=lambda w, attempt: 4000 * attempt,
        runtime=lambda w, attempt: minutes(
            2 * build(w).bytes_written, RESOURCES["disk_mb_per_second"], attempt
        ),
    params:
        build=lambda w: build(w).digest,
        identity=lambda w: TARGETS.exports.identity("gguf", w.gguf),
        model=lambda w: TARGETS.paths.model(w.name),
        tools=llama_cpp,
    shell:
        'python "$SCRIPTS"/check_gguf.py --build={params.build:q} --model={params.model:q}'
        " --folder={input.folder:q} --type={wildcards.gguf:q} {params.tools:q}"
        " --output={output:q} > {log:q} 2>&1"


rule compress_shard:
    input:
        # it is there, and when it was made is no matter: a shard that is as it was stays as it is
        verified=ancient("<results>/{name}/verify.json"),
        shard=lambda w: exported_shard(w).source,
        others=lambda w: exported_shard(w).others,
    output:
        "<results>/{name}/exports/{scheme}/{shard}.safetensors",
    log:
        "<logs>/compress_shard/{name}/{scheme}/{shard}.log",
    conda:
        "../envs/compressed.yaml"
    threads: RESOURCES["merge_threads"]
    resources:
        mem_mb=lambda w, attempt: megabytes(exported_shard(w).memory) * attempt,
        runtime=lambda w, attempt: minutes(
            4 * TARGETS.shard(w.name, w.shard).bytes_written,
            RESOURCES["disk_mb_per_second"],
            attempt,
        ),
    params:
        identity=lambda w: exported_shard(w).identity,
        # these change no other way than the identity does
        build=lambda w, input: build(w).digest,
        inputs=lambda w, input: listed(others=input.others),
        options=lambda w, input: TARGETS.exports.scheme_options(w.scheme),
    shell:
        'python "$SCRIPTS"/compress_shard.py --build={params.build:q} --scheme={wildcards.scheme:q}'
        " --options={params.options:q} --verify={input.verified:q} --shard={input.shard:q}"
        " --inputs={params.inputs:q} --threads={threads} --output={output:q} > {log:q} 2>&1"


rule compare_shard:
    input:
        export="<results>/{name}/exports/{scheme}/{shard}.safetensors",
        config="<results>/{name}/exports/{scheme}/config.json",
        shard=lambda w: exported_shard(w).source,
    output:
        "<results>/{name}/exports/work/{scheme}/{shard}.json",
    log:
        "<logs>/compare_shard/{name}/{scheme}/{shard}.log",
    conda:
        "../envs/merge.yaml"
    resources:
        mem_mb=lambda w, attempt: 1000 * attempt,
        runtime=lambda w, attempt: minutes(
            4 * TARGETS.shard(w.name, w.shard).bytes_written,
            RESOURCES["disk_mb_per_second"],
            attempt,
        ),
    params:
        identity=lambda w: exported_shard(w).identity,
        build=lambda w, input: build(w).digest,
        options=lambda w, input: TARGETS.exports.scheme_options(w.scheme),
    shell:
        'python "$SCRIPTS"/compare_shard.py --build={params.build:q} --scheme={wildcards.scheme:q}'
        " --options={params.options:q} --export={input.export:q} --config={input.config:q}"
        " --shard={input.shard:q} --output={output:q} > {log:q} 2>&1"


rule write_export_config:
    input:
        "<results>/{name}/model/config.json",
    output:
        "<results>/{name}/exports/{scheme}/config.json",
    log:
        "<logs>/write_export_config/{name}/{scheme}.log",
    conda:
        "../envs/compressed.yaml"
    params:
        build=lambda w: build(w).digest,
        identity=lambda w: TARGETS.exports.identity(w.scheme, w.scheme),
        options=lambda w: TARGETS.exports.scheme_options(w.scheme),
    shell:
        'python "$SCRIPTS"/write_export_config.py --build={params.build:q}'
        " --scheme={wildcards.scheme:q} --options={params.options:q} --source={input:q}"
        " --output={output:q} > {log:q} 2>&1"


rule write_export_index:
    input:
        lambda w: TARGETS.exports.shards(w.name, w.scheme),
    output:
        "<results>/{name}/exports/{scheme}/model.safetensors.index.json",
    log:
        "<logs>/write_export_index/{name}/{scheme}.log",
    conda:
        "../envs/merge.yaml"
    params:
        folder=lambda w: TARGETS.exports.folder(w.name, w.scheme),
        inputs=lambda w, input: listed(shards=input),
    shell:
        'python "$SCRIPTS"/write_export_index.py --folder={params.folder:q}'
        " --inputs={params.inputs:q} --output={output:q} > {log:q} 2>&1"


ruleorder: write_export_config > write_export_index > copy_to_export


rule copy_to_export:
    input:
        "<results>/{name}/model/{file}",
    output:
        "<results>/{name}/exports/{scheme}/{file}",
    log:
        "<logs>/copy_to_export/{name}/{scheme}/{file}.log",
    wildcard_constraints:
        file="|".join(map(re.escape, sorted(COPIED_FILES))) or "-",
    group:
        "export"
    conda:
        "../envs/merge.yaml"
    shell:
        'python "$SCRIPTS"/copy_file.py --source={input:q} --output={output:q} > {log:q} 2>&1'


rule check_compressed:
    input:
        files=lambda w: TARGETS.exports.made(w.name, w.scheme, w.scheme),
        shards=lambda w: TARGETS.exports.comparisons(w.name, w.scheme),
        own=package_files,
    output:
        "<results>/{name}/exports/checks/{scheme}/{scheme}.json",
    log:
        "<logs>/check_compressed/{name}/{scheme}.log",
    conda:
        "../envs/compressed.yaml"
    resources:
        mem_mb=lambda w, attempt: 4000 * attempt,
    params:
        build=lambda w: build(w).digest,
        identity=lambda w: TARGETS.exports.identity(w.scheme, w.scheme),
        options=lambda w: TARGETS.exports.scheme_options(w.scheme),
        folder=lambda w: TARGETS.exports.folder(w.name, w.scheme),
        model=lambda w: TARGETS.paths.model(w.name),
        inputs=lambda w, input: listed(files=input.files, shards=input.shards),
    shell:
        'python "$SCRIPTS"/check_compressed.py --build={params.build:q}'
        " --scheme={wildcards.scheme:q} --options={params.options:q} --folder={params.folder:q}"
        " --model={params.model:q} --inputs={params.inputs:q} --output={output:q} > {log:q} 2>&1"


rule package_export:
    input:
        records=lambda w: TARGETS.exports.checks(w.name, w.form),
        provenance="<results>/{name}/model/provenance.json",
    output:
        card="<results>/{name}/exports/{form}/README.md",
        provenance="<results>/{name}/exports/{form}/provenance.json",
        checksums="<results>/{name}/exports/{form}/SHA256SUMS",
    log:
        "<logs>/package_export/{name}/{form}.log",
    conda:
        "../envs/merge.yaml"
    params:
        build=lambda w: build(w).digest,
        card=lambda w: TARGETS.card(w.name),
        repository=lambda w: TARGETS.exports.repositories(w.name).get(w.form, ""),
        model=lambda w: (
            TARGETS.publishing.repository(w.name) if SETTINGS["publish"]["repository"] else ""
        ),
        folder=lambda w: TARGETS.exports.folder(w.name, w.form),
        inputs=lambda w, input: listed(records=input.records),
    shell:
        'python "$SCRIPTS"/package_export.py --build={params.build:q} --form={wildcards.form:q}'
        " --card={params.card:q} --repository={params.repository:q}"
        " --model-repository={params.model:q} --provenance={input.provenance:q}"
        " --inputs={params.inputs:q} --output={params.folder:q} > {log:q} 2>&1"


rule exports:
    input:
        wanted(TARGETS.exports.packages()),
