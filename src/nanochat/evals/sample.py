"""Continuations of a few prompts."""

from typing import Any

from nanochat.evals.evaluation import Context, Evaluation, Result
from nanochat.inference.complete import complete
from nanochat.runtime.settings import Count, Seed, Temperature, TopK


class Samples(Evaluation):
    """`num_samples` texts for each prompt, as plain text also for chat models. Gives no numbers."""

    def __init__(
        self,
        prompts: list[str],
        num_samples: Count = 1,
        max_tokens: Count = 32,
        temperature: Temperature = 0.0,
        top_k: TopK = None,
        seed: Seed = 42,
    ) -> None:
        self.prompts, self.num_samples = prompts, num_samples
        self.settings: dict[str, Any] = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "seed": seed,
        }

    def __call__(self, context: Context) -> Result:
        texts = complete(
            context.gpt,
            context.tokenizer,
            self.prompts,
            num_samples=self.num_samples,
            **self.settings,
        )
        beginnings = [prompt for prompt in self.prompts for _ in range(self.num_samples)]
        return {
            "sample": [repr(prompt + text) for prompt, text in zip(beginnings, texts, strict=True)]
        }
