"""What a result says of how it came about: versions, and settings by lm-eval's names."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

from shardmerge.benchmark.options import EvalOptions

if TYPE_CHECKING:
    from lm_eval.api.model import LM

#: Samples of a bootstrapped standard error; accuracies have a closed form and need none.
BOOTSTRAP_ITERATIONS = 1000
_SEEDS = ("random_seed", "numpy_seed", "torch_seed", "fewshot_seed")


def versions(backend: str) -> dict[str, str]:
    """Return the versions of what computes a result with a backend."""
    import datasets
    import lm_eval
    import torch
    import transformers

    own = {f"{backend}_version": metadata.version(backend)} if backend == "vllm" else {}
    return own | {
        "lm_eval_version": lm_eval.__version__,
        "transformers_version": transformers.__version__,
        "torch_version": torch.__version__,
        "datasets_version": datasets.__version__,
    }


def conditions(model: LM, options: EvalOptions) -> dict[str, Any]:
    """Return what a result says of its settings, by lm-eval's names."""
    import torch

    loaded = getattr(model, "model", None)
    found = {"model": options.backend, "max_length": getattr(model, "max_length", None)}
    if isinstance(loaded, torch.nn.Module):
        found["model_dtype"] = str(loaded.dtype).removeprefix("torch.")
        found["model_num_parameters"] = loaded.num_parameters()
    if version := getattr(model, "llama_cpp", None):
        found["llama_cpp_version"] = version
    further = {key: value for key, value in options.further.items() if key != "seed"}
    found |= {key: value for key, value in further.items() if key != "backend"}
    return found | {
        "dtype": options.dtype,
        "device": options.device.partition(":")[0],
        "batch_size": options.batch_size,
        "limit": options.limit,
        "num_fewshot": options.num_fewshot,
        "bootstrap_iters": BOOTSTRAP_ITERATIONS,
        **dict(zip(_SEEDS, options.seed, strict=True)),
    }
