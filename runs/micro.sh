#!/usr/bin/env bash
# How tests/fixtures/micro was made: a model of 0.5 million parameters for tests, trained from nothing on sentences that a program
# writes. Two minutes on two cores. PYTHON needs `tokenizers`.
set -euo pipefail
: "${PYTHON:=python3}" "${OUT:=detoxd-runs/micro}"
fixtures=tests/fixtures
cargo build --release
detoxd=${CARGO_TARGET_DIR:-target}/release/detoxd
mkdir -p "$OUT"

"$PYTHON" "$fixtures/make_micro_data.py" "$OUT"
"$PYTHON" "$fixtures/make_micro_config.py" "$OUT/tokenizer.txt" "$OUT/config"

# Every weight, from a random start: 846 steps.
"$detoxd" train --new-model "$OUT/config" --data "$OUT/sft.jsonl" --out "$OUT/run" --resume --objective sft \
  --learning-rate 2e-3 --epochs 6 --batch-tokens 4096 --warmup-steps 50 --num-positives 1

# A small adapter on it by contrastive perplexity: 46 steps.
"$detoxd" train --model "$OUT/run/model" --data "$OUT/cp.jsonl" --out "$OUT/lora" --resume --objective cp --cp-weight 0.25 \
  --lora-rank 4 --lora-alpha 8 --learning-rate 1e-3 --max-steps 80 --batch-tokens 4096

mkdir -p "$fixtures/micro/adapter"
cp "$OUT/run/model/"* "$fixtures/micro/"
cp "$OUT/lora/adapter/"* "$fixtures/micro/adapter/"

# How many held-out rewrites are right to the byte: 285 of 300.
"$PYTHON" -c 'import json,sys; [print(json.loads(line)["toxic"]) for line in open(sys.argv[1])]' "$OUT/held_out.jsonl" |
  "$detoxd" rewrite --model "$fixtures/micro" --adapter "$fixtures/micro/adapter" --no-verify --always --whole-line \
    --candidates 1 >"$OUT/outputs.txt"
"$PYTHON" "$fixtures/compare_micro.py" "$OUT/held_out.jsonl" "$OUT/outputs.txt"
