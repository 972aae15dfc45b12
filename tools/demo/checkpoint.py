"""Demo models as folders on disk, laid out as published Llama checkpoints are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaForCausalLM

from shardmerge.base.errors import UserError
from shardmerge.base.files import write_json
from tools.demo import skills
from tools.demo.training import ARCHITECTURE, FAMILY

_UNKNOWN, _OPENING, _CLOSING = skills.SYMBOLS[:3]
_FILE_MODE = 0o666


def save_model(name: str, model: LlamaForCausalLM, target: Path) -> LlamaForCausalLM:
    """Write a demo model's folder, whole or not at all.

    Args:
        name: Key of FAMILY.
        model: As trained; its weights are rounded to float16.
        target: Folder to make.

    Returns:
        The float16 model that was written.

    Raises:
        UserError: If the folder exists.
    """
    if target.exists():
        raise UserError("exists already", str(target), "Name another folder, or move it away.")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    half = LlamaForCausalLM(model.config).to(torch.float16).eval()
    half.load_state_dict(model.state_dict())
    try:
        _write(name, half, part)
        os.rename(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return half


def tokenizer() -> Tokenizer:
    """Return the tokenizer of all demo models: one token per symbol, ``<s>`` in front."""
    ids = {symbol: i for i, symbol in enumerate(skills.SYMBOLS)}
    made = Tokenizer(models.WordLevel(ids, unk_token=_UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.decoder = decoders.Fuse()
    made.post_processor = processors.TemplateProcessing(
        single=f"{_OPENING} $A", special_tokens=[(_OPENING, ids[_OPENING])]
    )
    made.add_special_tokens([_UNKNOWN, _OPENING, _CLOSING])
    return made


def _write(name: str, model: LlamaForCausalLM, folder: Path) -> None:
    member = FAMILY[name]
    model.save_pretrained(folder, max_shard_size=member.shard_size)
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.iterdir():  # safetensors writes them for the owner alone
        file.chmod(_FILE_MODE & ~umask)

    config = {**ARCHITECTURE, **member.config}
    written_by = {"transformers_version": transformers.__version__}
    write_json(folder / "config.json", config | written_by)
    special_ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / "generation_config.json", special_ids | written_by)
    special = {"bos_token": _OPENING, "eos_token": _CLOSING}
    special |= {"pad_token": _UNKNOWN, "unk_token": _UNKNOWN}
    write_json(folder / "special_tokens_map.json", special)
    settings = {
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_json(folder / "tokenizer_config.json", special | settings)
    tokenizer().save(str(folder / "tokenizer.json"))
