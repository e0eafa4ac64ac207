#!/usr/bin/env bash
# Trains the toxicity and similarity scorers in assets/toxicity-scorer and measures them. Two minutes on two cores.
#
#   DATA    folder with toxicity/, detox/, text/ and lexicon.txt
#   MINILM  folder of all-MiniLM-L6-v2 for sentence-transformers; without it the similarity scorer isn't trained
#   PYTHON  a Python with sentence-transformers
#   OUTPUTS JSON lines of a rewriter on detox/valid.jsonl, {"toxic", any name: output}: further held-out pairs
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${DATA:?a folder of data}
OUT=${OUT:-assets/toxicity-scorer}
WORK=$(mktemp -d)
trap 'rm -r "$WORK"' EXIT

# One paragraph in twelve is more than enough background.
{ zstd -dc "$DATA/text/reddit.txt.zst" || true; } | awk 'NR % 12 == 0' | head -150000 > "$WORK/background.txt"

cargo build --release
detoxd=${CARGO_TARGET_DIR:-target}/release/detoxd
"$detoxd" scorer train --data "$DATA" --background "$WORK/background.txt" --out "$OUT"
"$detoxd" scorer evaluate --data "$DATA" --scorer "$OUT" | tee "$OUT/evaluation.json"

if [ -n "${MINILM:-}" ]; then
    "${PYTHON:-python3}" runs/similarity-pairs.py "$DATA" "$MINILM" "$WORK" ${OUTPUTS:+"$OUTPUTS"}
    "$detoxd" scorer train-similarity --data "$DATA" --background "$WORK/background.txt" --out "$OUT" \
        --pairs "$WORK/pairs.train.jsonl" --held-out "$WORK/pairs.valid.jsonl" | tee "$OUT/similarity-evaluation.json"
fi
