"""The model that lm-eval asks, in transformers, vLLM or llama.cpp; no code of its own is run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.base.files import load_json
from shardmerge.benchmark.options import EvalOptions

if TYPE_CHECKING:
    from lm_eval.api.model import LM

#: Longest input that llama.cpp's server makes room for, unless ``max_length`` says more.
_LLAMA_CPP_CONTEXT = 8192


@dataclass(frozen=True)
class Beside:
    """What a model needs that is not in its folder.

    Args:
        tokenizer: Folder of the tokenizer, None for the model's own.
        adapter: Folder of a LoRA adapter that is put on the model, or None.
        server: Path of llama.cpp's server, for `backend: llama_cpp`.
    """

    tokenizer: Path | None = None
    adapter: Path | None = None
    server: str | None = None


@contextmanager
def loaded(
    folder: Path,
    options: EvalOptions,
    offload: Path | None = None,
    beside: Beside | None = None,
    threads: int = 1,
) -> Iterator[LM]:
    """Give a model that is loaded, here or in a server that ends with the context.

    Args:
        folder, options, offload: As of ``language_model``.
        beside: What is not in the folder.
        threads: CPU threads of a server.

    Raises:
        UserError: If it cannot be loaded.
    """
    beside = beside or Beside()
    if options.backend != "llama_cpp":
        yield language_model(folder, options, offload, beside)
        return
    with _in_llama_cpp(folder, options, beside, threads) as model:
        yield model


@contextmanager
def _in_llama_cpp(folder: Path, options: EvalOptions, beside: Beside, threads: int) -> Iterator[LM]:
    from lm_eval.models.utils import resolve_max_length
    from transformers import AutoConfig, AutoTokenizer

    from shardmerge.benchmark.llama_model import LlamaModel
    from shardmerge.benchmark.llama_server import served

    files = _gguf_files(folder)
    if not files or beside.server is None:
        raise UserError(
            "holds no GGUF, which is what `backend: llama_cpp` runs",
            str(folder),
            "Write `{model: exports, backend: llama_cpp}` in `benchmark.models`.",
        )
    place, safe = str((beside.tokenizer or folder).resolve()), {"trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True, **safe)
        config = AutoConfig.from_pretrained(place, local_files_only=True, **safe)
    except (OSError, ValueError, RuntimeError) as error:
        raise _reason(error, folder) from error
    arguments, most = options.model_args, _LLAMA_CPP_CONTEXT
    declared = resolve_max_length(config, tokenizer, default=most)
    length = arguments.get("max_length") or min(declared, most)
    layers = "0" if options.device == "cpu" else "999"
    words = ["-c", str(length + 1), "-np", "1", "-t", str(threads), "-ngl", layers]
    words += ["--cache-ram", "0", "--offline", "--no-webui"]
    with served(beside.server, folder / files[0], words) as server:
        adds, thinks = arguments.get("add_bos_token"), options.think_end_token
        yield LlamaModel(server, tokenizer, length, options.seed[2], adds, thinks)


def language_model(
    folder: Path,
    options: EvalOptions,
    offload: Path | None = None,
    beside: Beside | None = None,
) -> LM:
    """Load a model from safetensors or GGUF; never from pickles, never with code of its own.

    Args:
        folder: The model's folder; without a config.json, that of a GGUF file.
        options: Backend, device, type, batch size and arguments of lm-eval's model.
        offload: Folder for what fits in no memory, where the model is spread over GPUs.
        beside: What is not in the folder.

    Raises:
        UserError: If it cannot be loaded, or the device or the backend is not there.
    """
    file, beside = _gguf_file(folder, options), beside or Beside()
    own = {"tokenizer": str(beside.tokenizer.resolve())} if beside.tokenizer else {}
    own |= {"peft": str(_adapter(beside.adapter, options))} if beside.adapter else {}
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


def _adapter(folder: Path, options: EvalOptions) -> Path:
    """Return the folder of an adapter, as lm-eval's model takes it."""
    if options.backend != "hf":
        hint = "Write `{model: NAME, backend: hf}` in `benchmark.models`."
        raise UserError("is an adapter, which only `backend: hf` measures", str(folder), hint)
    return folder.resolve()


def _gguf_files(folder: Path) -> list[str]:
    """Return the names of the GGUF files of an export's folder, none if the folder is a model's."""
    if (folder / "config.json").is_file():
        return []
    return sorted(path.name for path in folder.glob("*.gguf"))


def _gguf_file(folder: Path, options: EvalOptions) -> str | None:
    """Return the GGUF file of an export's folder, None if the folder is a model's."""
    if (folder / "config.json").is_file():
        return None
    files = _gguf_files(folder)
    if not files:
        raise UserError("is not a model's folder: it has no config.json", str(folder))
    if options.backend != "hf":
        hint = "Write `{model: exports, backend: llama_cpp}` in `benchmark.models`."
        raise UserError("holds GGUF, which vLLM does not measure here", str(folder), hint)
    if len(files) > 1:
        raise UserError(
            f"has {len(files)} files, and transformers reads GGUF from a single one",
            str(folder),
            "Write `{model: exports, backend: llama_cpp}` in `benchmark.models`, or raise "
            "`exports.gguf.split_size`.",
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
