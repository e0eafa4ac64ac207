#!/usr/bin/env bash
# How assets/models/tiny and assets/adapters/tiny/tiny-1 were made from smollm2-135m and default@2: about an hour and a half on two cores.
# The data came from an earlier form of tiny-data.py; these commands make data of the same kinds and sizes.
#
#   DATA=folder with detox/train.jsonl, text/comments.neutral.txt, text/reddit.txt.zst and lexicon.txt
#   SETS=the sets of default@2 (runs/default-2.sh: sets.jsonl); SAMPLED=its samples of default@1 (sampled.jsonl)
#   OUT=where the runs go
#   PYTHON=a Python with torch, transformers, safetensors and gguf
set -euo pipefail
cd "$(dirname "$0")/.."
: "${DATA:?folder with detox/train.jsonl}" "${SETS:?}" "${SAMPLED:?}" "${OUT:=detoxd-runs}" "${PYTHON:=python3}"
cargo build --release
detoxd=${CARGO_TARGET_DIR:-target}/release/detoxd
mkdir -p "$OUT"
train() { "$detoxd" train "$@" --resume --batch-tokens 1024 --max-tokens 256; }

# 1. The rewriter as one checkpoint; ten of its thirty layers and 16,000 of its 49,152 tokens.
"$detoxd" model merge --model smollm2-135m --adapter assets/adapters/smollm2-135m/default-2 --out "$OUT/teacher"
{ zstd -dc "$DATA/text/reddit.txt.zst" || true; } | awk 'NR % 60 == 0' | head -30000 >"$OUT/paragraphs.txt"
{ head -5000 "$DATA/text/comments.neutral.txt"; cat "$OUT/paragraphs.txt"; } >"$OUT/text.txt"
"$PYTHON" runs/tiny-cut.py --model "$OUT/teacher" --pairs "$DATA/detox/train.jsonl" --text "$OUT/text.txt" --out "$OUT/cut"

# 2. Every weight trained until it copies again. What is shipped was stopped at step 110 of a cosine that had hardly begun to fall.
"$PYTHON" runs/tiny-data.py heal --pairs "$DATA/detox/train.jsonl" --text "$OUT/paragraphs.txt" --lexicon "$DATA/lexicon.txt" --out "$OUT/heal.jsonl"
train --new-model "$OUT/cut" --data "$OUT/heal.jsonl" --out "$OUT/healed" --objective sft --num-positives 1 \
  --schedule constant --learning-rate 6e-4 --warmup-steps 40 --max-steps 110 --save-dtype f32

# 3. Distilled from accepted rewrites.
"$PYTHON" runs/tiny-data.py distil --pairs "$OUT/heal.jsonl" --sets "$SETS" --sets "$SAMPLED" --out "$OUT/distil.jsonl"
train --new-model "$OUT/healed/model" --data "$OUT/distil.jsonl" --out "$OUT/distilled" --objective sft --num-positives 1 \
  --learning-rate 6e-4 --warmup-steps 5 --max-steps 220 --save-dtype f32
"$PYTHON" runs/tiny-gguf.py --model "$OUT/distilled/model" --out "$OUT/tiny.Q4_1.gguf" --name tiny

# 4. A small adapter on the quantised model by contrastive perplexity.
train --model "$OUT/tiny.Q4_1.gguf" --base-name tiny --data "$SETS" --out "$OUT/tiny-1" --objective cp --cp-weight 0.25 \
  --lora-rank 8 --lora-alpha 16 --learning-rate 2e-4 --warmup-steps 5 --max-steps 40 --num-positives 3 --num-negatives 5
ls "$OUT/tiny.Q4_1.gguf" "$OUT/tiny-1/adapter"
