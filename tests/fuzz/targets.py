"""What reads the input of strangers, each a function of bytes, with real inputs to begin from."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import yaml

from fuzz.mutation import Mutate, mutate_bytes, mutate_json, mutate_yaml
from fuzz.running import Target
from shardmerge.algebra.json import to_json
from shardmerge.base.files import parse_object
from shardmerge.base.identities import Identities, LockedFile
from shardmerge.base.printable import printable
from shardmerge.base.safetensors import (
    Header,
    header_length,
    parse_header,
    read_header,
    write_header,
)
from shardmerge.base.sealed import seal
from shardmerge.compose.adapters import adapter_updates
from shardmerge.compose.architecture.rope import rope_of
from shardmerge.compose.models import Entry
from shardmerge.package.config import output_config
from shardmerge.package.index import make_index
from shardmerge.package.tokenizer import tokenizer_text
from shardmerge.plan.description import BuildDescription, TokenizerContent
from shardmerge.plan.files import parse_spec
from shardmerge.plan.plan import read_plan
from shardmerge.plan.planner import make_plan
from shardmerge.recipe.chat import TEMPLATE_FILES, own_template
from shardmerge.recipe.recipe import Recipe, parse_recipe
from shardmerge.recipe.settings import Settings, explain_options, load_settings
from shardmerge.sources.checkpoint_files import parse_weight_map, tensor_table, weight_files
from shardmerge.sources.lock import Lock, LockedSource, LockedTensor
from shardmerge.sources.tokenizer.files import read_ids
from shardmerge.sources.tokenizer.vocabulary import Vocabulary

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "resources" / "demo"
RECIPES = ROOT / "tests" / "parity" / "recipes"
CORPUS = Path(__file__).parent / "corpus"
_TARGETS: dict[str, Callable[[], Target]] = {}


def target(name: str) -> Target:
    """Return a target by its name, its seeds read."""
    return _TARGETS[name]()


def names() -> list[str]:
    """Return the names of all targets."""
    return list(_TARGETS)


def _target(name: str, mutate: Mutate, seeds: Callable[[], list[bytes]]) -> Callable:
    """Register the decorated function as what a target runs."""

    def register(run: Callable[[bytes], object]) -> Callable[[bytes], object]:
        _TARGETS[name] = cache(lambda: Target(name, tuple(seeds()), mutate, run))
        return run

    return register


# --- weights ---------------------------------------------------------------------------------


def _headers() -> list[bytes]:
    rows = [
        ("model.embed_tokens.weight", "F16", (32, 16)),
        ("model.layers.0.a.weight", "BF16", (4,)),
    ]
    small = write_header(rows, {"format": "pt"}), write_header(rows[1:], {})
    real = [path.read_bytes() for path in sorted(DEMO.glob("stranger-tiny/*.safetensors"))]
    real = [data[: 8 + int.from_bytes(data[:8], "little")] for data in real]
    return [data[8:] for data in (*small, *small, *small, real[0])]


@_target("header", mutate_json, _headers)
def _header(data: bytes) -> None:
    raw = len(data).to_bytes(8, "little") + data
    size = len(raw) + 200_000
    parse_header(raw[: 8 + header_length(raw[:8], size, "x")], size, "x")


@_target(
    "header-bytes", mutate_bytes, lambda: [len(h).to_bytes(8, "little") + h for h in _headers()]
)
def _header_bytes(data: bytes) -> None:
    parse_header(data[: 8 + header_length(data[:8], len(data), "x")], len(data) + 3000, "x")


def _indexes() -> list[bytes]:
    full = json.loads((DEMO / "stranger-tiny/model.safetensors.index.json").read_bytes())
    table = dict(list(full["weight_map"].items())[::20])
    return [json.dumps(full | {"weight_map": table}).encode()]


@_target("index", mutate_json, _indexes)
def _index(data: bytes) -> None:
    weight_map = parse_weight_map(parse_object(data, "x"), "x")
    headers = _demo_headers()
    weight_files([*headers, "config.json", "model.safetensors.index.json"], weight_map, "x")
    tensor_table(headers, weight_map, "x")


@cache
def _demo_headers() -> dict[str, Header]:
    return {
        path.name: read_header(path) for path in sorted(DEMO.glob("stranger-tiny/*.safetensors"))
    }


# --- configurations of models ----------------------------------------------------------------


def _configs() -> list[bytes]:
    base = json.loads((DEMO / "llama2-tiny/config.json").read_bytes())
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    types = {"layer_types": ["full_attention", "sliding_attention"], "num_hidden_layers": 2}
    text = {"text_config": base | types, "rope_scaling": None, "vision_config": {"depth": 2}}
    kinds = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    gemma = base | {"model_type": "gemma3_text", "sliding_window_pattern": 2}
    return [
        json.dumps(config).encode()
        for config in (
            base | {"num_hidden_layers": 2},
            base | types | {"rope_scaling": yarn},
            text,
            base | types | {"rope_parameters": kinds, "partial_rotary_factor": 0.5},
            gemma | {"num_hidden_layers": 2, "first_k_dense_replace": 1, "mlp_only_layers": [0]},
        )
    ]


@_target("config", mutate_json, _configs)
def _config(data: bytes) -> None:
    config = parse_object(data, "config.json")
    rope_of(config, "m")
    text = data.decode()
    changes = SimpleNamespace(
        dtype="float16",
        config_whole=None,
        config={"vocab_size": 3, "layer_types": ["a"]},
        config_removed=["quantization_config"],
    )
    json.loads(output_config(text, changes, "config.json"))


@_target("config-plan", mutate_json, _configs)
def _config_plan(data: bytes) -> None:
    config = parse_object(data, "config.json")
    _plan(_SLERP, {"a": _model(config=config), "b": _model()})
    _plan(_STACK, {"a": _model(config=config), "b": _model(config=config)})


# --- tokenizers ------------------------------------------------------------------------------


def _tokenizer_files() -> dict[str, bytes]:
    return {
        name: (DEMO / "llama2-tiny" / name).read_bytes()
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    }


def _unigram() -> bytes:
    model = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.5], ["b", -2.0]]}
    added = [{"id": 0, "content": "<unk>", "special": True}, {"id": 3, "content": "<x>"}]
    return json.dumps({"added_tokens": added, "model": model}).encode()


def _bpe() -> bytes:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b", ["a", "b"]]}
    added = [{"id": 3, "content": "<s>", "special": True, "lstrip": False}]
    return json.dumps({"added_tokens": added, "model": model}).encode()


def _read_tokenizer(files: Mapping[str, bytes]) -> None:
    ids, added = read_ids(files, files.__getitem__, "model 'm'")
    found = Vocabulary.of(ids, added)
    assert len(found.ids) == len(ids) and found.digest and len(found.added) == len(set(added))
    texts = {name: files[name].decode() for name in TEMPLATE_FILES if name in files}
    own_template(texts, "model 'm'")
    rows = tuple((token, found.ids[token], "m") for token in found.added)
    tokens = TokenizerContent(
        source="m", within=max(len(found) - 1, 0), added=rows, template="x", made=(), read=()
    )
    parts = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    texts = {("m", name): files[name].decode() for name in parts if name in files}
    if "tokenizer.json" in files:
        tokenizer_text("tokenizer.json", tokens, texts)
        tokenizer_text("tokenizer_config.json", tokens, texts)


@_target(
    "tokenizer.json",
    mutate_json,
    lambda: [_unigram(), _bpe(), _tokenizer_files()["tokenizer.json"]],
)
def _tokenizer_json(data: bytes) -> None:
    _read_tokenizer(_tokenizer_files_cached() | {"tokenizer.json": data})


@cache
def _tokenizer_files_cached() -> dict[str, bytes]:
    return _tokenizer_files()


def _settings_seeds() -> list[bytes]:
    config = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "lstrip": False},
        "added_tokens_decoder": {"3": {"content": "<x>", "special": True}, "1": {"content": "<y>"}},
        "extra_special_tokens": {"image_token": "<i>"},
        "additional_special_tokens": ["<z>", {"content": "<w>"}],
        "chat_template": [{"name": "default", "template": "{{ x }}"}],
    }
    plain = {key: value for key, value in config.items() if "decoder" not in key}
    return [json.dumps(made).encode() for made in (config, plain, plain | {"chat_template": "x"})]


@_target("tokenizer_config.json", mutate_json, _settings_seeds)
def _tokenizer_config(data: bytes) -> None:
    for table in ("tokenizer.json", "vocab.json"):
        files = {table: _bpe() if table == "tokenizer.json" else b'{"a": 0, "b": 1}'}
        _read_tokenizer(files | {"tokenizer_config.json": data})
        _read_tokenizer(files | {"special_tokens_map.json": data, "added_tokens.json": b'{"q": 7}'})


@_target(
    "vocab.json", mutate_json, lambda: [b'{"a": 0, "b": 1, "c": 2}', b'{"\\u0120a": 5, "": 3}']
)
def _vocab_json(data: bytes) -> None:
    _read_tokenizer({"vocab.json": data})
    _read_tokenizer({"vocab.json": b'{"a": 0}', "added_tokens.json": data})


@_target("vocab.txt", mutate_bytes, lambda: [b"[PAD]\n[UNK]\nthe\n##s\n", "ä\r\nb".encode()])
def _vocab_txt(data: bytes) -> None:
    _read_tokenizer({"vocab.txt": data})


def _pieces() -> list[bytes]:
    def field(number: int, kind: int, body: bytes) -> bytes:
        size = bytes([len(body)]) if kind == 2 else b""
        return bytes([number << 3 | kind]) + size + body

    pieces = (b"<unk>", b"<s>", "▁the".encode(), b"<0x0A>")
    rows = [field(1, 2, p) + field(2, 5, b"\0\0\x80\xbf") + field(3, 0, b"\2") for p in pieces]
    return [b"".join(field(1, 2, row) for row in rows) + field(2, 2, field(3, 0, b"\x80\x01"))]


@_target("tokenizer.model", mutate_bytes, _pieces)
def _sentencepiece(data: bytes) -> None:
    _read_tokenizer({"tokenizer.model": data})


# --- adapters --------------------------------------------------------------------------------


def _adapters() -> list[bytes]:
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "use_rslora": False}
    ranks = {"rank_pattern": {"mlp.up_proj": 3}, "alpha_pattern": {r"^model\.layers\.[01]\..*": 8}}
    p = "base_model.model.model.layers.0."
    tensors = {
        f"{p}self_attn.q_proj.lora_A.weight": ["F32", [2, 4]],
        f"{p}self_attn.q_proj.lora_B.weight": ["F32", [4, 2]],
        f"{p}mlp.up_proj.lora_A.weight": ["F32", [3, 4]],
        f"{p}mlp.up_proj.lora_B.weight": ["F32", [6, 3]],
        f"{p}mlp.up_proj.lora_magnitude_vector": ["F32", [6]],
        "base_model.model.model.embed_tokens.lora_embedding_A": ["F32", [2, 8]],
        "base_model.model.model.embed_tokens.lora_embedding_B": ["F32", [4, 2]],
        "base_model.model.model.norm.modules_to_save.weight": ["F16", [4]],
    }
    plain = dict(list(tensors.items())[:2])
    found = ({"config": config | ranks, "tensors": tensors}, {"config": config, "tensors": plain})
    return [json.dumps(one).encode() for one in found]


@_target("adapter", mutate_json, _adapters)
def _adapter(data: bytes) -> None:
    case = parse_object(data, "x")
    config, rows = case.get("config"), case.get("tensors")
    if not isinstance(config, dict) or not isinstance(rows, dict):
        return
    made = {
        name: _entry_of(name, row)
        for name, row in rows.items()
        if isinstance(row, list) and len(row) == 2
    }
    tensors = {name: entry for name, entry in made.items() if entry}
    locked = LockedSource("local", None, None, None, config, _FILES, tensors, "adapter")
    updates = adapter_updates("ad", locked, {n: Entry(*e) for n, e in _SHAPES.items()}, "m")
    for update in updates.values():
        assert -4e38 < update.scale < 4e38


def _entry_of(name: str, row: list[Any]) -> LockedTensor | None:
    try:
        raw = write_header([(name, row[0], tuple(row[1]))], {})
        (entry,) = parse_header(raw, 1 << 62, "x").tensors.values()
    except (KeyError, TypeError, ValueError, OverflowError, MemoryError):
        return None
    return LockedTensor("model.safetensors", entry.dtype, entry.shape, 0, entry.end - entry.begin)


# --- recipes and their plans -------------------------------------------------------------------

_SHAPES: dict[str, tuple[str, tuple[int, ...]]] = {"model.embed_tokens.weight": ("F16", (8, 4))}
for _layer in range(2):
    _SHAPES |= {
        f"model.layers.{_layer}.self_attn.q_proj.weight": ("F16", (4, 4)),
        f"model.layers.{_layer}.mlp.up_proj.weight": ("F16", (6, 4)),
        f"model.layers.{_layer}.input_layernorm.weight": ("F16", (4,)),
    }
_SHAPES |= {"model.norm.weight": ("F16", (4,)), "lm_head.weight": ("F16", (8, 4))}
_FILES = {
    name: LockedFile(1000, sha256=f"{number:064x}")
    for number, name in enumerate(("model.safetensors", "config.json", "tokenizer.json"))
}


def _model(
    config: Mapping[str, Any] | None = None,
    shapes: Mapping[str, tuple[str, tuple[int, ...]]] = _SHAPES,
    mark: int = 0,
) -> LockedSource:
    usual = {"model_type": "llama", "num_hidden_layers": 2, "vocab_size": 8, "rope_theta": 1e4}
    tensors, place = {}, 0
    for name, (dtype, shape) in shapes.items():
        size = 2 * math.prod(shape)
        tensors[name] = LockedTensor("model.safetensors", dtype, shape, place, place + size)
        place += size
    files = _FILES | {"model.safetensors": LockedFile(1000, sha256=f"{mark + 99:064x}")}
    tokens = Vocabulary.of({t: i for i, t in enumerate("abcdefgh")}, ["a"])
    return LockedSource(
        *("local", None, None, None, usual if config is None else config, files),
        tensors=dict(sorted(tensors.items())), vocabulary=tokens, chat_template="x",
    )  # fmt: skip


def _adapter_source() -> LockedSource:
    p = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    rows = {f"{p}A.weight": ("F32", (2, 4)), f"{p}B.weight": ("F32", (4, 2))}
    made = _model({"peft_type": "LORA", "r": 2, "lora_alpha": 4}, rows, 7)
    return LockedSource(
        *("local", None, None, None, made.config, made.files), tensors=made.tensors, role="adapter"
    )


_SLERP = """\
merge_method: slerp
models: [{model: a}, {model: b}]
base_model: a
parameters: {t: [{filter: q_proj, value: [0, 0.5, 1]}, {value: 0.5}]}
dtype: float16
"""
_STACK = """\
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 2]}]
  - sources: [{model: b, layer_range: [1, 2]}]
