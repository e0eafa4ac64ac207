"""Records last-position logits of rewrite prompts under a LoRA adapter in f32, by PEFT, in peft.json.

    python record_peft.py MODEL.gguf ADAPTER

The adapter (PEFT folder, all seven linears, r 16) is not part of this repository: the test that reads
the recording (tests/base/peft.rs) wants it in DETOXD_TEST_PEFT_ADAPTER, and checks its SHA-256 first.
"""

import hashlib
import sys
from pathlib import Path

import torch
from reference import load_model, load_tokenizer, prompt, summary, write

torch.set_grad_enabled(False)

SOURCES = [
    "You are an idiot.",
    "what a stupid question, read the manual first",
    "This crap code of yours broke the build again.",
    "I really dislike your new haircut.",
    "Shut up and listen to me for once!",
    "The 3 of you are too dumb to book a table at 19:30.",
    "nobody asked for your silly opinion, go away",
    "Thank you for the lovely evening, it was a pleasure.",
    "Your argument makes no sense at all and you know it, stop wasting our time with this nonsense.",
    "wtf is wrong with this stupid update 😡",
]


def main():
    gguf, adapter = Path(sys.argv[1]), Path(sys.argv[2])
    tokenizer, model = load_tokenizer(gguf), load_model(gguf, adapter)
    rows = []
    for source in SOURCES:
        ids = prompt(tokenizer, source)
        row = {"source": source, "ids": ids}
        for name, scale in [("adapted", 1.0), ("half_strength", 0.5)]:
            with strength(model, scale):
                row[name] = summary(model(torch.tensor([ids])).logits[0, -1])
        with model.disable_adapter():
            row["base"] = summary(model(torch.tensor([ids])).logits[0, -1])
        rows.append(row)
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    sha256 = hashlib.sha256(weights).hexdigest()
    write("peft.json", {"adapter_sha256": sha256, "rows": rows}, "source")


class strength:
    """Scales every LoRA layer for as long as the block runs."""

    def __init__(self, model, scale):
        self.layers = [m for m in model.modules() if hasattr(m, "scale_layer")]
        self.scale = scale

    def __enter__(self):
        for layer in self.layers:
            layer.scale_layer(self.scale)

    def __exit__(self, *_):
        for layer in self.layers:
            layer.unscale_layer()


main()
