#!/usr/bin/env bash
# How assets/adapters/smollm2-135m/default-2 was made from default-1: about an hour on one core without bf16 or AVX-512 (Zen 3), a third of it
# training. The sets it was trained on came from two draws of an earlier form of default-2-sets.py; these commands make sets of the same kinds.
#
#   DATA=folder with detox/train.jsonl, toxicity/train.jsonl and text/comments.neutral.txt
#   OUT=where the runs go
#   PYTHON=a Python with scikit-learn
set -euo pipefail
cd "$(dirname "$0")/.."
: "${DATA:?folder with detox/train.jsonl}" "${OUT:=detoxd-runs}"
cargo build --release
detoxd=${CARGO_TARGET_DIR:-target}/release/detoxd
sets() { "${PYTHON:-python3}" runs/default-2-sets.py "$@"; }
mkdir -p "$OUT"

# 1. Pairs whose human rewrite says it anew, and eight samples of default@1 for each: 872 sets.
sets pairs "$DATA" 900 >"$OUT/pairs.jsonl"
"$detoxd" generate rewrites --adapter default@1 --data "$OUT/pairs.jsonl" --out "$OUT/sampled.jsonl" \
  --limit 900 --samples 8 --in-flight 32

# 2. Harmless sentences, and what default@1 makes of them: 473 of 1,831 it would change. Those are positives of themselves.
sets neutral "$DATA" >"$OUT/neutral.txt"
"$detoxd" rewrite --adapter default@1 --json --always --whole-line --no-verify --candidates 1 \
  <"$OUT/neutral.txt" >"$OUT/neutral.rewritten.jsonl"

# 3. Contrastive perplexity from default@1: 63 steps over 1,345 sets.
sets sets "$OUT/pairs.jsonl" "$OUT/sampled.jsonl" "$OUT/neutral.txt" "$OUT/neutral.rewritten.jsonl" \
  >"$OUT/sets.jsonl"
"$detoxd" train --objective cp --cp-weight 0.5 --init-adapter assets/adapters/smollm2-135m/default-1 --data "$OUT/sets.jsonl" \
  --out "$OUT/default-2" --resume --learning-rate 1.5e-4 --warmup-steps 8 --num-positives 3 --num-negatives 5 --epochs 1
ls "$OUT/default-2/adapter"
