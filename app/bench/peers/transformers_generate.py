"""Hugging Face transformers: `generate` on PyTorch, float32, greedy, a batch padded by hand.

First line: {"model": directory, "threads": number}.
"""

from typing import Any

from protocol import Prepare, Run, serve


def load(setup: dict[str, Any]) -> Prepare:
    """Read the model."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(setup["threads"])
    model = AutoModelForCausalLM.from_pretrained(setup["model"], dtype=torch.float32).eval()

    def prepare(prompts: list[list[int]], outputs: list[int], _: dict[str, Any]) -> Run:
        longest = max(map(len, prompts))
        # To the left: a decoder goes on at the right.
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])

        def run() -> list[list[int]]:
            with torch.inference_mode():
                rows = model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    do_sample=False,
                    min_new_tokens=max(outputs),
                    max_new_tokens=max(outputs),
                    pad_token_id=0,
                )
            answers = rows[:, longest:].tolist()
            return [answer[:count] for answer, count in zip(answers, outputs, strict=True)]

        return run

    return prepare


serve(load)
