#!/usr/bin/env python3
"""What people would give a rewrite, predicted by trees fitted to public judgements of rewrites. Compares adapters and picks training data; the
program knows nothing of it.

    people.py systems                     people's mean and the predicted one of each judged system
    people.py predict SOURCES OUTPUTS...  the predicted mean of each file: texts, or results of `detoxd rewrite --json`, a line a source
    people.py sets SOURCES RESULTS HARMLESS
                                          contrastive sets out of `detoxd rewrite --json --explain` (and of human rewrites where there are any):
                                          the best rewrites as positives, the source and the worst ones as negatives; and harmless sentences as
                                          their own rewrites

Variables:
    JUDGEMENTS  folder with SYSTEM/English.tsv: toxic_sentence, neutral_sentence, fluency_score, content_score, toxic_pairwise_score
    DATA        folder with detox/train.jsonl and toxicity/train.jsonl
    MINILM      folder or name of all-MiniLM-L6-v2
    SERVICE     host:port of a running `detoxd serve`, for likelihoods under the base model

Needs scikit-learn and sentence-transformers. A sentence that was judged is only ever predicted by trees that have not seen it.
"""
import concurrent.futures, csv, functools, http.client, importlib.util, json, math, os, random, re, sys, threading, time
from pathlib import Path

import numpy as np
from sklearn.ensemble import ExtraTreesRegressor

HERE = Path(__file__).parent
FOLDS = 10
NEGATION = re.compile(r"\b(not|no|never|none|nothing|nobody|cannot|without|\w+nt)\b|n ?['’] ?t\b", re.I)


def recipe():
    """The recipe of default@2: its classifier of toxicity, and how human rewrites are spelt."""
    spec = importlib.util.spec_from_file_location("sets", HERE / "default-2-sets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words(text):
    return re.findall(r"\w+", text.lower())


def closed_up(text):
    return re.sub(r"\s+", " ", text).strip()


# Features


@functools.cache
def toxicity_of():
    return recipe().classifier(Path(os.environ["DATA"]))


@functools.cache
def encoder():
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(os.environ.get("MINILM", "sentence-transformers/all-MiniLM-L6-v2"), device="cpu")


def embedded(texts):
    distinct = sorted(set(texts))
    vectors = encoder().encode(distinct, normalize_embeddings=True, batch_size=128)
    place = {text: index for index, text in enumerate(distinct)}
    return np.stack([vectors[place[text]] for text in texts])


KNOWN = {}
CONNECTION = threading.local()


def negative_log_likelihood(text):
    """Under the bare base model, a token after the first; a text without two tokens is as unlikely as a bad one."""
    if not text.strip():
        return 4.0
    if not hasattr(CONNECTION, "to"):
        CONNECTION.to = http.client.HTTPConnection(os.environ.get("SERVICE", "127.0.0.1:8080"), timeout=60)
    for _ in range(60):
        CONNECTION.to.request("POST", "/score", json.dumps({"text": text}), {"content-type": "application/json"})
        answer = CONNECTION.to.getresponse()
        body = json.loads(answer.read())
        if answer.status == 200:
            perplexity = body["perplexity"]["base"]
            return math.log(perplexity) if perplexity else 4.0
        time.sleep(0.2)
    sys.exit(f"the service answers {answer.status}: {body}")


def likelihoods(texts):
    todo = sorted({text for text in texts if text not in KNOWN})
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        KNOWN.update(zip(todo, pool.map(negative_log_likelihood, todo)))
    return np.array([KNOWN[text] for text in texts])


def features(sources, outputs, known=None):
    """A row for each output. `known`: likelihoods of outputs, not a number where they are not known."""
    sources, outputs = [closed_up(text) for text in sources], [closed_up(text) for text in outputs]
    similarity = np.clip((embedded(sources) * embedded(outputs)).sum(1), 0, 1)
    toxic_before, toxic = toxicity_of()(sources), toxicity_of()(outputs)
    before = likelihoods(sources)
    after = np.full(len(outputs), np.nan) if known is None else np.array(known, float)
    missing = np.isnan(after)
    if missing.any():
        after[missing] = likelihoods([text for text, is_missing in zip(outputs, missing) if is_missing])
    rows = []
    for at, (source, output) in enumerate(zip(sources, outputs)):
        old, new = words(source), words(output)
        own, lost = [word for word in new if word not in old], [word for word in old if word not in new]
        ratio = len(new) / max(1, len(old))
        rows.append({
            "similarity": similarity[at],
            "toxicity": toxic[at],
            "less toxic by": toxic_before[at] - toxic[at],
            "likelihood": after[at],
            "less likely by": after[at] - before[at],
            "length": ratio,
            "longer by": max(0, ratio - 1),
            "shorter by": max(0, 1 - ratio),
            "new words": len(own) / max(1, len(old)),
            "lost words": len(lost) / max(1, len(old)),
            "only leaves out": bool(new) and not own,
            "copied": source.lower() == output.lower(),
            "question lost": "?" in source and "?" not in output,
            "denial lost": bool(NEGATION.search(source)) and not NEGATION.search(output),
            "ends": output[-1:] in (".", "!", "?", '"', "'"),
            "begins": output[:1].isupper(),
            "words": len(old),
        })
    return rows


# Trees


def judgements():
    """(system, source, output, the product of the three judgements) of every output."""
    rows = []
    for path in sorted(Path(os.environ["JUDGEMENTS"]).glob("*/English.tsv")):
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                scores = [row["fluency_score"], row["content_score"], row["toxic_pairwise_score"]]
                if all(scores):
                    rows.append((path.parent.name, row["toxic_sentence"], row["neutral_sentence"] or "", math.prod(map(float, scores))))
    return rows


class People:
    def __init__(self):
        self.judged = judgements()
        self.rows = features([row[1] for row in self.judged], [row[2] for row in self.judged])
        matrix, people = self.matrix(self.rows), np.array([row[3] for row in self.judged])
        sentences = sorted({closed_up(row[1]) for row in self.judged})
        random.Random(0).shuffle(sentences)
        self.fold = {sentence: at % FOLDS for at, sentence in enumerate(sentences)}
        folds = np.array([self.fold[closed_up(row[1])] for row in self.judged])
        fit = lambda rows: ExtraTreesRegressor(600, min_samples_leaf=6, max_features=0.5, random_state=0, n_jobs=2).fit(matrix[rows], people[rows])
        self.without = [fit(folds != fold) for fold in range(FOLDS)]
        self.whole = fit(folds >= 0)

    @staticmethod
    def matrix(rows):
        return np.array([list(row.values()) for row in rows], float)

    def predict(self, sources, rows):
        matrix = self.matrix(rows)
        predicted = self.whole.predict(matrix)
        folds = np.array([self.fold.get(closed_up(source), -1) for source in sources])
        for fold, trees in enumerate(self.without):
            if (folds == fold).any():
                predicted[folds == fold] = trees.predict(matrix[folds == fold])
        return predicted


# Commands


def systems():
    people = People()
    predicted = people.predict([row[1] for row in people.judged], people.rows)
    given = np.array([row[3] for row in people.judged])
    names = np.array([row[0] for row in people.judged])
    means = sorted(((given[names == name].mean(), predicted[names == name].mean(), name) for name in set(names)), reverse=True)
    for by_people, by_trees, name in means:
        print(f"{name:28} people {by_people:.3f}  predicted {by_trees:.3f}")
    of_systems = np.corrcoef([mean[0] for mean in means], [mean[1] for mean in means])[0, 1]
    print(f"correlation: {np.corrcoef(given, predicted)[0, 1]:.2f} of outputs, {of_systems:.2f} of systems")


def read_outputs(path):
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines] if path.endswith((".json", ".jsonl")) else lines


