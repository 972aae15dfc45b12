"""Upload of finished models to the Hub. Nothing else in the workflow sends anything anywhere.

Needs: a verified model, `publish.repository`, a token with the right to write.
Makes: results/NAME/published.json, a receipt.
"""


rule publish_model:
    input:
        checksums="<results>/{name}/model/SHA256SUMS",
        verified="<results>/{name}/verify.json",
        loaded="<results>/{name}/loaded.json",
        scores=lambda w: [TARGETS.scored(w.name)] if TARGETS.measured else [],
    output:
        "<results>/{name}/published.json",
    log:
        "<logs>/publish_model/{name}.log",
    localrule: True
    conda:
        "../envs/fetch.yaml"
    params:
        model=lambda w: TARGETS.paths.model(w.name),
        repository=exit_on_user_error(lambda w: TARGETS.repository(w.name)),
        kind="private" if SETTINGS["publish"]["private"] else "PUBLIC",
        visibility="" if SETTINGS["publish"]["private"] else "--public",
    message:
        "Uploading {params.model} to the {params.kind} repository {params.repository}"
    shell:
        'python "$SCRIPTS"/publish.py --folder={params.model:q} --verify={input.verified:q}'
        " --repo={params.repository:q} {params.visibility:q} --output={output:q} > {log:q} 2>&1"


rule publish_export:
    input:
        checksums="<results>/{name}/exports/{form}/SHA256SUMS",
        verified="<results>/{name}/verify.json",
        # the card names the model's repository, so that is there first
        model="<results>/{name}/published.json",
    output:
        "<results>/{name}/exports/{form}.published.json",
    log:
        "<logs>/publish_export/{name}/{form}.log",
    localrule: True
    conda:
        "../envs/fetch.yaml"
    params:
        folder=lambda w: TARGETS.exports.folder(w.name, w.form),
        repository=exit_on_user_error(lambda w: TARGETS.exports.repository(w.name, w.form)),
        kind="private" if SETTINGS["publish"]["private"] else "PUBLIC",
        visibility="" if SETTINGS["publish"]["private"] else "--public",
        message=lambda w: f"Upload {w.form} of the merged model",
    message:
        "Uploading {params.folder} to the {params.kind} repository {params.repository}"
    shell:
        'python "$SCRIPTS"/publish.py --folder={params.folder:q} --verify={input.verified:q}'
        " --repo={params.repository:q} --message={params.message:q} --export"
        " {params.visibility:q} --output={output:q} > {log:q} 2>&1"


rule publish:
    input:
        TARGETS.receipts(),
