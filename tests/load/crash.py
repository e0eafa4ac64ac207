#!/usr/bin/env python3
"""kill -9 at random moments of jobs and swaps: is any job lost or done twice, is the registry whole, how soon does training go on?

    tests/load/crash.py --program target/release/detoxd                        # SQLite; serve runs the jobs
    tests/load/crash.py --program target/release/detoxd --postgres postgres://…  # serve and two workers

Jobs train and versions are swapped all the time while one process after the other is killed and started again. Standard library only."""

import argparse
import hashlib
import io
import json
import os
import random
import sys
import tarfile
import tempfile
import threading
import time

from service import Problem, Process, Server, free_port, pairs

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--program", default="target/release/detoxd")
parser.add_argument("--model", default=os.path.join(ROOT, "tests/fixtures/micro"))
parser.add_argument("--adapter", default=os.path.join(ROOT, "tests/fixtures/micro/adapter"))
parser.add_argument("--postgres", help="address of an empty database; without it SQLite")
parser.add_argument("--kills", type=int, default=20)
parser.add_argument("--jobs", type=int, default=6)
parser.add_argument("--steps", type=int, default=1500, help="steps a job")
parser.add_argument("--seed", type=int, default=1)
options = parser.parse_args()

random.seed(options.seed)
folder = tempfile.mkdtemp(prefix="detoxd-crash-")
port = free_port()
server = Server(f"http://127.0.0.1:{port}")
store = f"file://{folder}/store"
common = ["--model", options.model, "--max-attempts", "1000", "--checkpoint-interval", "2s", "--log-format", "json"]
storage = ["--store", store]
if options.postgres:
    storage += ["--database-url", options.postgres]
commands = {
    "serve": ["serve", "--listen", f"127.0.0.1:{port}", "--data-dir", f"{folder}/serve", *storage, *common]
    + (["--run-jobs", "false"] if options.postgres else [])
}
if options.postgres:
    for worker in ("worker-1", "worker-2"):
        commands[worker] = ["worker", "--data-dir", f"{folder}/{worker}", *storage, *common]
processes = {}
faults = []


def start(name, more=()):
    processes[name] = Process(options.program, [*commands[name], *more], f"{folder}/{name}.log")


def fault(text):
    faults.append(text)
    print("FAULT:", text, flush=True)


def archive(scale):
    """The adapter as an archive, its scale changed so that it is another one."""
    with open(os.path.join(options.adapter, "adapter_config.json")) as file:
        config = json.load(file)
    config["lora_alpha"] *= scale
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            with open(os.path.join(options.adapter, name), "rb") as file:
                data = json.dumps(config).encode() if name.endswith(".json") else file.read()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return content.getvalue()


# The first start makes the adapter the active one; later ones go by what the registry says.
start("serve", ["--adapter", options.adapter])
server.wait_ready()
versions = [server.get("/health/ready") and server.post("/detoxify", {"text": "A day."})["adapter"]]
for scale in (0.9, 1.1):
    made = server.post("/adapters?name=other", archive(scale), content_type="application/gzip")
    versions.append(f"{made['name']}@{made['version']}")
for name in commands:
    if name != "serve":
        start(name)
dataset = server.post("/datasets", pairs(400), content_type="application/x-ndjson")["id"]
jobs = []
for number in range(options.jobs):
    body = {
        "name": f"crash-{number}",
        "dataset": dataset,
        "objective": "cp",
        "hyperparameters": {"epochs": 10000, "max_steps": options.steps, "lora_rank": 4, "seed": number + 1},
        "evaluate": {"held_back": 0.05, "max_examples": 8},
        "activate": "never",
    }
    jobs.append(server.post("/train", body, headers={"idempotency-key": f"crash-{number}"})["id"])

ended = threading.Event()
acknowledged = 0
swaps = requests = refused = 0


def swap():
    """Activates one version after the other, and remembers the last revision that was acknowledged."""
    global acknowledged, swaps
    turn = 0
    while not ended.is_set():
        turn += 1
        name, number = versions[turn % len(versions)].split("@")
        try:
            done = server.post(f"/adapters/{name}/{number}/activate", timeout=10)
            acknowledged = max(acknowledged, done["revision"])
            swaps += 1
        except Problem as problem:
            if problem.status not in (429, 503):
                fault(f"activate: {problem}")
        except (OSError, ValueError, KeyError):
            pass
        except Exception as error:  # a connection that broke in the middle of an answer
            if "IncompleteRead" not in repr(error) and "RemoteDisconnected" not in repr(error):
                fault(f"activate: {error!r}")
        time.sleep(0.3)


def ask():
    global requests, refused
    while not ended.is_set():
        try:
            answer = server.post("/detoxify", {"text": "You are a stupid fool, Anna forgot the letter.", "seed": 1}, timeout=20)
            requests += 1
            if answer["adapter"] not in versions:
                fault(f"answered by {answer['adapter']}")
        except Problem as problem:
            refused += 1
            if problem.status not in (429, 503):
                fault(f"detoxify: {problem}")
        except Exception:  # killed in the middle
            refused += 1
        time.sleep(0.05)


