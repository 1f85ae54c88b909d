"""A checkpoint as a model of the lm-evaluation-harness, in this process: `lm_eval --model nanochat
--model_args ckpt=PATH`.

Versions of the harness that look for plugins (after 0.4.13) find the class by the entry point in
pyproject.toml. For earlier ones `python -m nanochat.evals.lm_eval` is the harness's own command,
with the same words, after the class has been registered.

Likelihoods are those of every other evaluation (inference/likelihood.py), so an item is decided
here as CORE decides it where the prompts are the same; texts are written by the engine.
"""

import json
import re
from collections import defaultdict
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from nanochat.checkpoint.opened import open_checkpoint
from nanochat.evals.core.prompts import common_prefix
from nanochat.inference.engine import Engine
from nanochat.inference.likelihood import Continuation, likelihoods
from nanochat.inference.sampling import Sampling
from nanochat.inference.text import ANSWER_ENDS
from nanochat.tokenizer.conversations import render_prompt

SAMPLED = ("top_k", "top_p", "min_p", "repetition_penalty", "seed")  # of generation_kwargs
IGNORED = ("do_sample", "temperature", "until", "max_gen_toks")  # taken by themselves


@register_model("nanochat")
class NanochatLM(TemplateLM):
    """`ckpt` as in every command. A forward pass reads at most about `batch_tokens`, whatever
    `--batch_size` says.

    Contexts of likelihoods are not cropped, as in CORE, or to their last `max_length` tokens. With
    `tools` the model may use the calculator. ValueError for what makes no sense.
    """

    def __init__(
        self,
        ckpt: str,
        device: str | None = None,
        precision: str = "auto",
        batch_tokens: int | None = None,
        max_length: int | None = None,
        max_rows: int = 32,
        tools: bool = False,
        batch_size: Any = None,
        max_batch_size: Any = None,
    ) -> None:
        super().__init__()
        # the harness names cuda:0 where nothing is typed, also without a GPU
        chosen = "auto" if device in (None, "cuda:0") else device
        self.opened = open_checkpoint(ckpt, device=chosen, precision=precision)
        self.gpt, self.text = self.opened.gpt, self.opened.tokenizer
        self.batch_tokens, self.crop, self.tools = batch_tokens, max_length, tools
        ends = ANSWER_ENDS if self.opened.chats else ("<|bos|>",)
        self.engine = Engine(self.gpt, self.text, max_rows=max_rows, pool_bytes=0, ends=ends)
        self.special = re.compile("|".join(map(re.escape, self.text.specials)))

    # --- text and tokens --------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        return self.text.bos_id

    @property
    def max_length(self) -> int:
        return self.gpt.config.sequence_len

    @property
    def tokenizer_name(self) -> str:
        return str(self.opened.path).replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **more: Any
    ) -> list[int]:
        """Ids after a bos, which `add_special_tokens=False` leaves out. In a text that begins with
        one, as `apply_chat_template` makes it, names of special tokens are these tokens."""
        if string.startswith("<|bos|>"):
            names = self.special.findall(string)
            parts = [self.text.encode(part) for part in self.special.split(string)[1:]]
            return [
                token
                for name, part in zip(names, parts, strict=True)
                for token in (self.text.specials[name], *part)
            ]
        ids = self.text.encode(string)
        return ids if add_special_tokens is False else [self.text.bos_id, *ids]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The ids of both together, parted where those of the context alone end. Where a token
        holds the end of one and the beginning of the other it is judged, as in CORE; the harness
        would put the context's own tokens before it, which together are another text."""
        whole, alone = self.tok_encode(context + continuation), self.tok_encode(context.rstrip())
        n = common_prefix([whole, alone])
        return whole[:n], whole[n:]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation as text, special tokens by name: up to where the assistant answers, or
        else to the end of its last message, which is continued."""
        prompt = render_prompt(
            self.text, {"messages": chat_history}, go_on=not add_generation_prompt
        )
        return self.text.decode(prompt)

    # --- what is asked ----------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **more: Any
    ) -> list[tuple[float, bool]]:
        asked = []
        for (context, text), before, after in requests:
            if not after:
                raise ValueError(
                    f"{text!r} after {context[-40:]!r} is no token of its own, so it has no "
                    "likelihood"
                )
            room = max(1, self.crop - len(after)) if self.crop else len(before)
            asked.append(Continuation(before[-room:], after))
        found = likelihoods(self.gpt, asked, batch_tokens=self.batch_tokens)
        return [(-sum(one.nats), one.greedy) for one in found]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows as long as the model was trained on."""
        asked, owner = [], []
        for n, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0], add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in windows:
                asked.append(Continuation(*make_disjoint_window(window)))
                owner.append(n)
        totals = [0.0] * len(requests)
        found = likelihoods(self.gpt, asked, batch_tokens=self.batch_tokens)
        for n, one in zip(owner, found, strict=True):
            totals[n] -= sum(one.nats)
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """A text for each, many at a time; a context too long for its answer loses its
        beginning."""
        groups = defaultdict(list)  # those with the same settings
        for n, request in enumerate(requests):
            groups[json.dumps(request.args[1], sort_keys=True)].append(n)
        texts = [""] * len(requests)
        with self.engine.frozen():
            for settings, numbers in groups.items():
                sampling = self.sampling(json.loads(settings))
                room = max(1, self.max_length - (sampling.max_tokens or 0))
                prompts = [self.tok_encode(requests[n].args[0])[-room:] for n in numbers]
                seeds = [f"{sampling.seed}/{n}" for n in numbers]
                for n, [one] in zip(
                    numbers, self.engine.sample(prompts, sampling, 1, seeds), strict=True
                ):
                    texts[n] = one.text
        return texts

    def sampling(self, settings: dict[str, Any]) -> Sampling:
        """What `generation_kwargs` of a task mean to the engine. ValueError for one it does not
        have."""
        given = normalize_gen_kwargs(settings, 256)
        if unknown := [key for key in given if key not in (*SAMPLED, *IGNORED)]:
            raise ValueError(
                f"generation_kwargs has {unknown[0]}, which the engine does not have; it has "
                f"{', '.join((*SAMPLED, *IGNORED))}"
            )
        until = given.get("until") or []
        stops = tuple(text for text in until if text and text not in self.text.specials)
        more = {key: given[key] for key in SAMPLED if given.get(key) is not None}
        return Sampling(
            temperature=given.get("temperature") or 0.0,
            stop=stops,
            max_tokens=given["max_gen_toks"],
            tools=self.tools,
            **more,
        )


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
