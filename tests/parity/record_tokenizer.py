"""Records the ids of odd lines in tokenizer.json, from the `tokenizers` library in Python.

    python record_tokenizer.py MODEL.gguf

`transformers` rebuilds the tokenizer of a GGUF file with the plain GPT-2 rule. SmolLM2 was trained
with every digit cut off first (its published pre-tokenizer is a sequence of individual digits and
byte level; llama.cpp's rule `smollm` says the same), so the rule is put right here. The two differ
where white space stands before a digit: "   1" is one token of three spaces and a digit, not two
spaces, one space and a digit.
"""

import json
import sys
from pathlib import Path

from reference import load_tokenizer

LINES = [
    "", " ", "  ", "   1", "a   1", "    42 is", "\t1\t2", "1\r\n2", "x\r\n\r\ny", "\n\n\n",
    "def f(x):\n    return x**2  # 10\n\n\n", 'for(i=0;i<10;i++){\n\tprintf("%d\\n",i);\n}',
    "3.14159", "1,234,567.89", "v2.0.1-rc3", "½ ² Ⅷ ٣٤٥ १२३ 一二三 ①②", "   ½", "  ٣", "2024年1月5日",
    "你好，世界！这是一个测试。", "こんにちは 世界", "한국어 텍스트", "مرحبا بالعالم 123", "שלום עולם",
    "\u202eRTL override\u202c text", "a\u200bb\u200cc\u200dd\ufeffe",
    "👨\u200d👩\u200d👧\u200d👦 family 👍🏽", "🇩🇪🇫🇷", "é e\u0301 ñ n\u0303", "ＦＵＬＬ　ＷＩＤＴＨ １２３",
    "z͑ͫ̓a̴l̵g̶o̷", "\u00a0nbsp\u00a0 \u00a0", "\u2003em\u2003space", "\x04\x06\x13 control", "\x00nul\x7f",
    "\x1b[31mred", "I'm you're we've they'll he'd it's", "I'M YOU'RE IT'S", "I’m you’re it’s",
    "!!!???...", "a" * 100, " " * 100, "  " * 20 + "x", "ABCdef123ghi456", "snake_case_and-kebab-case",
    "https://example.com/a?b=1&c=%20#frag", "me@example.com", "C:\\path\\to\\frac{1}{2}",
    "<|im_start|>system\nyou<|im_end|>", "<|endoftext|><repo_name>x<file_sep>", "<<|im_end|>>",
    "\U00040000 unassigned", "\U000f0000 private", "\ufffd", "trailing   ", "  two  spaces  ",
    "mixed \t \n \t tabs", "\u0085next\u2028line\u2029para", "1 2  3   4    5", "ß ẞ ŉ ǆ ﬁ",
    "Привет, как дела? 10%", "ไทยไม่มีช่องว่าง", "You are a stupid idiot, what a load of crap!!",
    "u r sooo dumb lol :)) <3",
]


def main():
    tokenizer = load_tokenizer(Path(sys.argv[1]))
    rows = []
    for line in LINES:
        ids = tokenizer.encode(line, add_special_tokens=False).ids
        rows.append({"text": line, "ids": ids, "decoded": tokenizer.decode(ids)})
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "Ġthe"]
    recorded = {
        "vocabulary_size": tokenizer.get_vocab_size(),
        "named": {name: tokenizer.token_to_id(name) for name in names},
        "lines": rows,
    }
    out = Path(__file__).with_name("tokenizer.json")
    body = json.dumps(recorded, ensure_ascii=True).replace('{"text"', '\n{"text"')
    out.write_text(body + "\n")


main()
