"""Starts the service with nothing set but a free port, sends the README's request, compares the answer with the README's.

    python3 .ci/readme.py path/to/detoxd

The request is the first `sh` block after the line `<!-- request -->`, the answer the first `json` block after
`<!-- answer -->`. What differs from run to run (id, times) is left out; numbers may differ a little between processors.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

STARTED_WITHIN_S = 60
STOPPED_WITHIN_S = 40
TOLERANCE = 0.02


def block(readme, marker, language):
    found = re.search(re.escape(marker) + r"\s*```" + language + r"\n(.*?)```", readme, re.S)
    return found and found.group(1).strip()


def same(expected, got):
    if isinstance(expected, dict):
        return isinstance(got, dict) and expected.keys() == got.keys() and all(same(v, got[k]) for k, v in expected.items())
    if isinstance(expected, list):
        return isinstance(got, list) and len(expected) == len(got) and all(map(same, expected, got))
    if isinstance(expected, float) and isinstance(got, (int, float)):
        return abs(expected - got) <= TOLERANCE
    return expected == got


def steady(answer):
    return {key: value for key, value in answer.items() if key not in ("id", "timing_ms")}


def wait_until_ready(service, address):
    start = time.monotonic()
    while time.monotonic() - start < STARTED_WITHIN_S:
        if service.poll() is not None:
            sys.exit(f"the service ended with {service.returncode} instead of starting")
        try:
            with urllib.request.urlopen(f"http://{address}/health/ready", timeout=2):
                return time.monotonic() - start
        except (urllib.error.URLError, OSError):
            time.sleep(0.02)
    sys.exit(f"the service is not ready after {STARTED_WITHIN_S} s")


def resident_mb(pid):
    try:
        with open(f"/proc/{pid}/status") as status:
            kilobytes = re.search(r"VmRSS:\s+(\d+) kB", status.read())
            return f"{int(kilobytes.group(1)) * 1024 / 1e6:.0f} MB"
    except OSError:
        return "unknown"


def main(detoxd):
    with open("README.md") as file:
        readme = file.read()
    request = block(readme, "<!-- request -->", "sh")
    expected = block(readme, "<!-- answer -->", "json")
    if not request:
        sys.exit("README.md has no request")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as data:
        service = subprocess.Popen([detoxd, "serve", "--listen", address, "--data-dir", data])
        try:
            print(f"ready after {wait_until_ready(service, address):.2f} s", flush=True)
            command = request.replace("127.0.0.1:8080", address)
            run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
            if run.returncode != 0:
                sys.exit(f"the README's request failed with {run.returncode}: {run.stderr}")
            answer = json.loads(run.stdout)
            print(json.dumps(answer, indent=2, ensure_ascii=False))
            print(f"resident memory: {resident_mb(service.pid)}")
            service.send_signal(signal.SIGTERM)
            code = service.wait(STOPPED_WITHIN_S)
            if code != 0:
                sys.exit(f"the service ended with {code} after SIGTERM")
        finally:
            if service.poll() is None:
                service.kill()
                service.wait()
    if not expected:
        sys.exit("README.md has no answer: put the one above in a json block after <!-- answer -->")
    if not same(steady(json.loads(expected)), steady(answer)):
        sys.exit("README.md prints another answer")
    print("the answer is the README's")


if __name__ == "__main__":
    os.environ.pop("DETOXD_MODEL", None)
    main(sys.argv[1])
