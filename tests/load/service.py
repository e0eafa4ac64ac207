"""What the scripts beside share: a detoxd process to talk to, and figures of times. Standard library only; loopback only."""

import http.client
import json
import os
import signal
import subprocess
import time
import urllib.parse


class Problem(Exception):
    """An answer that is no success."""

    def __init__(self, status, body):
        super().__init__(f"{status}: {body[:400]}")
        self.status = status


class Server:
    """A running detoxd, by its address. One connection a call, so that any thread may use it."""

    def __init__(self, url):
        parts = urllib.parse.urlsplit(url)
        assert parts.hostname in ("127.0.0.1", "localhost", "::1"), "loopback only"
        self.host, self.port = parts.hostname, parts.port

    def call(self, method, path, body=None, headers=None, timeout=60, content_type="application/json"):
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            headers = dict(headers or {})
            if body is not None:
                headers["content-type"] = content_type
                if not isinstance(body, bytes):
                    body = json.dumps(body).encode()
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            text = response.read()
            if response.status >= 400:
                raise Problem(response.status, text.decode(errors="replace"))
            return json.loads(text) if text else None
        finally:
            connection.close()

    def get(self, path, **more):
        return self.call("GET", path, **more)

    def post(self, path, body=None, **more):
        return self.call("POST", path, {} if body is None else body, **more)

    def events(self, path, timeout=600):
        """The events of a stream, as (name, data)."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            connection.request("GET", path, headers={"accept": "text/event-stream"})
            response = connection.getresponse()
            if response.status >= 400:
                raise Problem(response.status, response.read().decode(errors="replace"))
            name, data = "message", []
            for line in response:
                line = line.decode().rstrip("\r\n")
                if line.startswith("event:"):
                    name = line[6:].strip()
                elif line.startswith("data:"):
                    data.append(line[5:].strip())
                elif not line and data:
                    yield name, json.loads("\n".join(data))
                    name, data = "message", []
        finally:
            connection.close()

    def wait_ready(self, seconds=60):
        end = time.monotonic() + seconds
        while True:
            try:
                return self.get("/health/ready")
            except (OSError, Problem):
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)


class Process:
    """A detoxd process of ours, in a process group of its own so that it can be killed with what it started."""

    def __init__(self, program, arguments, log, environment=None):
        self.log = open(log, "ab")
        self.child = subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )

    def kill(self):
        """kill -9 of this one process; what it started must notice by itself."""
        self.child.kill()
        self.child.wait()

    def stop(self, seconds=60):
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()
        self.log.close()

    def memory(self):
        """Resident memory in MB."""
        with open(f"/proc/{self.child.pid}/status") as status:
            for line in status:
                if line.startswith("VmRSS"):
                    return int(line.split()[1]) / 1024
        return 0.0


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


NAMES = ["Anna", "Paul", "Maria", "Tom", "Lena", "Omar", "Ines", "Karl", "Nora", "Igor"]
THINGS = ["the letter", "the key", "my report", "the garden", "this window", "the second page", "our meeting", "the last bus", "her bag", "the door"]
VERBS = ["forgot", "lost", "broke", "missed", "ignored", "sold", "closed", "moved", "delayed", "dropped"]
INSULTS = ["you stupid idiot", "you fool", "you moron"]


def pairs(count):
    """Mild pairs, different from one another: a rude sentence with two polite ones each, as JSON lines."""
    lines = []
    for number in range(count):
        name = NAMES[number % 10]
        thing = THINGS[(number // 10 + number) % 10]
        verb = VERBS[(number // 7) % 10]
        insult = INSULTS[number % 3]
        lines.append(
            json.dumps(
                {
                    "toxic": f"{name} {verb} {thing} on day {number}, {insult}.",
                    "neutral": [f"{name} {verb} {thing} on day {number}.", f"I think {name} {verb} {thing} on day {number}."],
                }
            )
        )
    return "".join(line + "\n" for line in lines).encode()
