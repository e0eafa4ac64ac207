"""What the recording programs share: the model of a GGUF file as transformers reads it, in f32."""

import json
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, LlamaForCausalLM

IM_START, IM_END = 1, 2


def load_tokenizer(gguf):
    """SmolLM2's tokenizer with the rule it was trained with: individual digits first. transformers
    rebuilds it from a GGUF file with the plain GPT-2 rule. Control tokens in text stay text."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).backend_tokenizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
    ])
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def prompt(tokenizer, source):
    return [IM_START, *encode(tokenizer, source), IM_END]


def load_model(gguf, adapter=None):
    model = LlamaForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    return model.eval()


def summary(logits):
    """The 20 largest logits and 50 at a fixed stride, enough to pin a row of the vocabulary."""
    top = torch.topk(logits, 20)
    strided = torch.arange(50) * (len(logits) // 50)
    return {
        "top": {"ids": top.indices.tolist(), "logits": rounded(top.values)},
        "strided": {"stride": len(logits) // 50, "logits": rounded(logits[strided])},
    }


def rounded(tensor):
    """Nine significant digits: every float32 exactly."""
    return [float(f"{v:.9g}") for v in tensor.flatten().tolist()]


def write(name, value, row_key):
    """JSON with one row a line, beside this file."""
    body = json.dumps(value).replace('{"' + row_key + '"', '\n{"' + row_key + '"')
    Path(__file__).with_name(name).write_text(body + "\n")
