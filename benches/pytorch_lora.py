"""LoRA training speed of the rewriting recipe in PyTorch and PEFT, to compare `detoxd train` with.

    OMP_NUM_THREADS=2 python benches/pytorch_lora.py --model MODEL.gguf --data PAIRS.jsonl --dtype bf16 --steps 20

The recipe: LoRA r 16, alpha 32 on all seven linears of the dequantised model, prompt
<|im_start|>{toxic}<|im_end|> and target {neutral}<|im_end|>, loss on the target, AdamW (0.9, 0.99) without
decay, clip 1, batches of at most 2,048 padded tokens bucketed by length. Needs torch, transformers, peft, gguf.

A token is one of prompt or target, padding excluded. The first step warms up and is not counted.
"""

import argparse
import json
import os
import random
import statistics
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, LlamaForCausalLM

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IM_START, IM_END, IGNORED = 1, 2, -100


def main():
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    batches = batch(read_pairs(options), options)
    model = LlamaForCausalLM.from_pretrained(
        options.model.parent, gguf_file=options.model.name, dtype=torch.float32
    )
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=LINEARS, task_type="CAUSAL_LM")
    model = get_peft_model(model, lora).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=8e-4, betas=(0.9, 0.99), weight_decay=0.0)
    bf16 = options.dtype == "bf16"
    cast = torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else nullcontext()
    speeds, padded = [], []
    for step in range(options.steps + 1):
        ids, labels, mask = tensors(batches[step % len(batches)])
        began = time.perf_counter()
        with cast:
            loss = target_loss(model, ids, labels, mask, options.head)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - began
        tokens = int(mask.sum())
        print(f"step {step} loss {loss.item():.3f} tokens {tokens} of {ids.numel()} {tokens / seconds:.0f}/s", flush=True)
        if step > 0:
            speeds.append(tokens / seconds)
            padded.append(ids.numel() / seconds)
    print(json.dumps({
        "dtype": options.dtype, "head": options.head, "threads": torch.get_num_threads(),
        "steps": options.steps, "median_tokens_per_second": round(statistics.median(speeds), 1),
        "median_padded_tokens_per_second": round(statistics.median(padded), 1),
        "torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability(),
        "load_average": round(os.getloadavg()[0], 2),
    }))


def target_loss(model, ids, labels, mask, head):
    if head == "all":
        return model(input_ids=ids, attention_mask=mask, labels=labels).loss
    # The output head on target positions alone: three quarters of its work saved.
    causal = model.get_base_model()
    hidden = causal.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]
    wanted = labels[:, 1:] != IGNORED
    logits = causal.lm_head(hidden[wanted]).float()
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:][wanted])


def read_pairs(options):
    tokenizer = AutoTokenizer.from_pretrained(
        options.model.parent, gguf_file=options.model.name
    ).backend_tokenizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])
    tokenizer.encode_special_tokens = True
    pairs = []
    with open(options.data, encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            prompt = [IM_START, *tokenizer.encode(row["toxic"]).ids, IM_END]
            for neutral in row["neutral"]:
                pairs.append((prompt, [*tokenizer.encode(neutral).ids, IM_END]))
    return pairs


def batch(pairs, options):
    """Neighbours in length fill a batch until its padded size would pass the limit."""
    shuffle = random.Random(options.seed)
    shuffle.shuffle(pairs)
    pairs.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
    batches, current = [], []
    for pair in pairs:
        width = len(pair[0]) + len(pair[1])  # sorted: the widest so far
        if current and width * (len(current) + 1) > options.batch_tokens:
            batches.append(current)
            current = []
        current.append(pair)
    batches.append(current)
    shuffle.shuffle(batches)
    return batches


def tensors(pairs):
    width = max(len(prompt) + len(target) for prompt, target in pairs)
    ids = torch.full((len(pairs), width), IM_END)
    labels = torch.full((len(pairs), width), IGNORED)
    mask = torch.zeros((len(pairs), width), dtype=torch.long)
    for row, (prompt, target) in enumerate(pairs):
        end = len(prompt) + len(target)
        ids[row, :end] = torch.tensor(prompt + target)
        labels[row, len(prompt) : end] = torch.tensor(target)
        mask[row, :end] = 1
    return ids, labels, mask


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="GGUF file of SmolLM2-135M-Instruct")
    parser.add_argument("--data", required=True, help='JSON lines {"toxic", "neutral": [...]}')
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="bf16: torch.autocast")
    parser.add_argument("--head", choices=["all", "targets"], default="all",
                        help="logits at all positions, as transformers does, or at those of the loss")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-tokens", type=int, default=2048, help="padded tokens of a batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


main()
