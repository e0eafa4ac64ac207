"""Latency of POST /detoxify with one client, and where the time goes.

    detoxd serve &
    python3 benches/detoxify_latency.py [--url http://127.0.0.1:8080] [--count 40] [--candidates 8]

Sends a toxic sentence of 15 words, each time with another seed, and prints medians in milliseconds.
"""

import argparse
import json
import statistics
import time
import urllib.request

TEXT = "Only a complete idiot would sell that old house for so little money this year."


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 8])
    options = parser.parse_args()
    assert len(TEXT.split()) == 15
    for candidates in options.candidates:
        took, inference, queue, tokens = [], [], [], []
        for seed in range(options.count + 3):
            body = json.dumps({"text": TEXT, "seed": seed, "candidates": candidates}).encode()
            request = urllib.request.Request(
                options.url + "/detoxify", body, {"content-type": "application/json"}
            )
            start = time.perf_counter()
            with urllib.request.urlopen(request) as response:
                answer = json.load(response)
            if seed < 3:
                continue
            took.append((time.perf_counter() - start) * 1000)
            inference.append(answer["timing_ms"]["inference"])
            queue.append(answer["timing_ms"]["queue"])
            tokens.append(answer["usage"]["completion_tokens"])
        ninety = statistics.quantiles(took, n=20)[17]
        print(
            f"candidates {candidates}: median {statistics.median(took):.1f} ms, p90 {ninety:.1f}; "
            f"model {statistics.median(inference):.1f}, queue {statistics.median(queue):.2f}; "
            f"{statistics.median(tokens):.0f} tokens decoded, {answer['usage']['prompt_tokens']} in the prompt"
        )


if __name__ == "__main__":
    main()
