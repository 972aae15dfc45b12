"""Upload of finished models, exports and adapters to the Hub, signed if asked for.

Nothing else in the workflow sends anything anywhere.

Needs: what is verified, `publish.repository`, a token with the right to write; for signatures a key
or an account of sigstore.
Makes: model.sig in what is signed; results/NAME/published.json and
results/NAME/exports/FORM.published.json, the receipts, with commits; of a collection
results/collection.published.json. The target `preview` lists what would be uploaded.
"""

PUBLISH = SETTINGS["publish"]
SIGN_OPTIONS = (
    ["--sigstore"] if PUBLISH["sign"]["sigstore"] else [f"--key={PUBLISH['sign']['key']}"]
)


rule sign_model:
    input:
        checksums="<results>/{name}/model/SHA256SUMS",
        verified="<results>/{name}/verify.json",
        # the card, and so the checksums, change with them
        scores=lambda w: TARGETS.card_scores(w.name),
    output:
        "<results>/{name}/model/model.sig",
    log:
        "<logs>/sign_model/{name}.log",
    localrule: True
    conda:
        "../envs/sign.yaml"
    params:
        folder=lambda w: TARGETS.paths.model(w.name),
        key=exit_on_user_error(lambda w: TARGETS.publishing.key()),
        options=lambda w: SIGN_OPTIONS,
    shell:
        'python "$SCRIPTS"/sign.py --folder={params.folder:q} {params.options:q}'
        " --output={output:q} > {log:q} 2>&1"


use rule sign_model as sign_export with:
    input:
        checksums="<results>/{name}/exports/{form}/SHA256SUMS",
        verified="<results>/{name}/verify.json",
    output:
        "<results>/{name}/exports/{form}/model.sig",
    log:
        "<logs>/sign_export/{name}/{form}.log",
    params:
        folder=lambda w: TARGETS.exports.folder(w.name, w.form),
        key=exit_on_user_error(lambda w: TARGETS.publishing.key()),
        options=lambda w: SIGN_OPTIONS,


use rule sign_model as sign_adapter with:
    input:
        checksums="<results>/{adapter}/adapter/SHA256SUMS",
        loaded="<results>/{adapter}/loaded.json",
    output:
        "<results>/{adapter}/adapter/model.sig",
    log:
        "<logs>/sign_adapter/{adapter}.log",
    params:
        folder=lambda w: TARGETS.paths.adapter(w.adapter),
        key=exit_on_user_error(lambda w: TARGETS.publishing.key()),
        options=lambda w: SIGN_OPTIONS,


rule publish_model:
    input:
        checksums="<results>/{name}/model/SHA256SUMS",
        verified="<results>/{name}/verify.json",
        loaded=lambda w: TARGETS.loading(w.name, waits=True),
        scores=lambda w: TARGETS.card_scores(w.name),
        signature=lambda w: TARGETS.publishing.signatures(TARGETS.paths.model(w.name)),
    output:
        "<results>/{name}/published.json",
    log:
        "<logs>/publish_model/{name}.log",
    localrule: True
    conda:
        "../envs/fetch.yaml"
    params:
        kind="model",
        evidence=lambda w, input: f"--verify={input.verified}",
        folder=lambda w: TARGETS.paths.model(w.name),
        repository=exit_on_user_error(lambda w: TARGETS.publishing.repository(w.name)),
        visibility="private" if PUBLISH["private"] else "PUBLIC",
        options=publish_options,
        commit=lambda w: COMMIT_OPTIONS,
    message:
        "Uploading {params.folder} to the {params.visibility} repository {params.repository}"
    shell:
        'python "$SCRIPTS"/publish.py --folder={params.folder:q} --kind={params.kind:q}'
        " {params.evidence:q} --repo={params.repository:q} {params.options:q} {params.commit:q}"
        " --output={output:q} > {log:q} 2>&1"


use rule publish_model as publish_export with:
    input:
        checksums="<results>/{name}/exports/{form}/SHA256SUMS",
        verified="<results>/{name}/verify.json",
        signature=lambda w: TARGETS.publishing.signatures(TARGETS.exports.folder(w.name, w.form)),
        # the card names the model's repository, so that is there first
        model="<results>/{name}/published.json",
    output:
        "<results>/{name}/exports/{form}.published.json",
    log:
        "<logs>/publish_export/{name}/{form}.log",
    params:
        kind="export",
        evidence=lambda w, input: f"--verify={input.verified}",
        folder=lambda w: TARGETS.exports.folder(w.name, w.form),
        repository=exit_on_user_error(lambda w: TARGETS.exports.repository(w.name, w.form)),
        visibility="private" if PUBLISH["private"] else "PUBLIC",
        options=publish_options,
        commit=lambda w: COMMIT_OPTIONS,


use rule publish_model as publish_adapter with:
    input:
        checksums="<results>/{adapter}/adapter/SHA256SUMS",
        loaded="<results>/{adapter}/loaded.json",
        signature=lambda w: TARGETS.publishing.signatures(TARGETS.paths.adapter(w.adapter)),
    output:
        "<results>/{adapter}/published.json",
    log:
        "<logs>/publish_adapter/{adapter}.log",
    params:
        kind="adapter",
        evidence=lambda w, input: f"--loaded={input.loaded}",
        folder=lambda w: TARGETS.paths.adapter(w.adapter),
        repository=exit_on_user_error(lambda w: TARGETS.publishing.repository(w.adapter)),
        visibility="private" if PUBLISH["private"] else "PUBLIC",
        options=publish_options,
        commit=lambda w: COMMIT_OPTIONS,


rule collect_published:
    input:
        TARGETS.publishing.uploads(),
    output:
        TARGETS.publishing.collected(),
    log:
        "<logs>/collect_published.log",
    localrule: True
    conda:
        "../envs/fetch.yaml"
    params:
        title=lambda w: PUBLISH["collection"] or "",
        visibility=VISIBILITY,
        inputs=lambda w, input: listed(receipts=input),
    message:
        "Putting what is published into the collection {params.title}"
    shell:
        'python "$SCRIPTS"/collect.py --title={params.title:q} {params.visibility:q}'
        " --inputs={params.inputs:q} --output={output:q} > {log:q} 2>&1"


rule preview:
    input:
        TARGETS.publishing.packages(),
    log:
        "<logs>/preview.log",
    localrule: True
    conda:
        "../envs/fetch.yaml"
    params:
        inputs=exit_on_user_error(lambda w: listed(**TARGETS.publishing.listing())),
        visibility=VISIBILITY,
    shell:
        'python "$SCRIPTS"/preview_publish.py --inputs={params.inputs:q} {params.visibility:q}'
        " 2> {log:q}"


rule publish:
    input:
        TARGETS.publishing.receipts(),
