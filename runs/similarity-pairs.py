"""Makes pairs of texts and what a sentence embedding makes of them: DATA MINILM OUT [OUTPUTS].

Writes OUT/pairs.train.jsonl (of detox/train.jsonl) and OUT/pairs.valid.jsonl (of detox/valid.jsonl and OUTPUTS):
{"a", "b", "cosine", "kind"} a line. Rewrites by people, corrupted texts, other texts: every degree of likeness.
"""
import json, os, random, sys
os.environ["HF_HUB_OFFLINE"] = "1"
from sentence_transformers import SentenceTransformer

data, minilm, out = sys.argv[1:4]
outputs = sys.argv[4] if len(sys.argv) > 4 else None
rng = random.Random(7)
load = lambda p: [json.loads(l) for l in open(p, encoding="utf-8") if l.strip()]
lexicon = {l.strip() for l in open(f"{data}/lexicon.txt", encoding="utf-8") if l.strip()}
filler = "person people thing stuff bad very really rude unpleasant foolish nonsense the a of good".split()
def corrupt(s):
    """Words deleted, cut off, replaced, negated, or of another person and tense."""
    w, k = s.split(), rng.random()
    if len(w) < 3:
        return s
    if k < .3:
        p = rng.uniform(.1, .6)
        w = [x for x in w if rng.random() > p] or w[:1]
    elif k < .45:
        w = w[:max(1, int(len(w) * rng.uniform(.3, .9)))]
    elif k < .6:
        w = [x for x in w if x.lower().strip(".,!?") not in lexicon]
    elif k < .75:
        w = [rng.choice(filler) if x.lower().strip(".,!?") in lexicon or rng.random() < .1 else x for x in w]
    elif k < .85:
        i = rng.randrange(len(w))
        w = w[:i] + ["not"] + w[i:]
    else:
        sw = {"i": "you", "you": "i", "my": "your", "your": "my", "he": "she", "is": "was", "are": "were"}
        w = [sw.get(x.lower(), x) for x in w]
    return " ".join(w)
def pairs(rows, n):
    made, rows = [], rows[:]
    rng.shuffle(rows)
    allneutral = [t for r in rows for t in r["neutral"]]
    for r in rows[:n]:
        t, ns = r["toxic"], r["neutral"]
        made += [(t, x, "human") for x in ns[:2]]
        if len(ns) > 1:
            made.append((ns[0], ns[1], "paraphrase"))
        made.append((t, corrupt(t), "corrupt-source"))
        made.append((t, corrupt(ns[0]), "corrupt-rewrite"))
        k = rng.random()
        if k < .2:
            made.append((t, rng.choice(allneutral), "random"))
        elif k < .5:
            words = set(t.lower().split())
            likeness = lambda c: len(words & set(c.lower().split())) / (5 + len(c.split()))
            best = max(rng.sample(allneutral, 60), key=likeness)
            made.append((t, best, "near"))
        elif k < .65:
            o, w = rng.choice(allneutral).split(), ns[0].split()
            i = rng.randrange(len(w) + 1)
            made.append((t, " ".join(w[:i] + o[len(o) // 2:]), "splice"))
    return [m for m in made if m[0].strip() and m[1].strip()]
tr = pairs(load(f"{data}/detox/train.jsonl"), 3500)
va = pairs(load(f"{data}/detox/valid.jsonl"), 500)
if outputs:
    for r in load(outputs):
        for k, v in r.items():
            if k != "toxic" and isinstance(v, str) and v.strip():
                va.append((r["toxic"], v, "model"))
model = SentenceTransformer(minilm, device="cpu")
texts = sorted({t for p in tr + va for t in p[:2]}, key=len)
e = dict(zip(texts, model.encode(texts, normalize_embeddings=True, batch_size=64)))
for name, ps in (("train", tr), ("valid", va)):
    with open(f"{out}/pairs.{name}.jsonl", "w", encoding="utf-8") as f:
        for a, b, kind in ps:
            row = {"a": a, "b": b, "cosine": round(max(0., float(e[a] @ e[b])), 4), "kind": kind}
            f.write(json.dumps(row, ensure_ascii=False) + "\n")
