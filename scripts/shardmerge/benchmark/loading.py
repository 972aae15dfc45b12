"""The model that lm-eval asks, in transformers or vLLM: safetensors or GGUF, none of their code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.base.files import load_json
from shardmerge.benchmark.options import EvalOptions

if TYPE_CHECKING:
    from lm_eval.api.model import LM


def language_model(
    folder: Path,
    options: EvalOptions,
    offload: Path | None = None,
    tokenizer: Path | None = None,
) -> LM:
    """Load a model from safetensors or GGUF; never from pickles, never with code of its own.

    Args:
        folder: The model's folder; without a config.json, that of a GGUF file.
        options: Backend, device, type, batch size and arguments of lm-eval's model.
        offload: Folder for what fits in no memory, where the model is spread over GPUs.
        tokenizer: Folder of the tokenizer, None for the model's own.

    Raises:
        UserError: If it cannot be loaded, or the device or the backend is not there.
    """
    file = _gguf_file(folder, options)
    own = {"tokenizer": str(tokenizer.resolve())} if tokenizer else {}
    if options.backend == "vllm" and find_spec("vllm") is None:
        raise UserError(
            "`backend: vllm` needs the package vllm, which is not installed",
            hint="It has an environment of its own: envs/vllm.yaml, or requirements-vllm.txt.",
        )
    _check_device(options)
    from lm_eval.api.registry import get_model

    kind = get_model(options.backend)
    if options.backend == "hf" and not file:
        kind = _unpacking(kind, folder)
    try:
        arguments = model_arguments(folder, options, offload) | own
        if file:
            arguments |= {"gguf_file": file, "use_safetensors": None}
        return kind.create_from_arg_obj(arguments)
    except (OSError, ValueError, RuntimeError) as error:
        raise _reason(error, folder) from error


def model_arguments(folder: Path, options: EvalOptions, offload: Path | None) -> dict[str, Any]:
    """Return what lm-eval's model is made with; what is fixed here goes before what is given.

    Args:
        folder: The model's folder.
        options: How it is measured.
        offload: Folder for what fits in no memory.
    """
    arguments = dict(options.model_args)
    if options.think_end_token is not None:
        arguments["think_end_token"] = options.think_end_token
    arguments |= {
        "pretrained": str(folder.resolve()),
        "dtype": options.dtype,
        "batch_size": options.batch_size,
        "trust_remote_code": False,
    }
    if options.backend != "hf":
        fixed = {"tensor_parallel_size": options.gpus, "load_format": "safetensors"}
        return arguments | fixed | {"seed": options.seed[2]}
    fixed = {"device": options.device, "parallelize": options.gpus > 1, "use_safetensors": True}
    return arguments | fixed | ({"offload_folder": str(offload)} if offload else {})


def _gguf_file(folder: Path, options: EvalOptions) -> str | None:
    """Return the GGUF file of an export's folder, None if the folder is a model's."""
    if (folder / "config.json").is_file():
        return None
    files = sorted(path.name for path in folder.glob("*.gguf"))
    if not files:
        raise UserError("is not a model's folder: it has no config.json", str(folder))
    if options.backend != "hf":
        hint = "Write `{model: exports, backend: hf}` in `benchmark.models`."
        raise UserError("holds GGUF, which only `backend: hf` measures", str(folder), hint)
    if len(files) > 1:
        raise UserError(
            f"has {len(files)} files, and transformers reads GGUF from a single one",
            str(folder),
            "Raise `exports.gguf.split_size`, or take this export out of `benchmark.models`.",
        )
    return files[0]


def _unpacking(kind: type[LM], folder: Path) -> type[LM]:
    """Return lm-eval's model so that transformers can run what compressed-tensors stores.

    Of 4-bit floats the library makes bfloat16, whatever type the model runs in; so they are
    unpacked when the model is loaded, in the type that is asked for.

    Raises:
        UserError: If the model is stored so, and the library is missing.
    """
    told = load_json(folder / "config.json").get("quantization_config")
    if not isinstance(told, dict) or told.get("quant_method") != "compressed-tensors":
        return kind
    if find_spec("compressed_tensors") is None:
        raise UserError(
            "is stored by compressed-tensors, which transformers needs to read it and is not "
            "installed",
            str(folder),
            "Install requirements-compressed.txt (`make env-compressed`), or measure it with "
            "`backend: vllm`, which reads it by itself.",
        )
    if "fp4" not in str(told.get("format")):
        return kind

    class Unpacked(kind):  # type: ignore[misc, valid-type]
        def _get_config(self, *args: Any, **options: Any) -> None:
            super()._get_config(*args, **options)
            self._config.quantization_config["dequantize"] = True

    return Unpacked


def check_templates(folder: Path, wanted: Iterable[bool | str]) -> None:
    """Make sure that a model has the chat templates that tasks want, before it is loaded.

    Args:
        folder: The model's folder.
        wanted: Names of templates; True for the one that there is.

    Raises:
        UserError: If it has none, or none of this name.
    """
    names = set(wanted) - {False}
    if not names:
        return
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(str(folder.resolve()), trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise _reason(error, folder) from error
    templates = found.chat_template
    known = sorted(templates) if isinstance(templates, dict) else []
    if not templates:
        raise UserError(
            "has no chat template", str(folder), "Leave out `apply_chat_template` for this model."
        )
    for name in sorted(name for name in names if isinstance(name, str)):
        if name not in known:
            hint = did_you_mean(name, known) if known else "It has one alone: write `true`."
            raise UserError(f"has no chat template {name!r}", str(folder), hint)
    if True in names and known and "default" not in known:
        hint = f"Write the name of one: {', '.join(known)}."
        raise UserError("has several chat templates, none of them `default`", str(folder), hint)


@contextmanager
def chat_template(model: LM, name: bool | str) -> Iterator[None]:
    """Let a model use one of its chat templates: lm-eval checks the name and takes the default.

    Args:
        model: From ``language_model``.
        name: Of the template. Without one nothing changes.
    """
    if not isinstance(name, str):
        yield
        return
    chosen = model.chat_template(name)
    places = [(model.tokenizer, "chat_template"), (model, "hf_chat_template")]
    before = [(place, key, getattr(place, key)) for place, key in places if hasattr(place, key)]
    for place, key, _ in before:
        setattr(place, key, chosen)
    try:
        yield
    finally:
        for place, key, value in before:
            setattr(place, key, value)


def _check_device(options: EvalOptions) -> None:
    if not options.device.startswith("cuda"):
        return
    import torch

    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (torch.device(options.device).index or 0) >= seen:
        raise UserError(
            f"the device {options.device!r} is not there: torch sees {seen or 'no'} GPU",
            hint="Set `benchmark.device` to cpu, or send the job where such a GPU is.",
        )


def _reason(error: Exception, folder: Path) -> UserError:
    text = str(error).strip().split("\n")[0]
    if "trust_remote_code" in str(error):
        text = "it needs code of its own, which is never run here"
    return UserError(f"cannot be loaded: {text}", str(folder))
