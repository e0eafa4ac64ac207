"""Records logits and mean NLL of the base model in f32, by transformers, in logits.json.

    python record_logits.py MODEL.gguf
"""

import sys
from pathlib import Path

import torch
from reference import encode, load_model, load_tokenizer, summary, write

torch.set_grad_enabled(False)

TEXTS = [
    "The cat sat on the warm stone wall.",
    "I think you are wrong about this one, but let us talk about it tomorrow.",
    "What a stupid idea, honestly.",
    "please send me the 12 invoices from March 2024 by 5:30pm",
    "Water boils at 100 degrees Celsius at sea level, and at a lower temperature in the mountains.",
    "lol that game last night was sooo bad",
    "def add(a, b):\n    return a + b",
    "She said: \"I won't go there again, it's too far.\"",
    "Nobody here can write a line of code without breaking three others.",
    "The train to Zürich leaves from platform 7 in 4 minutes.",
    "Read https://example.com/guide?page=2 before you ask.",
    "你好，世界",
    "He's a bit of an idiot when he is tired, though he means well.",
    "In 1969 two people walked on the Moon while a third one stayed in orbit.",
    "thanks!!! 👍🏽 see u there",
    "    indented   text with   odd spaces",
    "A committee of experts reviewed the proposal for eleven months and then, without saying why, "
    "asked the authors to begin again from the first page.",
    "Your crap code broke the build again, fix it now.",
    "Once upon a time there was a small dragon that was afraid of fire, of heights and of knights.",
    "ok",
]


def main():
    gguf = Path(sys.argv[1])
    tokenizer, model = load_tokenizer(gguf), load_model(gguf)
    rows = []
    for text in TEXTS:
        ids = encode(tokenizer, text)
        logits = model(torch.tensor([ids])).logits[0]
        targets = torch.tensor(ids[1:], dtype=torch.long)
        nll = torch.nn.functional.cross_entropy(logits[:-1], targets)
        positions = sorted({0, len(ids) // 2, len(ids) - 1})
        rows.append({
            "text": text,
            "ids": ids,
            # Of tokens 2..n given those before; nothing stands before the first. Null for one token.
            "mean_nll": nll.item() if len(ids) > 1 else None,
            "positions": [{"at": p, **summary(logits[p])} for p in positions],
        })
    write("logits.json", {"rows": rows}, "text")


main()
