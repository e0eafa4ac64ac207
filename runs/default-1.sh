#!/usr/bin/env bash
# How assets/adapters/smollm2-135m/default-1 was made. About 40 minutes on two cores with bf16 dot products.
# DATA holds detox/train.jsonl: {"toxic", "neutral": [...]} a line (ParaDetox and APPDIA; see the model card).
set -euo pipefail
: "${DATA:?folder with detox/train.jsonl}" "${OUT:=detoxd-runs}"
detoxd() { cargo run --release --quiet -- "$@"; }

detoxd model pull smollm2-135m

# 1. Supervised: every (toxic, neutral) pair, twice.
detoxd train --objective sft --data "$DATA/detox/train.jsonl" --out "$OUT/sft" --resume \
    --learning-rate 8e-4 --epochs 2
