"""Peak memory and time of training steps over dense and 4-bit weights, on a Llama with random weights.

    python benches/four_bit_memory.py WORK_FOLDER [path of the detoxd binary]

Writes the model (373M parameters, bf16, once), then runs `detoxd train` for a few steps under each type of weights and reads the
high-water mark of its memory (VmHWM) while it runs. The mark when the weights are there, before the first step, is printed too. Needs PyTorch and
transformers for the first part only, Linux for the second.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
STEPS, BATCH_TOKENS = 3, 512
KINDS = {
    "dense f32": ["--dtype", "f32"],
    "dense bf16": ["--dtype", "bf16"],
    "q4_k": ["--quantize", "q4_k"],
    "nf4": ["--quantize", "nf4"],
    "nf4, activations computed again": ["--quantize", "nf4", "--checkpoint-activations"],
}


def main(work, binary):
    model = work / "llama-373m"
    if not (model / "config.json").exists():
        write_model(model)
    data = work / "data.jsonl"
    source = "You are an idiot and this is a stupid idea, honestly. " * 4
    row = {"toxic": source, "neutral": ["I do not agree with you and I do not like this idea, honestly. " * 4]}
    data.write_text((json.dumps(row) + "\n") * 64)
    for kind, arguments in KINDS.items():
        mark, report = run(work, binary, model, data, arguments)
        print(
            f"{kind:32} peak {mark['peak'] / 2**20:6.2f} GiB, after loading {mark['loaded'] / 2**20:6.2f} GiB, "
            f"{report['tokens']} tokens a step, {report['seconds'] / STEPS:6.1f} s a step, loss {report['loss']:.5f}"
        )


def write_model(folder):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=24, num_attention_heads=16,
        num_key_value_heads=16, max_position_embeddings=2048, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    torch.manual_seed(1)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    print(sum(p.numel() for p in model.parameters()), "parameters")
    model.save_pretrained(folder)
    shutil.copy(ROOT / "tests/fixtures/llama-tiny/tied/tokenizer.json", folder / "tokenizer.json")


def run(work, binary, model, data, arguments):
    out = work / "run"
    shutil.rmtree(out, ignore_errors=True)
    command = [
        binary, "train", "--model", model, "--data", data, "--out", out, "--objective", "sft", "--max-steps", STEPS,
        "--batch-tokens", BATCH_TOKENS, "--warmup-steps", 0, "--max-tokens", 512, *arguments,
    ]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    mark = {"peak": 0, "loaded": 0}
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        if "VmHWM" in status:
            value = int(status.split("VmHWM:")[1].split()[0])
            mark["peak"] = max(mark["peak"], value)
            # The log is opened when the weights are there.
            if not (out / "loss.jsonl").exists():
                mark["loaded"] = value
        time.sleep(0.02)
    if process.wait() != 0:
        sys.exit(process.stderr.read())
    lines = (out / "loss.jsonl").read_text().splitlines()
    return mark, json.loads(lines[-1])


main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ROOT / "target/release/detoxd")
