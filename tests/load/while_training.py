#!/usr/bin/env python3
"""What serving and training on one machine cost each other: latency of /detoxify idle and during a training job, speed of training alone
and while serving. Needs a running server with --run-jobs (the default). Standard library only; one client, one after the other.

    detoxd serve &
    tests/load/while_training.py --server http://127.0.0.1:8080 --seconds 60"""

import argparse
import threading
import time

from service import Server, pairs, percentile

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--server", default="http://127.0.0.1:8080")
parser.add_argument("--seconds", type=float, default=60)
parser.add_argument("--clients", type=int, default=1)
parser.add_argument("--pause", type=float, default=0.25, help="seconds between two requests of a client")
parser.add_argument("--candidates", type=int, default=8)
options = parser.parse_args()
server = Server(options.server)
TEXT = "You are a stupid fool, and you forgot to bring the letter from the office again on Monday."


def measure(seconds):
    times, lock = [], threading.Lock()
    end = time.monotonic() + seconds

    def client(number):
        turn = 0
        while time.monotonic() < end:
            turn += 1
            begun = time.monotonic()
            server.post("/detoxify", {"text": TEXT, "seed": number * 10000 + turn, "candidates": options.candidates})
            with lock:
                times.append(time.monotonic() - begun)
            time.sleep(options.pause)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(options.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def show(name, times):
    print(f"{name}: {len(times)} requests, median {percentile(times, 0.5) * 1000:.0f} ms, p95 {percentile(times, 0.95) * 1000:.0f} ms, longest {max(times) * 1000:.0f} ms", flush=True)



def speed(job, seconds):
    """Steps a second over a stretch of time."""
    first = server.get(f"/jobs/{job}")["progress"]["step"]
    begun = time.monotonic()
    time.sleep(seconds)
    last = server.get(f"/jobs/{job}")["progress"]["step"]
    return (last - first) / (time.monotonic() - begun)


measure(5)
idle = measure(options.seconds)
show("idle", idle)
dataset = server.post("/datasets", pairs(2000), content_type="application/x-ndjson")["id"]
body = {"name": "beside", "dataset": dataset, "hyperparameters": {"epochs": 1000}, "evaluate": False}
job = server.post("/train", body)["id"]
try:
    while not (server.get(f"/jobs/{job}").get("progress") or {}).get("step", 0) > 5:
        time.sleep(0.5)
    alone = speed(job, options.seconds)
    print(f"training alone: {alone:.3f} steps/s", flush=True)
    result = []
    watcher = threading.Thread(target=lambda: result.append(speed(job, options.seconds)))
    watcher.start()
    busy = measure(options.seconds)
    watcher.join()
    show("while training", busy)
    print(f"training while serving: {result[0]:.3f} steps/s")
    print(f"p95 while training / idle: {percentile(busy, 0.95) / percentile(idle, 0.95):.2f}; training speed kept: {result[0] / alone:.0%}")
finally:
    server.post(f"/jobs/{job}/cancel")