def predict(sources_file, *files):
    sources, people = read_outputs(sources_file), People()
    for file in files:
        rows = features(sources, read_outputs(file))
        predicted = people.predict(sources, rows)
        mean = lambda key: np.mean([float(row[key]) for row in rows])
        toxic = np.mean([row["toxicity"] >= 0.5 for row in rows])
        print(f"{Path(file).name}: predicted {predicted.mean():.3f} ± {predicted.std() / len(rows) ** 0.5:.3f}, similarity {mean('similarity'):.3f}, "
              f"toxic {toxic:.3f}, length {mean('length'):.2f}, only leaves out {mean('only leaves out'):.2f}", flush=True)


def candidates(sources, results, human):
    """(source, text, likelihood or not a number) of every accepted candidate and human rewrite."""
    printed = recipe().printed
    for source, result in zip(sources, results, strict=True):
        for segment in result["segments"]:
            for one in segment.get("candidates") or []:
                yield source, one["text"], math.nan if one["base_nll"] is None else one["base_nll"]
        for text in human.get(source, [])[:3]:
            yield source, printed(text), math.nan


def sets(sources_file, results_file, harmless_file):
    sources = read_outputs(sources_file)
    results = [json.loads(line) for line in Path(results_file).read_text(encoding="utf-8").splitlines()]
    human = {}
    for line in (Path(os.environ["DATA"]) / "detox/train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        human.setdefault(closed_up(row["toxic"]), []).extend(row["neutral"])
    found = list(candidates(sources, results, human))
    rows = features([one[0] for one in found], [one[1] for one in found], [one[2] for one in found])
    predicted = People().predict([one[0] for one in found], rows)
    by_source = {}
    for at, (source, _, _) in enumerate(found):
        by_source.setdefault(source, []).append(at)
    made = [contrast(source, found, rows, predicted, places) for source, places in by_source.items()]
    made = [one for one in made if one] + [{"anchor": text, "positives": [text], "negatives": []} for text in read_outputs(harmless_file)]
    random.Random(5).shuffle(made)
    for row in made:
        print(json.dumps(row))


def contrast(source, found, rows, predicted, places):
    """The best rewrites of a source, at most two, against the source and the three worst; none where the best is not good."""
    fit = [at for at in places if is_fit(rows[at])]
    best = max((predicted[at] for at in fit), default=0)
    if best < 0.79:
        return None
    # Of those as good as the best the most fluent ones.
    fit = sorted((at for at in fit if predicted[at] >= best - 0.03), key=lambda at: predicted[at] - 0.02 * rows[at]["likelihood"], reverse=True)
    positives = list(dict.fromkeys(found[at][1] for at in fit))[:2]
    worst = sorted((at for at in places if predicted[at] < best - 0.09), key=lambda at: predicted[at])
    worst = [found[at][1] for at in worst if found[at][1] not in positives]
    return {"anchor": source, "positives": positives, "negatives": list(dict.fromkeys([source, *worst[:3]]))}


def is_fit(row):
    return row["toxicity"] < 0.35 and row["similarity"] >= 0.6 and row["length"] <= 1.25 and not row["question lost"]


if __name__ == "__main__":
    commands = {"systems": (systems, 0), "predict": (predict, 2), "sets": (sets, 3)}
    command, least = commands.get(sys.argv[1] if len(sys.argv) > 1 else "", (None, 0))
    if command is None or len(sys.argv) - 2 < least:
        sys.exit(__doc__)
    command(*sys.argv[2:])
