"""Time of a training step and loss curve: `detoxd train` against PyTorch and PEFT, from the same adapter on the same batch.

    python benches/training_step.py --model MODEL.gguf --data SETS.jsonl --objective cp --binary target/release/detoxd

One batch, the same at every step, so that every step is the same work and the loss curves can be compared one by one. SETS.jsonl has
{"anchor", "positives", "negatives"} or {"toxic", "neutral"}. For `cp` a batch is --anchors sets of --positives + --negatives, for `sft` it
is --pairs of an anchor and one positive. Texts are neighbours in length, so that padding costs PyTorch little; what it pads is printed.

PyTorch does what its users do, at its best: each candidate after its own prompt, padded, fused attention, the output head on the tokens of
the loss alone, in float32 and under bfloat16 autocast. LoRA of rank 16 on all seven linears of the dequantised model, AdamW (0.9, 0.99), clip 1,
learning rate 2e-4. Rounds alternate between all of them; a round's first step warms up. Needs torch, transformers, peft and gguf.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, LlamaForCausalLM

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IM_START, IM_END, IGNORED = 1, 2, -100
TAU, MARGIN, CP_WEIGHT, RATE = 0.3, 1.0, 0.75, 2e-4


def main():
    options = parse()
    torch.set_num_threads(options.threads)
    sets = choose(options)
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        data = work / "batch.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in sets))
        peers = {dtype: Peer(options, sets, dtype, work / "adapter") for dtype in ("f32", "bf16")}
        seconds = {f"{who} {dtype}": [] for who in ("torch", "detoxd") for dtype in ("f32", "bf16")}
        curves = {}
        for number in range(options.rounds):
            for dtype, peer in peers.items():
                losses, times = peer.round(options.steps)
                curves.setdefault(f"torch {dtype}", losses)
                seconds[f"torch {dtype}"] += times[1:]
                losses, times = detoxd(options, data, work / "adapter", work / f"{dtype}-{number}", dtype)
                curves.setdefault(f"detoxd {dtype}", losses)
                seconds[f"detoxd {dtype}"] += times[1:]
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    peer, ours = (min(medians[f"{who} {dtype}"] for dtype in ("f32", "bf16")) for who in ("torch", "detoxd"))
    for name, losses in curves.items():
        print(f"{name:12} {medians[name]:6.2f} s a step; loss", " ".join(f"{loss:.4f}" for loss in losses))
    apart = max(abs(a - b) / abs(a) for a, b in zip(curves["torch f32"], curves["detoxd f32"]))
    print(json.dumps({
        "objective": options.objective, "ratio_f32": round(medians["torch f32"] / medians["detoxd f32"], 2),
        "ratio_bf16": round(medians["torch bf16"] / medians["detoxd bf16"], 2), "ratio_best": round(peer / ours, 2),
        "loss_apart_f32": float(f"{apart:.2g}"), "padded_share": round(peers["f32"].padded, 3),
        "tokens_torch": peers["f32"].tokens, "torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability(),
    }))


def choose(options):
    """Rows of middle length that have enough candidates, cut to the numbers wanted."""
    wanted = (1, 0) if options.objective == "sft" else (options.positives, options.negatives)
    rows = []
    for line in open(options.data, encoding="utf-8"):
        row = json.loads(line)
        positives, negatives = row.get("positives", row.get("neutral")), row.get("negatives", [row.get("toxic")])
        if len(positives) >= wanted[0] and len(negatives) >= wanted[1]:
            rows.append({
                "anchor": row.get("anchor", row.get("toxic")),
                "positives": positives[: wanted[0]], "negatives": negatives[: wanted[1]],
            })
    rows.sort(key=lambda row: len(row["anchor"]))
    count = options.pairs if options.objective == "sft" else options.anchors
    return rows[(len(rows) - count) // 2 :][:count]


class Peer:
    """The same step in PyTorch."""

    def __init__(self, options, sets, dtype, adapter):
        torch.manual_seed(options.seed)
        model = LlamaForCausalLM.from_pretrained(options.model.parent, gguf_file=options.model.name, dtype=torch.float32)
        if adapter.exists():
            self.model = PeftModel.from_pretrained(model, adapter, is_trainable=True).train()
        else:
            lora = LoraConfig(r=16, lora_alpha=32, target_modules=LINEARS, task_type="CAUSAL_LM")
            self.model = get_peft_model(model, lora).train()
            self.model.save_pretrained(adapter)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=RATE, betas=(0.9, 0.99), weight_decay=0.0)
        self.cast = torch.autocast("cpu", dtype=torch.bfloat16) if dtype == "bf16" else nullcontext()
        self.objective = sft if options.objective == "sft" else contrastive
        self.read(options, sets)

    def read(self, options, sets):
        tokenizer = AutoTokenizer.from_pretrained(options.model.parent, gguf_file=options.model.name).backend_tokenizer
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False),
        ])
        tokenizer.encode_special_tokens = True
        rows, self.sets = [], []
        for row in sets:
            prompt = [IM_START, *tokenizer.encode(row["anchor"].strip()).ids, IM_END]
            numbers = {}
            for side in ("positives", "negatives"):
                numbers[side] = range(len(rows), len(rows) + len(row[side]))
                rows += [(prompt, [*tokenizer.encode(text.strip()).ids, IM_END]) for text in row[side]]
            self.sets.append(numbers)
        width = max(len(prompt) + len(target) for prompt, target in rows)
        self.ids = torch.full((len(rows), width), IM_END)
        self.labels = torch.full((len(rows), width), IGNORED)
        self.mask = torch.zeros((len(rows), width), dtype=torch.long)
        for number, (prompt, target) in enumerate(rows):
            end = len(prompt) + len(target)
            self.ids[number, :end] = torch.tensor(prompt + target)
            self.labels[number, len(prompt) : end] = torch.tensor(target)
            self.mask[number, :end] = 1
        self.tokens = int(self.mask.sum())
        self.padded = 1 - self.tokens / self.ids.numel()

    def round(self, steps):
        losses, times = [], []
        for _ in range(steps):
            began = time.perf_counter()
            with self.cast:
                nll, rows = self.likelihoods()
            loss = self.objective(nll, rows, self.sets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            times.append(time.perf_counter() - began)
            losses.append(loss.item())
        return losses, times

    def likelihoods(self):
        """Negative log-likelihoods of the targets, and the row of each."""
        causal = self.model.get_base_model()
        hidden = causal.model(input_ids=self.ids, attention_mask=self.mask).last_hidden_state[:, :-1]
        labels = self.labels[:, 1:]
        wanted = labels != IGNORED
        logits = causal.lm_head(hidden[wanted]).float()
        nll = torch.nn.functional.cross_entropy(logits, labels[wanted], reduction="none")
        return nll, wanted.nonzero()[:, 0]


def sft(nll, _rows, _sets):
    return nll.mean()


def contrastive(nll, rows, sets):
    count = int(rows.max()) + 1
    sums = torch.zeros(count).index_add(0, rows, nll)
    lengths = torch.zeros(count).index_add(0, rows, torch.ones_like(nll))
    phi = sums / lengths
    losses, positive = [], []
    for numbers in sets:
        p, n = phi[list(numbers["positives"])], phi[list(numbers["negatives"])]
        c = p.mean()
        near = torch.logsumexp(-(p - c).abs() / TAU, 0)
        away = torch.where(n - c > MARGIN, torch.full_like(n, -torch.inf), -(n - c) / TAU)
        losses.append(torch.logsumexp(torch.cat([near[None], away]), 0) - near)
        positive += numbers["positives"]
    fine_tuning = sums[positive].sum() / lengths[positive].sum()
    return CP_WEIGHT * torch.stack(losses).mean() + fine_tuning


def detoxd(options, data, adapter, out, dtype):
    counts = ["--num-positives", 1] if options.objective == "sft" else [
        "--num-positives", options.positives, "--num-negatives", options.negatives]
    command = [
        options.binary, "train", "--model", options.model, "--data", data, "--out", out, "--objective", options.objective,
        "--init-adapter", adapter, "--dtype", dtype, "--epochs", options.steps, "--batch-tokens", 65536, "--schedule", "constant",
        "--warmup-steps", 0, "--learning-rate", RATE, "--max-tokens", 1024, "--checkpoint-minutes", 60, *counts,
    ]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    lines = [json.loads(line) for line in (out / "loss.jsonl").read_text().splitlines()]
    ends = [0.0] + [line["seconds"] for line in lines]
    return [line["loss"] for line in lines], [after - before for before, after in zip(ends, ends[1:])]


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="GGUF file of SmolLM2-135M-Instruct")
    parser.add_argument("--data", required=True)
    parser.add_argument("--binary", default="target/release/detoxd")
    parser.add_argument("--objective", choices=["sft", "cp"], default="cp")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--anchors", type=int, default=8)
    parser.add_argument("--positives", type=int, default=2)
    parser.add_argument("--negatives", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


main()
