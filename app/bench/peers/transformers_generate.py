"""Hugging Face transformers: `generate` on PyTorch, float32, greedy, a batch padded by hand.

First line: {"model": directory, "threads": number, "cache": "dynamic" or "static"}. A
static cache is compiled by `torch.compile`, not timed where a shape is new.
"""

from typing import Any

from protocol import Prepare, Run, serve


def load(setup: dict[str, Any]) -> Prepare:
    """Read the model."""
    import torch
    from transformers import AutoModelForCausalLM, CompileConfig

    torch.set_num_threads(setup["threads"])
    model = AutoModelForCausalLM.from_pretrained(setup["model"], dtype=torch.float32, attn_implementation="sdpa").eval()
    # Answers are as long as asked for; the class has an end token where config.json has none.
    model.generation_config.eos_token_id = None
    options: dict[str, Any] = {"do_sample": False, "pad_token_id": 0}
    is_static = setup.get("cache") == "static"
    if is_static:
        compiled = CompileConfig(fullgraph=False, dynamic=False, mode="default")
        compiled._compile_all_devices = True  # otherwise on a GPU only
        options |= {"cache_implementation": "static", "compile_config": compiled}
    known: set[tuple[int, int, int]] = set()

    def prepare(prompts: list[list[int]], outputs: list[int], _: dict[str, Any]) -> Run:
        longest = max(map(len, prompts))
        # To the left: a decoder goes on at the right.
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])

        def run() -> list[list[int]]:
            with torch.inference_mode():
                rows = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=max(outputs), **options)
            answers = rows[:, longest:].tolist()
            return [answer[:count] for answer, count in zip(answers, outputs, strict=True)]

        shape = len(prompts), longest, max(outputs)
        if is_static and shape not in known:
            known.add(shape)
            run()
            run()  # it may compile again what the first assumed
        return run

    return prepare


serve(load)
