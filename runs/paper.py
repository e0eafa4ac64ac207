#!/usr/bin/env python3
"""The paper's main table and its ablation in miniature: every rival trained from the same start on the same sets with the same number of
steps and tokens, each at the better of two learning rates, three seeds each, then measured on the same held-out sentences. What was done
before is not done again, so it goes on where it was interrupted; writes the table of docs/paper.md, and what each run came to into
docs/paper.jsonl. `--known docs/paper.jsonl` takes over the runs of another machine instead of making them again.

    python3 runs/paper.py --detoxd target/release/detoxd --sets sets.jsonl --valid valid.jsonl --out runs-of-paper

--sets: what `detoxd generate rewrites` writes. --valid: {"toxic", "neutral": [...]} a line. Python's standard library is enough.
"""
import argparse, json, os, pathlib, random, re, shutil, statistics, subprocess, time

CP = ["--objective", "cp", "--cp-weight", "1", "--sft-weight", "0"]
SIZES = ["--num-positives", "3", "--num-negatives", "5"]
SYSTEMS = {
    "CP": CP + SIZES,
    "CP and SFT": ["--objective", "cp", "--cp-weight", "0.5", "--sft-weight", "1"] + SIZES,
    "SFT": ["--objective", "sft", "--num-positives", "3"],
    "DPO": ["--objective", "dpo"] + SIZES,
    "SimPO": ["--objective", "simpo"] + SIZES,
    "PPO": ["--objective", "ppo", "--batch-size", "4"],
    "CP, positives only": CP + ["--sides", "positives"] + SIZES,
    "CP, negatives only": CP + ["--sides", "negatives"] + SIZES,
    "CP, \\|P\\| = \\|N\\| = 1": CP + ["--num-positives", "1", "--num-negatives", "1"],
    "CP, \\|P\\| = 4, \\|N\\| = 7": CP + ["--num-positives", "4", "--num-negatives", "7"],
}
RATES = ["2e-4", "4e-4"]
START = "start"
DEV_SENTENCES = 60


