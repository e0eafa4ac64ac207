"""Greedy rewrites by transformers and PEFT in f32, to compare ours with, sentence by sentence.

    python record_greedy.py MODEL.gguf ADAPTER PAIRS.jsonl ROWS OUTPUT.jsonl

The output stays outside the repository: its sources are toxic.
"""

import json
import sys
import time
from pathlib import Path

import torch
from reference import IM_END, load_model, load_tokenizer, prompt

torch.set_grad_enabled(False)


def main():
    gguf, adapter, pairs, rows, out = sys.argv[1:]
    tokenizer = load_tokenizer(Path(gguf))
    model = load_model(Path(gguf), adapter).merge_and_unload()
    lines = open(pairs, encoding="utf-8").read().splitlines()[: int(rows)]
    sources = [json.loads(line)["toxic"] for line in lines]
    prompts = [prompt(tokenizer, source) for source in sources]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    outputs, began = {}, time.time()
    for at in range(0, len(order), 32):
        batch = order[at : at + 32]
        width = max(len(prompts[i]) for i in batch)
        padding = [width - len(prompts[i]) for i in batch]
        ids = torch.tensor([[IM_END] * p + prompts[i] for p, i in zip(padding, batch)])
        mask = torch.tensor([[0] * p + [1] * (width - p) for p in padding])
        generated = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=64,
            eos_token_id=IM_END, pad_token_id=IM_END,
        )[:, width:]
        for i, row in zip(batch, generated.tolist()):
            end = row.index(IM_END) if IM_END in row else len(row)
            outputs[i] = row[:end]
        print(f"{at + len(batch)} rows, {time.time() - began:.0f} s", file=sys.stderr)
    with open(out, "w", encoding="utf-8") as file:
        for i, source in enumerate(sources):
            row = {"toxic": source, "output": tokenizer.decode(outputs[i]), "ids": outputs[i]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


main()
