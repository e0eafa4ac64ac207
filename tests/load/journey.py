#!/usr/bin/env python3
"""From a dataset to an adapter in use and back, on a running server: upload, train, follow, see the evaluation and the activation, ask
with the new version, roll back.

    detoxd serve &
    tests/load/journey.py --server http://127.0.0.1:8080

Prints each step with its time. Ends with 1 when something is not as it should be."""

import argparse
import json
import sys
import time

from service import Server, pairs

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--server", default="http://127.0.0.1:8080")
parser.add_argument("--data", help="JSON lines to train on; without it, pairs made here")
parser.add_argument("--pairs", type=int, default=200, help="how many to make, or to take of --data")
parser.add_argument("--name", default="journey")
parser.add_argument("--init-adapter", help="name@version to start from")
parser.add_argument("--max-steps", type=int)
parser.add_argument("--activate", default="always", choices=["never", "if_better", "always"])
options = parser.parse_args()

server = Server(options.server)
begun = time.monotonic()


def say(text):
    print(f"[{time.monotonic() - begun:7.1f} s] {text}", flush=True)


TEXT = "Paul forgot the letter again, you stupid idiot. The train leaves at 10:45."

before = server.post("/detoxify", {"text": TEXT, "seed": 1})
say(f"served by {before['adapter']}: {before['text']}")

if options.data:
    with open(options.data, "rb") as file:
        lines = b"".join(line for line, _ in zip(file, range(options.pairs)))
else:
    lines = pairs(options.pairs)
dataset = server.post("/datasets", lines, content_type="application/x-ndjson", timeout=120)
say(f"dataset {dataset['id']}: {dataset['rows']} rows")

hyperparameters = {"epochs": 1}
if options.max_steps:
    hyperparameters["max_steps"] = options.max_steps
if options.init_adapter:
    hyperparameters["init_adapter"] = options.init_adapter
body = {
    "name": options.name,
    "dataset": dataset["id"],
    "objective": "cp",
    "hyperparameters": hyperparameters,
    "activate": options.activate,
}
job = server.post("/train", body, headers={"idempotency-key": f"journey-{time.time_ns()}"})
say(f"job {job['id']}: {job['status']}")

last = None
while last is None or last["status"] not in ("succeeded", "failed", "cancelled"):
    # A stream that ends early is taken up again.
    for name, data in server.events(f"/jobs/{job['id']}/events"):
        if data.get("progress") and (last is None or data["progress"] != last.get("progress")):
            progress = data["progress"]
            eta, speed = progress["eta_seconds"], progress["tokens_per_second"]
            say(f"{name}: step {progress['step']}/{progress['steps']} loss {progress['loss']:.3f} {speed:.0f} tokens/s ETA {eta:.0f} s")
        elif last is None or data["status"] != last["status"]:
            say(f"{name}: {data['status']}")
        last = data

job = server.get(f"/jobs/{job['id']}")
if job["status"] != "succeeded":
    say(json.dumps(job.get("error")))
    sys.exit(1)
say(f"registered as {job['adapter']}; metrics and decision:")
print(json.dumps(job["metrics"], indent=2))

if options.activate == "never":
    sys.exit(0)
end = time.monotonic() + 10
while True:
    after = server.post("/detoxify", {"text": TEXT, "seed": 1})
    if after["adapter"] == job["adapter"] or options.activate == "if_better" or time.monotonic() > end:
        break
    time.sleep(0.2)
say(f"served by {after['adapter']}: {after['text']}")
if options.activate == "always" and after["adapter"] != job["adapter"]:
    sys.exit(1)
if after["adapter"] == before["adapter"]:
    say("not activated, by its policy")
    sys.exit(0)

server.post("/adapters/rollback", {"expected": after["adapter"]})
back = server.post("/detoxify", {"text": TEXT, "seed": 1})
say(f"rolled back; served by {back['adapter']}: {back['text']}")
sys.exit(0 if (back["adapter"], back["text"]) == (before["adapter"], before["text"]) else 1)
