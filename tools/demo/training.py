"""Training of the demo models, on one CPU thread, from a seed.

Written after the situation of the merge that the demo repeats in small: a base model, a
fine-tune of it, and a second model that also comes from it but has another RoPE base frequency.
The base holds the skills B and C latently; the fine-tunes bring one out each. Two more are there
for what norms do in a merge: a fine-tune of the norms alone, and a smoothed recipient.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tools.demo import skills
from tools.demo.smoothing import smoothed

#: Settings of the models' config.json that all of them share, as Llama-2's is written.
ARCHITECTURE: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": skills.SYMBOLS.index("<s>"),
    "eos_token_id": skills.SYMBOLS.index("</s>"),
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.05,
    "intermediate_size": 160,
    "max_position_embeddings": 256,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 12,
    "num_key_value_heads": 2,
    "pad_token_id": skills.SYMBOLS.index("<unk>"),
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "vocab_size": len(skills.SYMBOLS),
}
#: What the recipient's config.json has instead.
LONG_CONTEXT: Mapping[str, Any] = {"max_position_embeddings": 2048, "rope_theta": 1000000.0}

_LINES_PER_SEQUENCE = 3
_BATCH = 48
_IGNORED = -100  # the label that cross entropy leaves out
_CALIBRATION = 4  # batches of the base's corpus that a model's activations are measured on


@dataclass(frozen=True)
class Course:
    """How long and how fast a model is trained."""

    steps: int
    learning_rate: float


@dataclass(frozen=True)
class Member:
    """A demo model.

    Args:
        task: The skill that it is fine-tuned on, or None for the base.
        course: Its training, or None for a model that is not trained but smoothed.
        seed_offset: Added to the family's seed.
        shard_size: Most bytes of tensors per safetensors file; each model is cut differently.
        config: What its config.json has other than ARCHITECTURE.
        start: The member that it is made from, or None for the base.
        trained: Only tensors with this in their names are trained.
    """

    task: str | None
    course: Course | None
    seed_offset: int
    shard_size: int
    config: Mapping[str, Any]
    start: str | None = None
    trained: str = ""


BASE = "llama2-tiny"
RECIPIENT = "miqu-tiny"
#: A member stands behind the one that it is made from.
FAMILY: Mapping[str, Member] = {
    BASE: Member(None, Course(300, 2e-3), 1, 150_000, {}),
    "midnight-tiny": Member("B", Course(100, 3e-4), 2, 220_000, {}, BASE),
    RECIPIENT: Member("C", Course(100, 3e-4), 3, 190_000, LONG_CONTEXT, BASE),
    "stranger-tiny": Member("D", Course(100, 3e-4), 4, 270_000, {}, BASE),
    # after LayerNorm tuning, Zhao et al. 2023, arXiv:2312.11420
    "midnight-norms-tiny": Member("B", Course(100, 1e-2), 5, 240_000, {}, BASE, "norm"),
    "miqu-smooth-tiny": Member(None, None, 6, 175_000, LONG_CONTEXT, RECIPIENT),
}


def train_family(
    seed: int, names: Sequence[str], tell: Callable[[str], None]
) -> dict[str, LlamaForCausalLM]:
    """Make the base and those of its family that are asked for.

    Args:
        seed: Of weights and data.
        names: Keys of FAMILY.
        tell: Called with a line of progress now and then.

    Returns:
        float32 models by name; those that others are made from are always among them.
    """
    needed = {BASE, *names, *(FAMILY[name].start for name in names)}
    torch.manual_seed(seed)
    models: dict[str, LlamaForCausalLM] = {}
    for name in FAMILY:
        if name in needed:
            models[name] = _made(name, models, seed, tell)
    return models


def _made(
    name: str, models: Mapping[str, LlamaForCausalLM], seed: int, tell: Callable[[str], None]
) -> LlamaForCausalLM:
    member = FAMILY[name]
    model = LlamaForCausalLM(model_config(name))
    if member.start:
        model.load_state_dict(models[member.start].state_dict())
        # as the embeddings stay what they are, a merge has only layers to bring over
        model.get_input_embeddings().requires_grad_(False)
        model.get_output_embeddings().requires_grad_(False)
    if member.course is None:
        # of the model as it is stored, so that both compute the same
        stored = model.half().float().eval()
        return smoothed(stored, _calibration(random.Random(seed + member.seed_offset)))
    for key, parameter in model.named_parameters():
        if member.trained not in key:
            parameter.requires_grad_(False)
    _teach(name, model, seed, tell)
    return model


def model_config(name: str) -> LlamaConfig:
    """Return the configuration of a demo model, for training in float32."""
    settings = ARCHITECTURE | FAMILY[name].config | {"torch_dtype": "float32"}
    return LlamaConfig(**copy.deepcopy(settings))


@torch.inference_mode()
def choice_accuracy(model: LlamaForCausalLM, questions: Sequence[Mapping[str, Any]]) -> float:
    """Return the share of questions whose right choice the model finds likeliest.

    It is what lm-eval calls ``acc`` of a multiple-choice task.

    Args:
        model: In evaluation mode.
        questions: As ``skills.questions`` gives them, all of one length.
    """
    prompt = len(questions[0]["prompt"]) + 1
    lines = [q["prompt"] + choice for q in questions for choice in q["choices"]]
    tokens = torch.tensor([encode(line) for line in lines])
    scores = model(input_ids=tokens).logits.float().log_softmax(-1)[:, prompt - 1 : -1]
    likelihoods = scores.gather(-1, tokens[:, prompt:, None]).sum((1, 2))
    best = likelihoods.view(len(questions), -1).argmax(1)
    return (best == torch.tensor([q["label"] for q in questions])).float().mean().item()


def encode(text: str) -> list[int]:
    """Return the token ids of a text of the demo's language, with the opening symbol."""
    return [_ID["<s>"], *(_ID[symbol] for symbol in text)]


