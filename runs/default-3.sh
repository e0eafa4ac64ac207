#!/usr/bin/env bash
# How assets/adapters/smollm2-135m/default-3 was made from default-2: rejection sampling in two rounds, each followed by contrastive perplexity on
# the best and worst of what was sampled; the mean of both rounds. Some 45 minutes on two cores with bf16 dot products, half of them sampling. The sentences of the adapter that is shipped came
# from draws of an earlier form of these scripts; these commands make sets of the same kinds.
#
#   DATA=folder with detox/{train,valid}.jsonl, toxicity/{train,valid}.jsonl and text/comments.neutral.txt
#   JUDGEMENTS, MINILM: see people.py
#   OUT=where the runs go
#   PYTHON=a Python with scikit-learn and sentence-transformers
set -euo pipefail
cd "$(dirname "$0")/.."
: "${DATA:?folder with detox/train.jsonl}" "${JUDGEMENTS:?folder with SYSTEM/English.tsv}" "${OUT:=detoxd-runs}"
export DATA JUDGEMENTS SERVICE=127.0.0.1:8091
cargo build --release
detoxd=${CARGO_TARGET_DIR:-target}/release/detoxd
python() { "${PYTHON:-python3}" "$@"; }
mkdir -p "$OUT"

# Likelihoods under the base model, for people.py.
"$detoxd" serve --listen "$SERVICE" --data-dir "$OUT/service" &
service=$!
trap 'kill "$service"' EXIT

# Harmless sentences, which are their own rewrites: 300 a round.
python runs/default-2-sets.py neutral "$DATA" | shuf -n 600 --random-source=<(yes) >"$OUT/harmless.txt"
split --lines 300 --numeric-suffixes=1 --suffix-length 1 "$OUT/harmless.txt" "$OUT/harmless-"

# A round: twelve candidates a sentence; the best by predicted judgement, of these and the human rewrites, are the positives.
round() { # number, posts, sources of ParaDetox, adapter, learning rate
  local run=$OUT/round-$1
  python runs/default-3-sources.py "$1" "$2" "$3" >"$run.txt"
  "$detoxd" rewrite --json --explain --always --whole-line --candidates 12 --adapter "$4" <"$run.txt" >"$run.explained.jsonl"
  python runs/people.py sets "$run.txt" "$run.explained.jsonl" "$OUT/harmless-$1" >"$run.sets.jsonl"
  "$detoxd" train --objective cp --cp-weight 0.5 --init-adapter "$4" --data "$run.sets.jsonl" --out "$run" --resume \
    --learning-rate "$5" --warmup-steps 8 --num-positives 2 --num-negatives 3 --epochs 1
}
round 1 1500 1500 assets/adapters/smollm2-135m/default-2 2e-4
round 2 2700 2300 "$OUT/round-1/adapter" 1.5e-4

# The one that is shipped: the mean of both rounds.
python runs/average-adapters.py "$OUT/default-3" "$OUT/round-1/adapter" "$OUT/round-2/adapter"
ls "$OUT/default-3"
