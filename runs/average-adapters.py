#!/usr/bin/env python3
"""The mean of adapters that one training led to another: each matrix the mean of theirs, in the precision of the first. Needs safetensors and numpy.

    average-adapters.py OUT ADAPTER ADAPTER...

Only adapters with a common start may be averaged: those of different starts say the same by other matrices.
"""
import shutil, sys
from pathlib import Path

from safetensors.numpy import load_file, save_file

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

if len(sys.argv) < 4:
    sys.exit(__doc__)
out, *adapters = map(Path, sys.argv[1:])
configs = {(adapter / CONFIG).read_text(encoding="utf-8") for adapter in adapters}
if len(configs) > 1:
    sys.exit("the adapters are of different shapes")
all_weights = [load_file(adapter / WEIGHTS) for adapter in adapters]
mean = {name: (sum(weights[name].astype("float32") for weights in all_weights) / len(adapters)).astype(first.dtype) for name, first in all_weights[0].items()}
out.mkdir(parents=True, exist_ok=True)
save_file(mean, out / WEIGHTS)
shutil.copy(adapters[0] / CONFIG, out / CONFIG)
