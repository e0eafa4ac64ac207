#!/usr/bin/env python3
"""Cuts a Llama checkpoint down: fewer layers, fewer tokens, the same widths. What `tiny` was trained from.

    python3 runs/tiny-cut.py --model merged --pairs train.jsonl --text comments.txt --layers 10 --tokens 12000 --out cut

Layers: dropped one by one (two while there are many), each time the one without which the rewrites of --pairs get the least unlikely. Tokens: the most frequent in both files, all
that the merges of those need, all bytes, and the special ones. Needs torch, transformers, safetensors.
"""
import argparse, collections, json, pathlib
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def cut_tokenizer(file, texts, keep):
    """The smaller tokenizer's JSON, and for each of its tokens the old id."""
    tokenizer = Tokenizer.from_file(str(file))
    counts = collections.Counter(token for encoding in tokenizer.encode_batch(texts) for token in encoding.tokens)
    description = json.loads(file.read_text())
    model = description["model"]
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    made_of = {left + right: (left, right) for left, right in reversed(pairs)}
    kept = set(SPECIAL) | {token for token in model["vocab"] if token not in made_of and token not in {t["content"] for t in description["added_tokens"]}}

    def parts(token):
        found, todo = set(), [token]
        while todo:
            one = todo.pop()
            if one not in kept and one not in found:
                found.add(one)
                todo.extend(made_of.get(one, ()))
        return found

    for token, _ in counts.most_common():
        more = parts(token) if token in made_of else set()
        if len(kept) + len(more) <= keep:
            kept |= more
    old = sorted((model["vocab"].get(token, tokenizer.token_to_id(token)), token) for token in kept)
    new = {token: number for number, (_, token) in enumerate(old)}
    model["vocab"] = {token: number for token, number in new.items()}
    model["merges"] = [list(pair) for pair in pairs if all(text in new for text in (*pair, "".join(pair)))]
    description["added_tokens"] = [token | {"id": new[token["content"]]} for token in description["added_tokens"] if token["content"] in new]
    covered = sum(count for token, count in counts.items() if token in kept) / counts.total()
    print(f"{len(new)} tokens, {len(model['merges'])} merges, {covered:.4f} of all tokens are kept", flush=True)
    return description, [number for number, _ in old]


def batch_of(tokenizer, pairs):
    """Ids and labels of prompt and rewrite, padded to the right."""
    begin, end = tokenizer.token_to_id("<|im_start|>"), tokenizer.token_to_id("<|im_end|>")
    rows = []
    for source, rewrite in pairs:
        prompt = [begin, *tokenizer.encode(source).ids, end]
        answer = [*tokenizer.encode(rewrite).ids, end]
        rows.append((prompt + answer, [-100] * len(prompt) + answer))
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [end] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows])
    return ids, labels


@torch.no_grad()
def drop_layers(model, ids, labels, keep):
    """Numbers of the layers that stay."""
    inner = model.model
    begun = inner.embed_tokens(ids)
    mask = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)[None, None]
    positions = torch.arange(ids.shape[1])[None]
    rotary = inner.rotary_emb(begun, positions)
    wanted = labels[:, 1:] != -100

    def run(hidden, numbers):
        for number in numbers:
            out = inner.layers[number](hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
            hidden = out[0] if isinstance(out, tuple) else out
        return hidden

    def nll(hidden):
        logits = model.lm_head(inner.norm(hidden[:, :-1][wanted]))
        return torch.nn.functional.cross_entropy(logits, labels[:, 1:][wanted]).item()

    stay = list(range(len(inner.layers)))
    print(f"{len(stay)} layers: {nll(run(begun, stay)):.3f} nats a token", flush=True)
    while len(stay) > keep:
        hidden, losses = begun, []
        for place, number in enumerate(stay):
            losses.append(nll(run(hidden, stay[place + 1 :])))
            hidden = run(hidden, [number])
        least = sorted(range(len(stay)), key=losses.__getitem__)[: 2 if len(stay) > 20 else 1]
        print(f"{len(stay) - len(least)} layers: {losses[least[0]]:.3f} without {[stay[place] for place in least]}", flush=True)
        stay = [number for place, number in enumerate(stay) if place not in least]
    return stay


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "pairs", "text", "out"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=16_000)
    parser.add_argument("--keep-layers", help="numbers with commas between, instead of choosing")
    args = parser.parse_args()
    pairs = [json.loads(line) for line in args.pairs.read_text().splitlines()]
    texts = [text for pair in pairs for text in (pair["toxic"], *pair["neutral"])] + args.text.read_text().splitlines()
    description, old = cut_tokenizer(args.model / "tokenizer.json", texts, args.tokens)

    if args.keep_layers:
        stay = [int(number) for number in args.keep_layers.split(",")]
    else:
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation="eager")
        sample = [(pair["toxic"], pair["neutral"][0]) for pair in pairs[:: len(pairs) // 20] if len(pair["toxic"]) < 80][:8]
        stay = drop_layers(model, *batch_of(Tokenizer.from_file(str(args.model / "tokenizer.json")), sample), args.layers)
    print("layers", stay)

    weights = load_file(args.model / "model.safetensors")
    cut = {"model.norm.weight": weights["model.norm.weight"], "model.embed_tokens.weight": weights["model.embed_tokens.weight"][old].clone()}
    for new, number in enumerate(stay):
        prefix = f"model.layers.{number}."
        cut |= {f"model.layers.{new}.{name.removeprefix(prefix)}": weight for name, weight in weights.items() if name.startswith(prefix)}
    config = json.loads((args.model / "config.json").read_text())
    ids = {token["content"]: token["id"] for token in description["added_tokens"]}
    config |= {"num_hidden_layers": len(stay), "vocab_size": len(old), "eos_token_id": ids["<|im_end|>"], "max_position_embeddings": 1024}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (args.out / "tokenizer.json").write_text(json.dumps(description, ensure_ascii=False) + "\n")
    save_file(cut, args.out / "model.safetensors", {"format": "pt"})
    print(sum(weight.numel() for weight in cut.values()) / 1e6, "million parameters")


if __name__ == "__main__":
    main()
