#!/usr/bin/env python3
"""Changes the adapter of a running service every second under load, and holds every answer to the version that it names.

    detoxd serve --model tests/fixtures/micro --adapter tests/fixtures/micro/adapter --data-dir /tmp/swap &
    python3 tests/load/swap.py --pid $! --adapter tests/fixtures/micro/adapter

The adapter is imported three times, with three scales, so that there are three versions that answer differently. What each of them answers is asked
for first, by name. Then clients ask without naming one: at first while nothing changes, then while versions do. Fails if a request
fails, an answer is not that of the version it names, or the memory grows. Standard library only.
"""

import argparse
import http.client
import io
import json
import statistics
import sys
import tarfile
import threading
import time
from pathlib import Path

TEXTS = [
    "You are a stupid fool, Anna forgot the letter yesterday.",
    "Paul sold the garden on Monday, you idiot.",
    "You stupid fool, close the window.",
    "You idiot, read page 12 of the book again.",
    "Good morning. You stupid idiot, the train leaves at 10:45.",
    "The door is open.",
]
SCALES = [8.0, 60.0, -40.0]
SEED = 7


class Client:
    """A connection that is kept open."""

    def __init__(self, host):
        self.connection = http.client.HTTPConnection(host, timeout=60)

    def send(self, method, path, body=None, kind="application/json"):
        if isinstance(body, (dict, list)):
            body = json.dumps(body).encode()
        headers = {"Content-Type": kind} if body is not None else {}
        self.connection.request(method, path, body, headers)
        response = self.connection.getresponse()
        return response.status, json.loads(response.read() or b"null")

    def must(self, method, path, body=None, kind="application/json"):
        status, answer = self.send(method, path, body, kind)
        if status >= 300:
            sys.exit(f"{method} {path}: {status} {answer}")
        return answer


def archive(folder, scale):
    """The adapter as tar.gz, with another scale."""
    config = json.loads((folder / "adapter_config.json").read_text())
    config["lora_alpha"] = scale
    files = {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": (folder / "adapter_model.safetensors").read_bytes(),
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


def request(text, adapter=None):
    body = {"text": text, "seed": SEED, "candidates": 1}
    if adapter is not None:
        body["adapter"] = adapter
    return body


def resident_bytes(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    sys.exit(f"process {pid} has no VmRSS")


class Load:
    """So many clients, one request after another each, until told to stop."""

    def __init__(self, host, clients, expected):
        self.host, self.expected = host, expected
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.seconds, self.failures, self.wrong = [], [], []
        self.by_version = {}
        self.threads = [threading.Thread(target=self.run, args=(number,)) for number in range(clients)]

    def run(self, number):
        client, count = Client(self.host), number
        while not self.stop.is_set():
            text = TEXTS[count % len(TEXTS)]
            count += 1
            started = time.perf_counter()
            try:
                status, answer = client.send("POST", "/detoxify", request(text))
            except (OSError, http.client.HTTPException, ValueError) as error:
                status, answer, client = 0, repr(error), Client(self.host)
            elapsed = time.perf_counter() - started
            with self.lock:
                self.seconds.append(elapsed)
                if status != 200:
                    self.failures.append((status, answer))
                    continue
                version = answer["adapter"]
                self.by_version[version] = self.by_version.get(version, 0) + 1
                if self.expected.get((version, text)) != answer["text"]:
                    self.wrong.append((version, text, answer["text"], self.expected.get((version, text))))

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def figures(self, elapsed):
        ordered = sorted(self.seconds)
        at = lambda share: round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)
        return {
            "requests": len(ordered),
            "failed": len(self.failures),
            "wrong": len(self.wrong),
            "requests_per_second": round(len(ordered) / elapsed, 1),
            "p50_ms": at(0.5),
            "p99_ms": at(0.99),
            "max_ms": at(1.0),
            "by_version": self.by_version,
        }


def watch(pid, seconds, act):
    """Calls `act` every second; the memory at each."""
    memory, started = [], time.perf_counter()
    for tick in range(seconds):
        act(tick)
        memory.append(resident_bytes(pid))
        time.sleep(max(0.0, started + tick + 1 - time.perf_counter()))
    return memory, time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1:8080")
    parser.add_argument("--pid", type=int, required=True, help="of the service, for its memory")
    parser.add_argument("--adapter", type=Path, required=True, help="a PEFT folder")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=int, default=60, help="with changes; as many again without")
    parser.add_argument("--growth", type=int, default=8, help="MiB that the memory may grow between the first and the last third")
    arguments = parser.parse_args()

    control = Client(arguments.host)
    versions = []
    for scale in SCALES:
        packed = archive(arguments.adapter, scale)
        versions.append(control.must("POST", "/adapters?name=swap", packed, "application/gzip")["adapter"])
    path = lambda version: "/adapters/{}/{}/activate".format(*version.split("@"))

    expected = {}
    for version in versions:
        for text in TEXTS:
            expected[version, text] = control.must("POST", "/detoxify", request(text, version))["text"]
    distinct = {tuple(expected[version, text] for text in TEXTS) for version in versions}
    if len(distinct) < len(versions):
        sys.exit("two versions answer the same: the check would not tell them apart")

    control.must("POST", path(versions[0]))
    with Load(arguments.host, arguments.clients, expected) as still:
        _, elapsed = watch(arguments.pid, arguments.seconds, lambda tick: None)
    without = still.figures(elapsed)

    changes = []

    def change(tick):
        before, after = versions[tick % len(versions)], versions[(tick + 1) % len(versions)]
        started = time.perf_counter()
        made = control.must("POST", path(after), {"expected": before})
        changes.append(time.perf_counter() - started)
        assert made["active"] == after, made

    with Load(arguments.host, arguments.clients, expected) as moving:
        memory, elapsed = watch(arguments.pid, arguments.seconds, change)
    with_changes = moving.figures(elapsed)

    third = max(1, len(memory) // 3)
    growth = statistics.median(memory[-third:]) - statistics.median(memory[:third])
    retired = [one for one in control.must("GET", "/adapters")["adapters"] if one["state"] == "retired"]
    report = {
        "clients": arguments.clients,
        "without_changes": without,
        "with_changes": with_changes,
        "changes": len(changes),
        "change_p50_ms": round(1000 * statistics.median(changes), 1),
        "change_max_ms": round(1000 * max(changes), 1),
        "memory_first_third_mib": round(statistics.median(memory[:third]) / 2**20, 1),
        "memory_last_third_mib": round(statistics.median(memory[-third:]) / 2**20, 1),
        "retired_at_the_end": len(retired),
    }
    print(json.dumps(report, indent=2))

    faults = []
    for name, load in [("without changes", still), ("with changes", moving)]:
        faults += [f"{name}: failed: {failure}" for failure in load.failures[:3]]
        faults += [f"{name}: {version} to {text!r}: {got!r}, expected {want!r}" for version, text, got, want in load.wrong[:3]]
    if len(with_changes["by_version"]) < len(versions):
        faults.append(f"not every version answered: {with_changes['by_version']}")
    if growth > arguments.growth * 2**20:
        faults.append(f"the memory grew by {growth / 2**20:.1f} MiB")
    if retired:
        faults.append(f"still in memory: {[one['adapter'] for one in retired]}")
    sys.exit("\n".join(faults) or None)


if __name__ == "__main__":
    main()
