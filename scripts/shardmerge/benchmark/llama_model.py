"""lm-eval's questions to a server of llama.cpp, which reads a GGUF file.

lm-eval's own model ``gguf`` asks for the log-probabilities of a prompt's tokens (``echo``), and
llama-server gives those of generated tokens alone. So each token of an answer is one that the
server is made to generate: a bias chooses it, and its log-probability is that of the model, before
any bias. What the tokens before it need is computed once, since the server keeps it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from shardmerge.base.errors import UserError
from shardmerge.benchmark.llama_server import Server

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedTokenizerBase

#: More than any difference of two logits.
_SURELY = 1e6
#: Tokens that are generated where a task does not say how many, as with lm-eval's other models.
_GENERATED = 256
#: Options of generation that llama-server calls otherwise, or as lm-eval does.
_KNOWN = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}

_Scored = tuple[tuple[str, str], list[int], list[int]]


class LlamaModel(TemplateLM):
    """A model that lm-eval asks, in llama.cpp.

    Args:
        server: That has loaded it.
        tokenizer: The model's own, so that all forms of a model are asked in the same tokens.
        max_length: Longest input in tokens.
        seed: Of drawn answers.
        add_bos_token: Whether inputs begin with the token for it; None for what the tokenizer does.
        think_end_token: Text that ends a model's thoughts, which are cut off, or None.
    """

    def __init__(
        self,
        server: Server,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        seed: int = 0,
        add_bos_token: bool | None = None,
        think_end_token: str | None = None,
    ) -> None:
        super().__init__()
        self.server, self.tokenizer, self.max_length = server, tokenizer, max_length
        self._seed, self._adds_bos = seed, add_bos_token
        self._thinks_until = think_end_token
        self.llama_cpp = str(server.ask("props").get("build_info", "unknown"))

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without a context."""
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval keys rendered chats by."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **more: Any
    ) -> list[int]:
        """Return the tokens of a text."""
        asked = self._adds_bos if add_special_tokens is None else add_special_tokens
        first = self.tokenizer.bos_token
        if add_special_tokens is None and first and string.startswith(first):
            asked = False  # a chat template has written it
        options = {} if asked is None else {"add_special_tokens": asked}
        return list(self.tokenizer(string, verbose=False, **options)["input_ids"])

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation as the model's chat template writes it."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[_Scored], **more: Any
    ) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        # neighbours share a beginning, which the server keeps
        order = sorted(range(len(requests)), key=lambda i: (*requests[i][1:], i))
        for i in order:
            texts, context, answer = requests[i]
            found[i] = self._score(context, answer)
            self.cache_hook.add_partial("loglikelihood", texts, found[i])
        return found

    def _score(self, context: Sequence[int], answer: Sequence[int]) -> tuple[float, bool]:
        """Return the log-probability of an answer, and whether each token is the likeliest."""
        tokens = [*context, *answer][-(self.max_length + 1) :]
        total, greedy = 0.0, True
        for at in range(len(tokens) - min(len(answer), len(tokens) - 1), len(tokens)):
            logprob, likeliest = self._forced(tokens[:at], tokens[at])
            total, greedy = total + logprob, greedy and likeliest == tokens[at]
        return total, greedy

    def _forced(self, prompt: Sequence[int], token: int) -> tuple[float, int]:
        """Return the log-probability of a token after a prompt, and the likeliest token there."""
        answer = self.server.ask(
            "completion",
            {
                "prompt": list(prompt),
                "n_predict": 1,
                "n_probs": 1,
                "temperature": 0,
                "logit_bias": [[token, _SURELY]],
                "cache_prompt": True,
            },
        )
        try:
            (row,) = answer["completion_probabilities"]
            made, logprob, best = row["id"], float(row["logprob"]), row["top_logprobs"][0]["id"]
        except (KeyError, TypeError, ValueError, IndexError):
            raise UserError(
                "llama-server gives no log-probabilities that are known here",
                hint="Its answers have changed: try the llama.cpp that docs/howto/export.md names.",
            ) from None
        if made != token:
            raise UserError(f"llama-server generated the token {made} where it was to take {token}")
        return logprob, int(best)

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-probabilities of whole texts."""
        found = []
        for request in requests:
            (text,) = request.args
            windows = map(
                make_disjoint_window,
                get_rolling_token_windows(
                    token_list=self.tok_encode(text),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                ),
            )
            found.append(sum(self._score(context, answer)[0] for context, answer in windows))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
        return found

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return what the model writes after each prompt, up to the texts that end an answer."""
        return list(map(self._generate, requests))

    def _generate(self, request: Instance) -> str:
        text, given = request.args
        options = dict(given)
        until = options.pop("until", None) or []
        until = [until] if isinstance(until, str) else list(until)
        most = int(options.pop("max_gen_toks", _GENERATED))
        drawn = options.pop("do_sample", None)
        asked = {_KNOWN[key]: value for key, value in options.items() if key in _KNOWN}
        if not drawn:
            asked["temperature"] = 0
        prompt = self.tok_encode(text)[-(self.max_length - most) :]
        answer = self.server.ask(
            "completion",
            asked
            | {
                "prompt": prompt,
                "n_predict": most,
                "stop": [end for end in until if end],
                "seed": self._seed,
                "cache_prompt": True,
            },
        )
        made = postprocess_generated_text(str(answer["content"]), until, self._thinks_until)
        self.cache_hook.add_partial("generate_until", request.args, made)
        return made