def call(path):
    """Asks until the service is there again."""
    end = time.monotonic() + 60
    while True:
        try:
            return server.get(path)
        except (OSError, Problem, ValueError) as error:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
        except Exception:
            time.sleep(0.05)


def check_registry():
    history = call("/adapters/deployments")["deployments"]
    revisions = sorted(deployment["revision"] for deployment in history)
    if revisions and revisions[-1] < acknowledged:
        fault(f"revision {acknowledged} was acknowledged, and the last one is {revisions[-1]}")
    if revisions != list(range(revisions[0], revisions[0] + len(revisions))):
        fault("revisions with a gap")
    listed = call("/adapters")["adapters"]
    names = [(item["name"], item["version"]) for item in listed]
    if len(names) != len(set(names)):
        fault("a version is listed twice")
    made_by = [item["job"] for item in listed if item.get("job")]
    if len(made_by) != len(set(made_by)):
        fault("a job made two versions")


threads = [threading.Thread(target=work, daemon=True) for work in (swap, ask)]
for thread in threads:
    thread.start()

resumed, ready = [], []
for kill in range(options.kills):
    time.sleep(random.uniform(2, 9))
    before = {job: call(f"/jobs/{job}") for job in jobs}
    running = [job for job in jobs if before[job]["status"] == "running"]
    victim = random.choice(sorted(processes))
    processes[victim].kill()
    killed = time.monotonic()
    time.sleep(random.uniform(0, 1))
    started = time.monotonic()
    start(victim)
    if victim == "serve":
        server.wait_ready()
        ready.append(time.monotonic() - started)
    check_registry()
    # The job that lost its worker goes on when a later claim than before has made a step.
    lost = None
    while running and lost is None and time.monotonic() - started < 40:
        for job in running:
            now = call(f"/jobs/{job}")
            if now["status"] not in ("running", "queued"):
                running.remove(job)
                break
            if now["attempts"] > before[job]["attempts"] and now["status"] == "running" and now.get("progress") != before[job].get("progress"):
                lost = job
                resumed.append(time.monotonic() - started)
                back = (before[job].get("progress") or {"step": 0})["step"] - now["progress"]["step"] + 1
                break
        else:
            # A worker that had no job loses none, and serve has none when workers run them.
            if options.postgres and (victim == "serve" or time.monotonic() - started > 25):
                break
            time.sleep(0.1)
    note = f"; training again after {resumed[-1]:.1f} s, {max(back, 0)} steps made again" if lost else ""
    print(f"kill {kill + 1}: {victim}{note}", flush=True)

end = time.monotonic() + 1200
while time.monotonic() < end and any(call(f"/jobs/{job}")["status"] in ("queued", "running") for job in jobs):
    time.sleep(0.5)
ended.set()
for thread in threads:
    thread.join(30)

final = {job: call(f"/jobs/{job}") for job in jobs}
for job, state in final.items():
    if state["status"] != "succeeded":
        fault(f"job {job} ended as {state['status']}: {state.get('error')}")
    elif state["progress"]["step"] != options.steps:
        fault(f"job {job} made {state['progress']['step']} steps")
check_registry()
made = [item for item in call("/adapters")["adapters"] if item.get("job") in jobs]
if len(made) != len(jobs):
    fault(f"{len(jobs)} jobs made {len(made)} versions")
for item in call("/adapters")["adapters"]:
    if item["name"] == "none":
        continue
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", f"/adapters/{item['name']}/{item['version']}/archive")
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        fault(f"{item['name']}@{item['version']} can't be exported: {response.status}")
        continue
    files = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for entry in tar:
            files[os.path.basename(entry.name)] = tar.extractfile(entry).read()
    digest = hashlib.sha256(
        hashlib.sha256(files["adapter_config.json"]).digest() + hashlib.sha256(files["adapter_model.safetensors"]).digest()
    ).hexdigest()
    if digest != item["sha256"]:
        fault(f"{item['name']}@{item['version']} has another checksum")
for process in processes.values():
    process.stop()

figure = lambda values: f"median {sorted(values)[len(values) // 2]:.2f} s, longest {max(values):.2f} s ({len(values)})" if values else "none"
print(f"kills {options.kills}; jobs {len(jobs)}, all succeeded: {all(state['status'] == 'succeeded' for state in final.values())}")
print(f"attempts a job: {[state['attempts'] for state in final.values()]}")
print(f"ready after a restart: {figure(ready)}")
print(f"training again after a restart: {figure(resumed)}")
print(f"swaps acknowledged {swaps}, requests answered {requests}, not answered while killed {refused}")
print(f"faults: {len(faults)}; logs in {folder}")
sys.exit(1 if faults or (resumed and max(resumed) > 30) else 0)
