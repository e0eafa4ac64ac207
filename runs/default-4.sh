#!/usr/bin/env bash
# How assets/adapters/smollm2-135m/default-4 was made from default-3: contrastive perplexity on sets written for it, and on the best and worst of what
# default-3 writes, so that it keeps what it has learned. Some 70 minutes on two cores with bf16 dot products, half of them training.
#
# runs/default-4-sets.jsonl.gz has the sets that were written: everyday rudeness of all kinds, each with two rewrites that an editor would sign and two texts
# that a weak model would write. docs/decisions/0051-everyday-sets.md says by whom and how. None has five words in a row with a held-out sentence.
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

python runs/default-2-sets.py neutral "$DATA" | shuf -n 600 --random-source=<(yes) >"$OUT/harmless.txt"
split --lines 300 --numeric-suffixes=1 --suffix-length 1 "$OUT/harmless.txt" "$OUT/harmless-"
python runs/default-3-sources.py 1 4000 8000 >"$OUT/sources.txt"
split --lines 4000 --numeric-suffixes=1 --suffix-length 1 "$OUT/sources.txt" "$OUT/sources-"

# A round: eight candidates a sentence, sorted as for default-3; so many of the sets with all that were written.
round() { # number, sets, start, weight of the contrastive term, learning rate
  local run=$OUT/round-$1
  "$detoxd" rewrite --json --explain --always --whole-line --candidates 8 --adapter default@3 <"$OUT/sources-$1" >"$run.explained.jsonl"
  python runs/people.py sets "$OUT/sources-$1" "$run.explained.jsonl" "$OUT/harmless-$1" >"$run.own.jsonl"
  { gzip -dc runs/default-4-sets.jsonl.gz; head -n "$2" "$run.own.jsonl"; } | shuf --random-source=<(yes) >"$run.sets.jsonl"
  "$detoxd" train --objective cp --cp-weight "$4" --init-adapter "$3" --data "$run.sets.jsonl" --out "$run" --resume \
    --learning-rate "$5" --warmup-steps 10 --num-positives 2 --num-negatives 3 --epochs 1
}
round 1 2600 assets/adapters/smollm2-135m/default-3 0.5 2.5e-4
round 2 3400 "$OUT/round-1/adapter" 0.4 1.5e-4
ls "$OUT/round-2/adapter"