def prepare(args):
    """Three files out of the sets: those large enough for every system; a warm-up that gives each sentence back as it is, which teaches the
    base the form and nothing about toxicity; sentences to choose the learning rate on. No source is in two of them."""
    sets, rest = [], []
    for line in args.sets.read_text().splitlines():
        one = json.loads(line)
        large = len(one["positives"]) >= 4 and len(one["negatives"]) >= 5
        (sets if large else rest).append(one)
    dev, warm = rest[:DEV_SENTENCES], rest[DEV_SENTENCES:]
    same = [text for one in warm for text in (one["anchor"], one["positives"][0]) if len(text) < 160]
    random.Random(1).shuffle(same)
    files = {
        "sets": sets,
        "warm-up": [{"anchor": text, "positives": [text], "negatives": [text]} for text in same],
        "dev": [{"toxic": one["anchor"], "neutral": one["positives"][:1]} for one in dev],
    }
    for name, rows in files.items():
        (args.out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(", ".join(f"{name}: {len(rows)}" for name, rows in files.items()), flush=True)


def train(args, name, options, data, steps):
    """CPU seconds of training, in which what else the machine does counts little."""
    out = args.out / name
    seconds = out / "cpu-seconds"
    if not seconds.exists():
        shutil.rmtree(out, ignore_errors=True)
        command = [args.detoxd, "train", *options, "--data", args.out / f"{data}.jsonl", "--out", out]
        command += ["--max-steps", steps, "--warmup-steps", 3, "--batch-tokens", args.batch_tokens]
        before = os.times()
        subprocess.run([str(part) for part in command], check=True, stderr=subprocess.DEVNULL)
        after = os.times()
        seconds.write_text(str(after.children_user + after.children_system - before.children_user - before.children_system))
    return float(seconds.read_text())


def measure(args, name, data, examples):
    """The figures of `detoxd evaluate` on a set of held-out sentences."""
    report = args.out / f"{name}.{data.stem}.json"
    if not report.exists():
        command = [args.detoxd, "evaluate", "--adapter", args.out / name / "adapter", "--data", data, "--max-examples", examples]
        command += ["--samples", "0", "--resamples", "200", "--json", report]
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    figures = json.loads(report.read_text())["systems"][0]["figures"]
    return {key: figure["value"] for key, figure in figures.items() if isinstance(figure, dict) and "value" in figure}


def run_name(system, rate, seed):
    return re.sub(r"[^a-z0-9]+", "-", system.lower()).strip("-") + f"-{rate}-{seed}"


def run(args, system, rate, seed):
    name = run_name(system, rate, seed)
    options = [*SYSTEMS[system], "--learning-rate", rate, "--seed", seed, "--init-adapter", args.out / START / "adapter"]
    return name, train(args, name, options, "sets", args.steps)


def better_rate(args, system):
    """By J on sentences of their own. The parts of CP are trained as CP is."""
    if system.startswith("CP, "):
        return better_rate(args, "CP")

    def j(rate):
        name, _ = run(args, system, rate, 1)
        return measure(args, name, args.out / "dev.jsonl", DEV_SENTENCES)["j"]

    return max(RATES, key=j)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detoxd", default="target/release/detoxd")
    parser.add_argument("--sets", type=pathlib.Path, required=True)
    parser.add_argument("--valid", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--page", type=pathlib.Path, default=pathlib.Path("docs/paper.md"))
    parser.add_argument("--record", type=pathlib.Path, default=pathlib.Path("docs/paper.jsonl"))
    parser.add_argument("--known", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=100)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.time()
    prepare(args)
    train(args, START, ["--objective", "sft", "--learning-rate", "5e-4", "--seed", 1], "warm-up", 12)
    record = [json.loads(line) for line in args.known.read_text().splitlines()] if args.known else []
    measured = {"start: the base, taught to give a sentence back": (None, [(None, measure(args, START, args.valid, args.examples))])}
    # Seed by seed, so that a run that is cut short has all systems.
    for seed in range(1, args.seeds + 1):
        for system in SYSTEMS:
            known = [one for one in record if (one["system"], one["seed"]) == (system, seed)]
            if not known:
                rate = next((one["learning_rate"] for one in record if one["system"] == system), None) or better_rate(args, system)
                name, seconds = run(args, system, rate, seed)
                figures = measure(args, name, args.valid, args.examples)
                print(f"{time.time() - started:.0f} s: {name}: {seconds:.0f} s of training, {figures}", flush=True)
                known = [{"system": system, "learning_rate": rate, "seed": seed, "cpu_seconds": round(seconds), "figures": figures}]
                record += known
                args.record.write_text("".join(json.dumps(one) + "\n" for one in record))
            for one in known:
                measured.setdefault(system, (one["learning_rate"], []))[1].append((one["cpu_seconds"], one["figures"]))
        write(args.page, measured)


COLUMNS = [("toxicity_rate", "toxic"), ("similarity", "similarity"), ("chrf", "chrF"), ("copied", "copied"), ("empty", "empty"), ("fluency", "fluency"), ("j", "J"), ("perplexity_gap", "gap")]


def row(system, rate, runs):
    """Mean over the seeds and, with more than one, the standard deviation."""

    def cell(values, digits):
        if values[0] is None:
            return ""
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.{digits}f}{spread}"

    cells = [cell([figures[key] for _, figures in runs], 2) for key, _ in COLUMNS]
    return f"| {system} | {rate or ''} | " + " | ".join(cells) + f" | {cell([seconds for seconds, _ in runs], 0)} |"


def write(page, measured):
    """Puts the table between the page's markers."""
    head = "| system | rate | " + " | ".join(title for _, title in COLUMNS) + " | CPU s |"
    lines = [head, "|---" * (len(COLUMNS) + 3) + "|", *(row(system, rate, runs) for system, (rate, runs) in measured.items())]
    begin, end = "<!-- table -->\n", "<!-- end of table -->"
    text = page.read_text()
    before, rest = text.split(begin)
    page.write_text(before + begin + "\n".join(lines) + "\n" + end + rest.split(end)[1])


if __name__ == "__main__":
    main()
