"""Decoding speed beside llama.cpp and transformers: the same model, the same machine.

    python benches/peers.py make SMOLLM2.gguf FOLDER     # writes smollm2-q8_0.gguf, random-500m-q4_1.gguf, random-500m-q8_0.gguf
    python benches/peers.py decode FILE.gguf … [--batch 1 8] --bench target/release/deps/decode-…
    python benches/peers.py shape 7b --device cuda:0 [--batch 1 32 256] [--bench target/release/deps/decode-…]
    python benches/peers.py lora assets/adapters/smollm2-135m/default-1 SMOLLM2.gguf FOLDER/default-1.gguf
    python benches/peers.py rewrite SMOLLM2.gguf --adapter assets/adapters/smollm2-135m/default-1 --lora FOLDER/default-1.gguf --texts valid.jsonl

`decode` goes turn by turn. `shape` takes random weights in the shape of a model (benches/shapes.json), in bf16 on one GPU, beside transformers only, one program after the
other since both may not fit beside each other; with one sequence it also says what share of the speed at which the card copies memory reading the weights comes to. Without
--bench it builds the bench first, for GPUs if --device is one. `shape tiny --device cpu` shows that it runs.

Each program reads prompts of 16 tokens and decodes --tokens more, greedily, --batch sequences at once; reading the prompts is not counted.
llama.cpp (llama-cpp-python) is driven through its C interface, a batch a step; transformers by `generate`, its weights dequantised to f32 and
to bf16. `rewrite` writes rewrites of sentences, greedily, one at a time: detoxd with its drafts from the source (and 64 at once), llama.cpp with drafts of n-grams
that it has seen (prompt lookup), of which the best of n 1 to 3 and m 8 and 16 on the first twenty sentences is taken, and with none; the adapter beside the quantised
weights in both, `lora` converts it. Tokens a second are those of the rewrites, reading the prompts included; loading is not. `same` is the share of sentences to which both give the
same letters and digits (detoxd mends case and punctuation afterwards): speeds of programs that write different things say little. (The adapter merged into the weights and quantised again to Q4_1 no longer rewrites.) Medians over --rounds turns; of threads and types each program's best. Needs llama-cpp-python, torch, transformers, gguf.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

PROMPT = 16


def prompts(batch, vocabulary):
    ids = (1000 + np.arange(batch * PROMPT) * 37) % vocabulary
    return ids.reshape(batch, PROMPT)


class LlamaCpp:
    def __init__(self, path, batch, tokens, threads):
        import llama_cpp

        self.lib = llama_cpp
        llama_cpp.llama_backend_init()
        silent = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(silent, ctypes.c_void_p())
        self.silent = silent
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = (PROMPT + tokens + 8) * batch
        params.n_batch = params.n_ubatch = max(512, batch * PROMPT)
        params.n_seq_max = batch
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(vocab)
        self.batch, self.tokens = batch, tokens
        self.slots = llama_cpp.llama_batch_init(batch * PROMPT, 0, batch)

    def step(self, rows):
        """Rows are (token, position, sequence, is wanted); returns the likeliest token of each wanted one."""
        slots = self.slots
        slots.n_tokens = len(rows)
        for index, (token, position, sequence, wanted) in enumerate(rows):
            slots.token[index], slots.pos[index] = token, position
            slots.n_seq_id[index], slots.seq_id[index][0], slots.logits[index] = 1, sequence, wanted
        if self.lib.llama_decode(self.context, slots):
            raise SystemExit("llama_decode failed")
        return [
            int(np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.context, index), (self.vocabulary,)).argmax())
            for index, row in enumerate(rows) if row[3]
        ]

    def run(self):
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        ids = prompts(self.batch, self.vocabulary)
        rows = [(int(ids[s, p]), p, s, p == PROMPT - 1) for s in range(self.batch) for p in range(PROMPT)]
        last = self.step(rows)
        began = time.perf_counter()
        for position in range(PROMPT, PROMPT + self.tokens):
            last = self.step([(token, position, s, True) for s, token in enumerate(last)])
        return self.batch * self.tokens / (time.perf_counter() - began)


class Transformers:
    def __init__(self, path, batch, tokens, dtype):
        import torch
        from transformers import LlamaForCausalLM

        self.torch = torch
        torch.set_num_threads(os.cpu_count())
        self.model = LlamaForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=getattr(torch, dtype)).eval()
        self.batch, self.tokens = batch, tokens

    @classmethod
    def of_shape(cls, config, device, batch, tokens, dtype):
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        self = cls.__new__(cls)
        self.torch, self.batch, self.tokens = torch, batch, tokens
        torch.set_default_dtype(getattr(torch, dtype))
        with torch.device(device):
            self.model = LlamaForCausalLM(LlamaConfig(**config)).eval()
        torch.set_default_dtype(torch.float32)
        return self

    def run(self):
        ids = self.torch.tensor(prompts(self.batch, self.model.config.vocab_size), device=self.model.device)
        seconds = []
        for new in (1, 1 + self.tokens):
            began = time.perf_counter()
            with self.torch.no_grad():
                self.model.generate(
                    ids, attention_mask=self.torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False,
                    pad_token_id=0,
                ).cpu()  # waits for a GPU
            seconds.append(time.perf_counter() - began)
        return self.batch * self.tokens / (seconds[1] - seconds[0])


class Detoxd:
    def __init__(self, path, batch, tokens, bench, threads):
        self.command = [bench, path, "--batch", batch, "--tokens", tokens, "--runs", 1, "--threads", threads, "--alone"]

    def run(self):
        done = subprocess.run([str(part) for part in self.command], capture_output=True, text=True, check=True)
        return statistics.median(json.loads(done.stdout.splitlines()[-1])["tokens_per_second"])


class Lookup(LlamaCpp):
    """Greedy rewriting with drafts: what followed the last n tokens when they were seen before."""

    END = 2

    def __init__(self, path, threads, lora):
        super().__init__(path, 1, 1024, threads)
        if lora:
            adapter = self.lib.llama_adapter_lora_init(self.model, str(lora).encode())
            adapters = (self.lib.llama_adapter_lora_p_ctypes * 1)(adapter)
            if self.lib.llama_set_adapters_lora(self.context, adapters, 1, (ctypes.c_float * 1)(1.0)):
                sys.exit(f"llama.cpp does not take {lora}")
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        self.slots = self.lib.llama_batch_init(1024, 0, 1)

    def tokenize(self, text):
        data = text.encode()
        ids = (self.lib.llama_token * (len(data) + 8))()
        count = self.lib.llama_tokenize(self.vocab, data, len(data), ids, len(ids), False, False)
        return list(ids[:count])

    def text(self, ids):
        written, piece = b"", ctypes.create_string_buffer(256)
        for token in ids:
            length = self.lib.llama_token_to_piece(self.vocab, token, piece, len(piece), 0, False)
            written += piece.raw[:length]
        return written.decode(errors="replace").strip()

    def rewrite(self, source, n, m):
        memory = self.lib.llama_get_memory(self.context)
        self.lib.llama_memory_clear(memory, True)
        sequence = [1, *source, 2]
        prompt, limit = len(sequence), len(sequence) + len(source) + len(source) // 2 + 8
        [token] = self.step([(t, p, 0, p == prompt - 1) for p, t in enumerate(sequence)])
        while True:
            sequence.append(token)
            if token == self.END or len(sequence) >= limit:
                return sequence[prompt:]
            draft = self.draft(sequence, n, min(m, limit - len(sequence))) if m else []
            first = len(sequence) - 1
            answers = self.step([(t, first + k, 0, True) for k, t in enumerate([token, *draft])])
            for proposed, answer in zip(draft, answers):
                if proposed != answer or answer == self.END:
                    break
                sequence.append(answer)
            token = answers[len(sequence) - 1 - first]
            self.lib.llama_memory_seq_rm(memory, 0, len(sequence), -1)

    @staticmethod
    def draft(sequence, most, length):
        for n in range(min(most, len(sequence) - 1), 0, -1):
            tail = sequence[-n:]
            for start in range(len(sequence) - n - 1, -1, -1):
                if sequence[start : start + n] == tail:
                    return sequence[start + n : start + n + length]
        return []

    def speed(self, sources, n, m):
        began, tokens = time.perf_counter(), 0
        for source in sources:
            tokens += len(self.rewrite(source, n, m))
        return tokens / (time.perf_counter() - began)


def rewrite(options):
    texts = [json.loads(line)["toxic"].strip() for line in open(options.texts, encoding="utf-8")][: options.first]
    lines = "".join(text.replace("\n", " ") + "\n" for text in texts)
    command = [options.detoxd, "rewrite", "--model", options.file, "--adapter", options.adapter, "--no-verify", "--always", "--whole-line",
               "--candidates", "1", "--json"]

    def ours(lines, *more):
        began = time.perf_counter()
        done = subprocess.run([str(p) for p in [*command, *more]], input=lines, capture_output=True, text=True, check=True)
        results = [json.loads(line) for line in done.stdout.splitlines()]
        tokens = sum(result["usage"]["completion_tokens"] for result in results)
        return time.perf_counter() - began, tokens, [result["text"] for result in results]

    peers = {threads: Lookup(options.file, threads, options.lora) for threads in sorted({1, os.cpu_count()})}
    sources = [next(iter(peers.values())).tokenize(text) for text in texts]
    tuned = max(
        ((peer.speed(sources[:20], n, m), threads, n, m) for threads, peer in peers.items() for n in (1, 2, 3) for m in (8, 16)),
    )
    _, threads, n, m = tuned
    plain_threads = max(peers, key=lambda threads: peers[threads].speed(sources[:20], 1, 0))
    speeds = {}
    alone = ["--in-flight", "1"]
    ways = {"detoxd": alone, "detoxd, no drafts": [*alone, "--draft-tokens", "0"], "detoxd, 64 at once": ["--in-flight", "64"]}
    for _ in range(options.rounds):
        for name, more in ways.items():
            load, *_ = ours(texts[0] + "\n", *more)
            took, tokens, written = ours(lines, *more)
            speeds.setdefault(name, []).append(tokens / (took - load))
        speeds.setdefault(f"llama.cpp, n-grams of {n}, drafts of {m}", []).append(peers[threads].speed(sources, n, m))
        speeds.setdefault("llama.cpp", []).append(peers[plain_threads].speed(sources, 1, 0))
    theirs = [peers[threads].text(peers[threads].rewrite(source, n, m)) for source in sources]

    def letters(text):
        return [letter for letter in text.lower() if letter.isalnum()]

    same = sum(letters(a) == letters(b) for a, b in zip(written, theirs)) / len(texts)
    medians = {name: round(statistics.median(of), 1) for name, of in speeds.items()}
    others = {name: speed for name, speed in medians.items() if name not in ways}
    ratios = {f"{way} to {name}": round(medians[way] / speed, 2) for way in ways for name, speed in others.items()}
    print(json.dumps({"file": options.file.name, "sentences": len(texts), "same": round(same, 2), "tokens_per_second": medians, "ratios": ratios}))


def writer(path, source, changed=None):
    """A GGUF file with the metadata of another one."""
    from gguf import GGUFWriter

    out = GGUFWriter(path, "llama")
    for field in source.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            value = (changed or {}).get(field.name, field.contents())
            out.add_key_value(field.name, value, field.types[0], field.types[-1] if len(field.types) > 1 else None)
    return out


def add(out, name, values, kind):
    """Vectors stay in f32."""
    from gguf import quants

    if values.ndim == 1:
        out.add_tensor(name, values.astype(np.float32))
    else:
        out.add_tensor(name, quants.quantize(values.astype(np.float32), kind), raw_dtype=kind)


def close(out):
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def lora(options):
    """A PEFT adapter as llama.cpp reads it."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter
    from safetensors import safe_open

    config = json.loads((options.adapter / "adapter_config.json").read_text())
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    fields = GGUFReader(options.source).fields
    heads = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}
    out = GGUFWriter(options.out, "llama")
    out.add_string("general.type", "adapter")
    out.add_string("adapter.type", "lora")
    out.add_key_value("adapter.lora.alpha", float(config["lora_alpha"]), GGUFValueType.FLOAT32)
    with safe_open(options.adapter / "adapter_model.safetensors", "np") as file:
        for name in file.keys():
            layer, *module, matrix, _ = name.removeprefix("base_model.model.model.layers.").split(".")
            values, projection = file.get_tensor(name), names[".".join(module)]
            if matrix == "lora_B" and projection in heads:
                count, rows = int(fields[heads[projection]].contents()), values.shape[0]
                values = values.reshape(count, 2, rows // count // 2, -1).swapaxes(1, 2).reshape(rows, -1)
            out.add_tensor(f"blk.{layer}.{projection}.weight.{matrix.lower()}", np.ascontiguousarray(values, options.dtype))
    close(out)


def decode(options):
    for path in options.files:
        for batch in options.batch:
            contenders = {}
            for threads in sorted({1, os.cpu_count()}):
                contenders[f"detoxd, {threads} threads"] = Detoxd(path, batch, options.tokens, options.bench, threads)
                contenders[f"llama.cpp, {threads} threads"] = LlamaCpp(path, batch, options.tokens, threads)
            if not options.no_transformers:
                for dtype in ("float32", "bfloat16"):
                    contenders[f"transformers, {dtype}"] = Transformers(path, batch, options.tokens, dtype)
            speeds = {name: [] for name in contenders}
            for turn in range(options.rounds + 1):
                for name, contender in contenders.items():
                    speed = contender.run()
                    if turn:  # the first turn warms up
                        speeds[name].append(speed)
            medians = {name: round(statistics.median(of), 1) for name, of in speeds.items()}
            best = {}
            for name, speed in medians.items():
                program = name.split(",")[0]
                best[program] = max(best.get(program, 0), speed)
            ratios = {f"to {name}": round(best["detoxd"] / speed, 2) for name, speed in best.items() if name != "detoxd"}
            print(json.dumps({"file": path.name, "batch": batch, "tokens_per_second": medians, "ratios": ratios}), flush=True)


def built(device):
    """The executable of benches/decode.rs."""
    command = ["cargo", "bench", "--bench", "decode", "--no-run", "--message-format", "json"]
    if device != "cpu":
        command += ["--features", "cuda"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    return next(m["executable"] for m in messages if m.get("target", {}).get("name") == "decode" and m.get("executable"))


def shape(options):
    config = json.loads(Path(__file__).with_name("shapes.json").read_text())[options.shape]
    bench = options.bench or built(options.device)
    for batch in options.batch:
        command = [bench, "--shape", options.shape, "--device", options.device, "--dtype", options.dtype.replace("bfloat16", "bf16").replace("float", "f"),
                   "--batch", batch, "--tokens", options.tokens, "--runs", options.rounds]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
        ours = json.loads(done.stdout.splitlines()[-1])
        speeds = {"detoxd": ours["tokens_per_second"]}
        if not options.no_transformers:
            peer = Transformers.of_shape({k: v for k, v in config.items() if k != "model_type"}, options.device, batch, options.tokens, options.dtype)
            speeds["transformers"] = [peer.run() for _ in range(options.rounds + 1)][1:]
            del peer
            if options.device != "cpu":
                import torch

                torch.cuda.empty_cache()
        medians = {name: round(statistics.median(of), 1) for name, of in speeds.items()}
        report = {"shape": options.shape, "device": options.device, "dtype": options.dtype, "batch": batch, "tokens_per_second": medians}
        if "transformers" in medians:
            report["ratio"] = round(medians["detoxd"] / medians["transformers"], 2)
        if batch == 1:
            report["share_of_bandwidth"] = round(ours["share_of_bandwidth"], 3)
            report["gigabytes_copied_per_second"] = round(ours["bytes_copied_per_second"] / 1e9)
        print(json.dumps(report), flush=True)


def make(options):
    from gguf import GGMLQuantizationType as Q, GGUFReader, quants

    options.folder.mkdir(parents=True, exist_ok=True)
    source = GGUFReader(options.source)
    out = writer(options.folder / "smollm2-q8_0.gguf", source)
    for tensor in source.tensors:
        add(out, tensor.name, quants.dequantize(tensor.data, tensor.tensor_type), Q.Q8_0)
    close(out)

    hidden, inner, layers, heads, kv_heads, vocabulary = 1280, 3456, 25, 20, 5, 49152
    sizes = {
        "llama.embedding_length": hidden, "llama.feed_forward_length": inner, "llama.block_count": layers,
        "llama.attention.head_count": heads, "llama.attention.head_count_kv": kv_heads, "llama.rope.dimension_count": hidden // heads,
    }
    for kind in (Q.Q4_1, Q.Q8_0):
        random = np.random.default_rng(1)
        out = writer(options.folder / f"random-500m-{kind.name.lower()}.gguf", source, sizes)
        matrix = lambda rows, columns: random.standard_normal((rows, columns), dtype=np.float32) / columns**0.5
        add(out, "token_embd.weight", matrix(vocabulary, hidden), Q.Q8_0)
        add(out, "output_norm.weight", np.ones(hidden), Q.F32)
        count = vocabulary * hidden
        for layer in range(layers):
            shapes = {
                "attn_q": (hidden, hidden), "attn_k": (hidden // heads * kv_heads, hidden), "attn_v": (hidden // heads * kv_heads, hidden),
                "attn_output": (hidden, hidden), "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner),
            }
            for name, shape in shapes.items():
                add(out, f"blk.{layer}.{name}.weight", matrix(*shape), kind)
                count += shape[0] * shape[1]
            for name in ("attn_norm", "ffn_norm"):
                add(out, f"blk.{layer}.{name}.weight", np.ones(hidden), Q.F32)
        close(out)
        print(kind.name, count, "parameters in matrices")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    making = commands.add_parser("make")
    making.add_argument("source", type=Path)
    making.add_argument("folder", type=Path)
    making.set_defaults(run=make)
    decoding = commands.add_parser("decode")
    decoding.add_argument("files", type=Path, nargs="+")
    decoding.add_argument("--bench", type=Path, required=True, help="the executable of benches/decode.rs")
    decoding.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    decoding.add_argument("--tokens", type=int, default=64)
    decoding.add_argument("--rounds", type=int, default=5)
    decoding.add_argument("--no-transformers", action="store_true")
    decoding.set_defaults(run=decode)
    shaped = commands.add_parser("shape")
    shaped.add_argument("shape")
    shaped.add_argument("--device", default="cuda:0")
    shaped.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    shaped.add_argument("--bench", type=Path, help="the executable of benches/decode.rs")
    shaped.add_argument("--batch", type=int, nargs="+", default=[1, 32, 256])
    shaped.add_argument("--tokens", type=int, default=64)
    shaped.add_argument("--rounds", type=int, default=3)
    shaped.add_argument("--no-transformers", action="store_true")
    shaped.set_defaults(run=shape)
    converting = commands.add_parser("lora")
    for name in ("adapter", "source", "out"):
        converting.add_argument(name, type=Path)
    converting.add_argument("--dtype", default="float32", choices=["float16", "float32"])
    converting.set_defaults(run=lora)
    rewriting = commands.add_parser("rewrite")
    rewriting.add_argument("file", type=Path)
    rewriting.add_argument("--adapter", type=Path, required=True, help="folder in PEFT's layout")
    rewriting.add_argument("--lora", type=Path, required=True, help="the same for llama.cpp, by `lora`")
    rewriting.add_argument("--texts", type=Path, required=True, help='JSON lines with "toxic"')
    rewriting.add_argument("--first", type=int, default=200)
    rewriting.add_argument("--rounds", type=int, default=5)
    rewriting.add_argument("--detoxd", type=Path, default="target/release/detoxd")
    rewriting.set_defaults(run=rewrite)
    options = parser.parse_args()
    options.run(options)


sys.exit(main())
