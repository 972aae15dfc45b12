"""What surrounds the weights: config, index, tokenizer, recipe, card, provenance, checksums.

Needs: the build's description in the plan, small files of the sources, the shards' records.
Makes: all other files of results/NAME/model.
"""


rule write_config:
    input:
        config=lambda w: ancient(build(w).files["config.json"]),
    output:
        config="<results>/{name}/model/config.json",
        recipe="<results>/{name}/model/mergekit_config.yml",
    log:
        "<logs>/write_config/{name}.log",
    wildcard_constraints:
        name=MODELS_ALONE,
    priority: 1  # while the last merges write
    group:
        "package"
    conda:
        "../envs/merge.yaml"
    params:
        build=lambda w: build(w).digest,
    shell:
        'python "$SCRIPTS"/write_config.py --build={params.build:q} --source={input.config:q}'
        " --output={output.config:q} --recipe={output.recipe:q} > {log:q} 2>&1"


# A checkpoint has no configuration that is written; where it has one, it is copied.
rule write_recipe:
    output:
        "<results>/{name}/model/mergekit_config.yml",
    log:
        "<logs>/write_recipe/{name}.log",
    wildcard_constraints:
        name=CHECKPOINTS,
    priority: 1
    group:
        "package"
    conda:
        "../envs/merge.yaml"
    params:
        build=lambda w: build(w).digest,
    shell:
        'python "$SCRIPTS"/write_recipe.py --build={params.build:q} --output={output:q}'
        " > {log:q} 2>&1"


rule write_index:
    output:
        "<results>/{name}/model/{index}.safetensors.index.json",
    log:
        "<logs>/write_index/{name}/{index}.log",
    wildcard_constraints:
        index=STEM,
    priority: 1
    group:
        "package"
    conda:
        "../envs/merge.yaml"
    params:
        build=lambda w: build(w).digest,
    shell:
        'python "$SCRIPTS"/write_index.py --build={params.build:q} --output={output:q}'
        " --stem={wildcards.index:q} > {log:q} 2>&1"


rule write_tokenizer:
    input:
        lambda w: ancient(build(w).tokenizer),
    output:
        temp("<results>/{name}/tokenizer/{tokenizer}"),
    log:
        "<logs>/write_tokenizer/{name}/{tokenizer}.log",
    group:
        "package"
    conda:
        "../envs/merge.yaml"
    params:
        build=lambda w: build(w).digest,
        inputs=lambda w, input: listed(sources=input),
    shell:
        'python "$SCRIPTS"/write_tokenizer.py --build={params.build:q} --inputs={params.inputs:q}'
        " --output={output:q} > {log:q} 2>&1"


ruleorder: write_config > copy_file


rule copy_file:
    input:
        lambda w: ancient(build(w).files[w.file]),
    output:
        "<results>/{name}/model/{file}",
    log:
        "<logs>/copy_file/{name}/{file}.log",
    wildcard_constraints:
        file="|".join(map(re.escape, sorted(COPIED_FILES))) or "-",
    group:
        "package"
    conda:
        "../envs/merge.yaml"
    params:
        build=lambda w: build(w).digest,
    shell:
        'python "$SCRIPTS"/copy_file.py --source={input:q} --output={output:q} > {log:q} 2>&1'


rule write_card:
    output:
        "<results>/{name}/model/README.md",
    log:
        "<logs>/write_card/{name}.log",
    priority: 1
    group:
        "summary"
    conda:
        "../envs/merge.yaml"
    params:
        build=lambda w: build(w).digest,
        card=lambda w: TARGETS.card(w.name),
        receipt=lambda w: TARGETS.scored(w.name),
    shell:
        'python "$SCRIPTS"/write_card.py --build={params.build:q} --card={params.card:q}'
        " --receipt={params.receipt:q} --output={output:q} > {log:q} 2>&1"


rule draw_card:
    output:
        "<results>/{name}/model/coefficients.svg",
    log:
        "<logs>/draw_card/{name}.log",
    priority: 1
    group:
        "package"
    conda:
        "../envs/merge.yaml"
    params:
        build=lambda w: build(w).digest,
    shell:
        'python "$SCRIPTS"/plot_coefficients.py --build={params.build:q} --output={output:q}'
        " > {log:q} 2>&1"


rule write_provenance:
    input:
        records=records,
        verified="<results>/{name}/verify.json",
        files=package_files,
    output:
        "<results>/{name}/model/provenance.json",
    log:
        "<logs>/write_provenance/{name}.log",
    group:
        "summary"
    conda:
        "../envs/merge.yaml"
    params:
        build=lambda w: build(w).digest,
        inputs=lambda w, input: listed(records=input.records, files=input.files),
    shell:
        'python "$SCRIPTS"/write_provenance.py --build={params.build:q}'
        " --inputs={params.inputs:q} --verify={input.verified:q} --output={output:q}"
        " > {log:q} 2>&1"


rule write_checksums:
    input:
        records=records,
        files=package_files,
        card="<results>/{name}/model/README.md",
        picture=lambda w: TARGETS.picture(w.name),
        provenance="<results>/{name}/model/provenance.json",
    output:
        "<results>/{name}/model/SHA256SUMS",
    log:
        "<logs>/write_checksums/{name}.log",
    group:
        "summary"
    conda:
        "../envs/merge.yaml"
    params:
        inputs=lambda w, input: listed(
            records=input.records,
            files=[*input.files, input.card, *input.picture, input.provenance],
        ),
    shell:
        'python "$SCRIPTS"/write_checksums.py --inputs={params.inputs:q} --output={output:q}'
        " > {log:q} 2>&1"
