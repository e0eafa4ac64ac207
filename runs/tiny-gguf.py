#!/usr/bin/env python3
"""A Llama checkpoint in Hugging Face layout as one GGUF file, its matrices in Q4_1.

    python3 runs/tiny-gguf.py --model folder --out tiny.Q4_1.gguf --name tiny

Needs gguf and safetensors.
"""
import argparse, json, pathlib
import gguf, numpy
from safetensors.numpy import load_file

NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "model.embed_tokens": "token_embd", "model.norm": "output_norm",
}  # fmt: skip


def pairs_interleaved(weight, heads):
    """Rows of a query or key projection in GGUF's order: the two halves of each rotated head take turns."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def of_another_lattice(weight):
    """Q4_1 blocks with the values that Q4_0 would have. The weights come from a file in Q4_1, and training moved most of them by less than half a step: rounded to the lattice
    they came from, they would be untrained again."""
    blocks = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q4_0).reshape(-1, 18)
    scale = blocks[:, :2].copy().view(numpy.float16)
    least = (scale.astype(numpy.float32) * -8).astype(numpy.float16)
    return numpy.concatenate([blocks[:, :2], least.view(numpy.uint8), blocks[:, 2:]], axis=1).reshape(weight.shape[0], -1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--name", required=True)
    args = parser.parse_args()
    config = json.loads((args.model / "config.json").read_text())
    tokenizer = json.loads((args.model / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(args.out, "llama")
    writer.add_name(args.name)
    writer.add_license("apache-2.0")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_1)
    special = {token["id"] for token in tokenizer["added_tokens"]}
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if number in special else gguf.TokenType.NORMAL for number in range(len(tokens))])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    writer.add_bos_token_id(ids["<|im_start|>"])
    writer.add_eos_token_id(ids["<|im_end|>"])
    for name, weight in load_file(args.model / "model.safetensors").items():
        weight = weight.astype(numpy.float32)
        module, kind = name.removesuffix(".weight"), "weight"
        prefix = ""
        if module.startswith("model.layers."):
            number, module = module.removeprefix("model.layers.").split(".", 1)
            prefix = f"blk.{number}."
        if module == "self_attn.q_proj":
            weight = pairs_interleaved(weight, config["num_attention_heads"])
        if module == "self_attn.k_proj":
            weight = pairs_interleaved(weight, config["num_key_value_heads"])
        name = f"{prefix}{NAMES[module]}.{kind}"
        if weight.ndim == 1:
            writer.add_tensor(name, weight)
        else:
            writer.add_tensor(name, of_another_lattice(weight), raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