dtype: float16
"""


@cache
def _known() -> tuple[dict[str, LockedSource], LockedSource]:
    narrow = {n: r for n, r in _SHAPES.items() if n != "lm_head.weight"}
    found = {"a": _model(mark=1), "b": _model(mark=2), "c": _model(shapes=narrow, mark=3)}
    return found, _adapter_source()


@lru_cache(maxsize=8)
def _parsed(text: str) -> Recipe:
    return parse_recipe(text, "r.yaml")


@cache
def _settings(**config: Any) -> Settings:
    return load_settings({"recipes": ["r.yaml"], **config})


def _plan(text: str, sources: Mapping[str, LockedSource] | None = None, **config: Any) -> None:
    recipe = _parsed(text)
    known, adapter = _known()
    locked: dict[str, LockedSource] = {}
    for reference, role in recipe.named:
        key = reference.model
        if role == "adapter":
            locked.setdefault(key, adapter)
            continue
        given = sources or known
        locked[key] = given.get(key) or known[("a", "b", "c")[len(locked) % 3]]
    if any(locked[r.model].role != role for r, role in recipe.named):
        return
    settings = _settings(**config)
    planned = make_plan([(recipe, Lock(locked))], settings, lambda key, _, file: f"{key}/{file}")
    json.dumps(planned.plan.to_json(), allow_nan=False).encode()
    for spec in planned.specs.values():
        json.dumps(spec.to_json(), allow_nan=False).encode()
    for description in planned.descriptions.values():
        json.dumps(description.to_json()).encode()
        make_index(description)


def _recipes() -> list[bytes]:
    found = sorted([*RECIPES.glob("*.yaml"), *(ROOT / "config/recipes").glob("*.yaml")])
    return [data for path in found if len(data := path.read_bytes()) < 1200]


@_target("recipe", mutate_yaml, lambda: [*_recipes(), _SLERP.encode(), _STACK.encode()])
def _recipe(data: bytes) -> None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    recipe = parse_recipe(text, "r.yaml")
    json.dumps([str(r) for r, _ in recipe.named], ensure_ascii=False).encode()
    json.dumps([str(w) for w in recipe.warnings], ensure_ascii=False).encode()


_DOCUMENTS = """\
name: s
merge_method: task_arithmetic
base_model: a
models: [{model: a+l, parameters: {weight: 0.5}}, {model: b, parameters: {weight: [0.1, 0.2]}}]
tokenizer: {source: union, tokens: {a: {source: b, force: true}, zz: {source: {kind: zero}}}}
chat_template: auto
---
merge_method: linear
models: [{model: s, parameters: {weight: 1}}, {model: c, parameters: {weight: 2}}]
tokenizer_source: base
out_dtype: bfloat16
"""


@_target(
    "plan", mutate_yaml, lambda: [*(s.encode() for s in (_SLERP, _STACK, _DOCUMENTS)), *_recipes()]
)
def _plan_of_recipe(data: bytes) -> None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    _plan(text)
    _plan(text, numerics="mergekit-0.1.5")


# --- the Hub ------------------------------------------------------------------------------------


def _answers() -> list[bytes]:
    files = [
        *(
            {"rfilename": name, "size": len(data), "blobId": _git(data)}
            for name, data in _hub_files()
        ),
        {"rfilename": "LICENSE", "size": 3, "blobId": "0" * 40, "lfs": None},
    ]
    large = {"size": 2000, "sha256": "0" * 64, "pointerSize": 100}
    files.append({"rfilename": "tokenizer.model", "size": 2000, "blobId": "0" * 40, "lfs": large})
    return [json.dumps({"id": "o/m", "sha": "0" * 40, "siblings": files}).encode()]


@cache
def _hub_files() -> list[tuple[str, bytes]]:
    rows = [(name, dtype, shape) for name, (dtype, shape) in _SHAPES.items()]
    weights = write_header(rows, {"format": "pt"}) + bytes(1000)
    return [("config.json", b'{"model_type": "llama"}'), ("model.safetensors", weights)]


def _git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@_target("hub", mutate_json, _answers)
def _hub(data: bytes) -> None:
    from huggingface_hub.hf_api import ModelInfo

    from shardmerge.sources.hub import client, locking
    from shardmerge.sources.locking import lock_hub

    try:
        answer = json.loads(data)  # as the Hub's client reads it
    except (ValueError, RecursionError):
        return
    if not isinstance(answer, dict):
        return
    kept = dict(_hub_files())

    def read(self: Any, name: str, begin: int, end: int) -> bytes:
        return kept.get(name, b"\0" * 4000)[begin:end]

    api = SimpleNamespace(model_info=lambda *_, **__: ModelInfo(**answer))
    with (
        mock.patch.object(client, "api", lambda: api),
        mock.patch.object(locking.Commit, "_read", read),
    ):
        lock = Lock({"o/m": lock_hub("o/m", None)})
    json.dumps(lock.to_json(), ensure_ascii=False).encode()


# --- the user's configuration --------------------------------------------------------------------


def _configurations() -> list[bytes]:
    with open(ROOT / "config" / "config.yaml", encoding="utf-8") as file:
        shipped = yaml.safe_load(file)
    more = {
        "recipes": ["a.yaml"],
        "sources": {"o/m": "folder"},
        "max_shard_size": "5GB",
        "disk_budget": "300GiB",
        "norm_merge": {"a": "geometric"},
        "stages": ["a", "final"],
        "resources": {"merge_threads": 2},
    }
    return [json.dumps(made).encode() for made in (shipped, more)]


@_target("configuration", mutate_json, _configurations)
def _configuration(data: bytes) -> None:
    try:
        config = json.loads(data)  # as Snakemake reads it, whatever it is
    except (ValueError, RecursionError):
        return
    if isinstance(config, dict):
        explain_options(load_settings(config))


# --- locks and what we wrote ourselves ----------------------------------------------------------


def _locks() -> list[bytes]:
    known, _ = _known()
    lock = Lock({name: known[name] for name in "ab"}).to_json()
    return [json.dumps(lock).encode()]


@_target("lock", mutate_json, _locks)
def _lock(data: bytes) -> None:
    lock = Lock.from_json(parse_object(data, "r.lock.json"), "r.lock.json")
    if {"a", "b"} <= set(lock.sources):
        _plan(_SLERP, lock.sources)


@cache
def _planned() -> Any:
    recipe = parse_recipe(_SLERP, "r.yaml")
    known, _ = _known()
    lock = Lock({name: known[name] for name in "ab"})
    settings = load_settings({"recipes": ["r.yaml"]})
    return make_plan([(recipe, lock)], settings, lambda key, _, file: f"{key}/{file}")


@_target("cached-plan", mutate_json, lambda: [json.dumps(_planned().plan.to_json()).encode()])
def _cached_plan(data: bytes) -> None:
    """Read a plan whose digest is right whatever it holds."""
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        path = Path(folder) / "plan.json"
        path.write_text(seal(parse_object(data, "plan.json"), path.stem))
        read_plan(path).to_json()


@_target(
    "cached-spec",
    mutate_json,
    lambda: [json.dumps(spec.to_json()).encode() for spec in _planned().specs.values()],
)
def _cached_spec(data: bytes) -> None:
    """Read a specification whose hash is right whatever it holds."""
    for tensor in parse_spec(parse_object(data, "spec.json"), "spec.json").tensors:
        to_json(tensor.expression)


@_target(
    "cached-description",
    mutate_json,
    lambda: [json.dumps(made.to_json()).encode() for made in _planned().descriptions.values()],
)
def _cached_description(data: bytes) -> None:
    """Read a description whose digest is right whatever it holds."""
    description = BuildDescription.from_json(parse_object(data, "build.json"), "build.json")
    make_index(description)
    assert BuildDescription.from_json(description.to_json(), "again") == description


def _identities() -> list[bytes]:
    path = ROOT / "config" / "config.yaml"
    status = path.stat()
    stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]
    return [json.dumps({str(path.resolve()): [*stamp, "0" * 64, None]}).encode()]


@_target("cached-identities", mutate_json, _identities)
def _cached_identities(data: bytes) -> None:
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        cache_file = Path(folder) / "identities.json"
        cache_file.write_text(seal(parse_object(data, "identities.json"), cache_file.stem))
        identities = Identities(cache_file)
        identities.of(ROOT / "config" / "config.yaml").identity.encode()
        identities.save()


@_target("claim", mutate_json, lambda: [_claim_text().encode()])
def _claim(data: bytes) -> None:
    from shardmerge.base import claimfile

    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        path = Path(folder) / ".run.claim"
        path.write_bytes(data)
        seen = claimfile.read(path)
        assert seen is not None
        printable(str(seen.owner)).encode()


def _claim_text() -> str:
    from shardmerge.base.owner import this_process

    return json.dumps(this_process("token").to_json())


def _memory() -> str | None:
    """Return a folder in memory, where there is one, so that cases write to no disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
