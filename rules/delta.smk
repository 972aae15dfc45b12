"""Task vectors that are worth storing: the difference of a fine-tuned model and its base.

Needs: the fine-tuned model's file and the base model's files that hold the same tensors.
Makes: results/deltas/FINETUNED-minus-BASE-DTYPE/delta-0000k-of-0000n.safetensors, and beside them
records/ and checks/, as for output shards.
"""


use rule merge_shard as store_delta with:
    output:
        shard=DELTA("<results>/deltas/{pair}/{delta}.safetensors"),
        record="<results>/deltas/{pair}/records/{delta}.json",
    log:
        "<logs>/store_delta/{pair}/{delta}.log",
    benchmark:
        "<benchmarks>/store_delta/{pair}/{delta}.tsv"
    priority: 0


use rule check_shard as check_delta with:
    output:
        "<results>/deltas/{pair}/checks/{delta}.json",
    log:
        "<logs>/check_delta/{pair}/{delta}.log",
