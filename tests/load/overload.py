"""Ten times what the service can do, for a minute: what comes through, what is refused and how fast, and what is left behind.

    python tests/load/overload.py --texts valid.jsonl [--detoxd target/release/detoxd] [--seconds 60] [--model smollm2-135m]

Toxic texts, every one of which needs the model; nothing is remembered (--rewrite-cache-bytes 0). First the capacity: as many clients as keep the
service busy. Then requests leave at ten times that rate whether or not answers come (`detoxd bench --rate`). Memory is read each second. Then requests one by one until
they take what they took before. At last clients that leave at once: what they asked for must leave the batch. Loopback only.
"""

import argparse
import json
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from service import Problem, Process, Server, free_port


def bench(options, server, clients, seconds, *more):
    command = [options.detoxd, "bench", "--server", f"http://{server.host}:{server.port}", "--texts", options.texts, "--json",
               "--clients", clients, "--seconds", seconds, *more]
    return subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)


def report(running):
    output, _ = running.communicate()
    return json.loads(output)


def one(server, text):
    began = time.perf_counter()
    server.post("/detoxify", {"text": text})
    return time.perf_counter() - began


def metric(server, name):
    import http.client

    connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name) and not line.startswith("#"))


def toxic_texts(options, server, folder):
    """Those that the service takes for toxic: the others never reach the model."""
    lines = [json.loads(line)["toxic"] for line in open(options.texts, encoding="utf-8")]
    toxic = [text for text in lines if server.post("/score", {"text": text})["toxicity"] > 0.5]
    path = Path(folder) / "toxic.jsonl"
    path.write_text("".join(json.dumps({"toxic": text}) + "\n" for text in toxic), encoding="utf-8")
    print(f"{len(toxic)} of {len(lines)} texts are toxic")
    return path, toxic[0]


def main():
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        arguments = ["serve", "--model", options.model, "--data-dir", folder, "--listen", f"127.0.0.1:{port}",
                     "--rewrite-cache-bytes", "0", "--log", "warn"]
        process = Process(options.detoxd, arguments, Path(folder) / "log")
        try:
            server = Server(f"http://127.0.0.1:{port}")
            server.wait_ready()
            options.texts, probe = toxic_texts(options, server, folder)
            run(options, server, process, probe)
        finally:
            process.stop()


def run(options, server, process, probe):
    idle = statistics.median(one(server, probe) for _ in range(10))
    capacity = report(bench(options, server, options.clients, 15))
    print(f"idle: {idle * 1e3:.0f} ms; capacity: {capacity['requests_per_second']:.1f} requests/s, {capacity['latency_ms']}", flush=True)

    rate, memory = 10 * capacity["requests_per_second"], []
    overload = bench(options, server, 4000, options.seconds, "--rate", f"{rate:.2f}", "--warm-up", "3")
    ends = time.perf_counter() + 3 + options.seconds
    while time.perf_counter() < ends:
        memory.append(process.memory())
        time.sleep(min(1.0, max(0.0, ends - time.perf_counter())))
    # No more is sent; what was admitted is still being worked on.
    took = None
    while time.perf_counter() - ends < 60:
        try:
            took = one(server, probe)
        except Problem:
            time.sleep(0.05)
            continue
        if took <= 2 * idle:
            break
    normal = time.perf_counter() - ends
    over = report(overload)
    goodput = over["requests_per_second"] * over["seconds"] / options.seconds / capacity["requests_per_second"]
    print(f"offered {rate:.0f} requests/s for {options.seconds} s: {json.dumps(over)}")
    print(f"goodput: {goodput:.2f} of the capacity")
    third = len(memory) // 3
    print(f"memory: {statistics.mean(memory[:third]):.0f} MB in the first third, {statistics.mean(memory[-third:]):.0f} MB in the last")
    print(f"a request alone takes {took * 1e3:.0f} ms again {normal:.2f} s after the last one was sent")

    before = metric(server, "detoxd_tokens_total")
    for _ in range(200):
        body = json.dumps({"text": probe}).encode()
        with socket.create_connection((server.host, server.port)) as left:
            left.sendall(b"POST /detoxify HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
    began = time.perf_counter()
    while metric(server, "detoxd_engine_running") + metric(server, "detoxd_engine_waiting") > 0 and time.perf_counter() - began < 30:
        time.sleep(0.005)
    empty = time.perf_counter() - began
    print(f"200 clients left at once: the batch is empty {empty * 1e3:.0f} ms later, {metric(server, 'detoxd_tokens_total') - before:.0f} "
          f"tokens were counted for them, a request alone takes {one(server, probe) * 1e3:.0f} ms")


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", required=True, help='JSON lines with "toxic"')
    parser.add_argument("--detoxd", default="target/release/detoxd")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--clients", type=int, default=32, help="that keep the service busy")
    parser.add_argument("--seconds", type=int, default=60)
    return parser.parse_args()


main()