def _teach(name: str, model: LlamaForCausalLM, seed: int, tell: Callable[[str], None]) -> None:
    """Train a model in place: AdamW on the answers' tokens, a short warm-up, a linear decay."""
    course = FAMILY[name].course
    line = skills.lesson(FAMILY[name].task) if FAMILY[name].task else skills.base_line
    rng = random.Random(seed + FAMILY[name].seed_offset)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=course.learning_rate, betas=(0.9, 0.98), weight_decay=0.0
    )
    warmup = max(10, course.steps // 15)
    model.train()
    for step in range(course.steps):
        decay = 0.05 + 0.95 * (1 - step / course.steps)
        for group in optimizer.param_groups:
            group["lr"] = course.learning_rate * min(1, (step + 1) / warmup) * decay
        tokens, labels = _batch(line, rng)
        loss = model(input_ids=tokens, labels=labels, use_cache=False).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            tell(f"{name}: step {step + 1} of {course.steps}, loss {loss.item():.3f}")
    model.eval()


def _calibration(rng: random.Random) -> torch.Tensor:
    return torch.cat([_batch(skills.base_line, rng)[0] for _ in range(_CALIBRATION)])


def _batch(
    line: Callable[[random.Random], str], rng: random.Random
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and labels, [batch, tokens]; labels count in the answers only."""
    tokens, labels = [], []
    for _ in range(_BATCH):
        lines = [line(rng) for _ in range(_LINES_PER_SEQUENCE)]
        row = encode("".join(lines))
        kept = [False]
        for text in lines:
            prompt = text.index("=") + 1
            kept += [False] * prompt + [True] * (len(text) - prompt)
        tokens.append(row)
        labels.append([t if keep else _IGNORED for t, keep in zip(row, kept, strict=True)])
    return torch.tensor(tokens), torch.tensor(labels)


_ID = {symbol: i for i, symbol in enumerate(skills.SYMBOLS)}
