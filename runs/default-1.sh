#!/usr/bin/env bash
# How assets/adapters/smollm2-135m/default-1 was made: about an hour on two cores with bf16 dot products, less when nothing
# else runs. Every step goes on where it was interrupted.
#
#   DATA=folder with detox/train.jsonl, {"toxic", "neutral": [...]} a line (ParaDetox and APPDIA; see the model card)
#   OUT=where the runs go
set -euo pipefail
: "${DATA:?folder with detox/train.jsonl}" "${OUT:=detoxd-runs}"
cargo build --release
detoxd=${CARGO_TARGET_DIR:-target}/release/detoxd
mkdir -p "$OUT"

"$detoxd" model pull smollm2-135m

# 1. Supervised fine-tuning on every (toxic, neutral) pair, twice: 428 steps.
"$detoxd" train --objective sft --data "$DATA/detox/train.jsonl" --out "$OUT/sft" --resume \
  --learning-rate 8e-4 --epochs 2

# 2. Ten samples a source, sorted into positives and negatives by the scorers. 3,600 sources were asked for and the sampling was
#    stopped after 2,016 sets; the first 1,400 are used.
"$detoxd" generate --adapter "$OUT/sft/adapter" --data "$DATA/detox/train.jsonl" --out "$OUT/sets.jsonl" \
  --limit 2600 --samples 10 --in-flight 32
head -n 1400 "$OUT/sets.jsonl" >"$OUT/sets1400.jsonl"

# 3. Contrastive perplexity from there, over the weight of the contrastive term: 90 steps each. Weight 0 is SFT of the same length.
for weight in 0 0.1 0.25 0.75; do
  "$detoxd" train --objective cp --cp-weight "$weight" --init-adapter "$OUT/sft/adapter" --data "$OUT/sets1400.jsonl" \
    --out "$OUT/cp-$weight" --resume --learning-rate 2e-4 --warmup-steps 10 --num-positives 4 --num-negatives 6
done

# The one that is shipped.
ls "$OUT/cp-0.75/adapter"
