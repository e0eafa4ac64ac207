#!/usr/bin/env python3
"""The data of default@2: which pairs, which neutral sentences, and the sets made of them. Called by default-2.sh; needs scikit-learn.

    default-2-sets.py pairs DATA N              pairs whose human rewrite says it anew, not just leaves words out
    default-2-sets.py neutral DATA              harmless sentences, most of them ones that a classifier doubts
    default-2-sets.py sets PAIRS SAMPLED NEUTRAL REWRITTEN
                                                contrastive sets, one a line
"""
import json, random, re, sys
from pathlib import Path


def load(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]


def words(text):
    return re.findall(r"\w+", text.lower())


def classifier(data):
    """P(toxic) by TF-IDF of words and characters and logistic regression; trained on the training data alone."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    texts, labels = [], []
    for row in load(data / "toxicity/train.jsonl"):
        texts.append(row["text"]), labels.append(row["label"])
    for row in load(data / "detox/train.jsonl"):
        for neutral in row["neutral"]:
            texts += [neutral, row["toxic"]]
            labels += [0, 1]
    of_words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, max_features=200_000)
    of_chars = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=3, sublinear_tf=True, max_features=300_000)
    lower = [text.lower() for text in texts]
    features = hstack([of_words.fit_transform(lower), of_chars.fit_transform(lower)]).tocsr()
    model = LogisticRegression(C=4.0, max_iter=300, solver="liblinear").fit(features, labels)

    def toxicity(texts):
        lower = [text.lower() for text in texts]
        return model.predict_proba(hstack([of_words.transform(lower), of_chars.transform(lower)]).tocsr())[:, 1]

    return toxicity


def says_it_anew(source, rewrite):
    old, new = words(source), words(rewrite)
    fits = 0.8 * len(old) <= len(new) <= 1.2 * len(old) or (len(new) <= 1.3 * len(old) and len(new) <= len(old) + 2)
    asks = "?" not in source or "?" in rewrite
    kept = sum(word in old for word in new) / max(1, len(new))
    return fits and asks and kept >= 0.55 and any(word not in old for word in new)


def pairs(data, number):
    rows = load(data / "detox/train.jsonl")
    random.Random(2).shuffle(rows)
    rows = [row for row in rows if 5 <= len(words(row["toxic"])) <= 28]
    found = [(row["toxic"], [text for text in row["neutral"] if says_it_anew(row["toxic"], text)]) for row in rows]
    toxicity = classifier(data)
    for source, rewrites in found:
        clean = [text for text, toxic in zip(rewrites, toxicity(rewrites)) if toxic < 0.35] if rewrites else []
        if clean and number > 0:
            number -= 1
            print(json.dumps({"toxic": source, "neutral": clean}))


def neutral(data):
    draw, toxicity = random.Random(3), classifier(data)
    # Every other comment: the rest counts false alarms.
    comments = (data / "text/comments.neutral.txt").read_text(encoding="utf-8").splitlines()[1::2]
    sentences = [part.strip('" ') for line in comments for part in re.split(r"(?<=[.!?])\s+", line.strip())]
    sentences = [text for text in sentences if 5 <= len(text.split()) <= 28 and not re.search(r"http|==|\[\[", text)]
    rewrites = [text for row in load(data / "detox/train.jsonl") for text in row["neutral"] if 5 <= len(text.split()) <= 28]
    rewrites = draw.sample(rewrites, 6000)
    for texts, low, high, doubted, others in [(sentences, 0.35, 0.9, 1160, 180), (rewrites, 0.2, 0.5, 510, 110)]:
        scored = list(zip(texts, toxicity(texts)))
        inside = [text for text, toxic in scored if low <= toxic < high]
        below = [text for text, toxic in scored if toxic < low]
        for text in draw.sample(inside, min(doubted, len(inside))) + draw.sample(below, others):
            print(" ".join(text.split()))


def printed(text):
    """Closed up, a capital first, a full stop last."""
    text = re.sub(r"\s+([.,!?;:…]+)(?=\s|$)", r"\1", text.strip())
    text = re.sub(r"\s+('s|'m|'re|'ve|'ll|'d|n't)\b", r"\1", text)
    text = re.sub(r"\bi\b(?!\.)", "I", text)
    text = text[:1].upper() + text[1:]
    return text + "." if text[-1:].isalnum() and len(text.split()) >= 3 else text


def distinct(texts):
    return list(dict.fromkeys(texts))


def sets(pairs_file, sampled, neutral_file, rewritten):
    draw, made = random.Random(5), []
    human = {row["toxic"]: row["neutral"] for row in load(pairs_file)}
    for row in load(sampled):
        anchor, known = row["anchor"], human.get(row["anchor"], [])
        samples = [text for text in row["positives"] if text not in known]
        # Those with a new word first.
        samples.sort(key=lambda text: all(word in words(anchor) for word in words(text)))
        positives = distinct(map(printed, known + samples[: max(1, 3 - len(known))]))
        negatives = [printed(text) if draw.random() < 0.7 else text for text in row["negatives"] if text != anchor]
        negatives = distinct(text for text in [anchor, *negatives] if text not in positives)
        made.append({"anchor": anchor, "positives": positives[:4], "negatives": negatives[:6]})
    letters = lambda text: re.sub(r"\W+", "", text.lower())
    outputs = [row["text"] for row in load(rewritten)]
    for text, output in zip(Path(neutral_file).read_text(encoding="utf-8").splitlines(), outputs, strict=True):
        # What the model would change needlessly.
        if letters(text) != letters(output):
            made.append({"anchor": text, "positives": [text], "negatives": [output]})
    draw.shuffle(made)
    for row in made:
        print(json.dumps(row))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["pairs", data, number]:
            pairs(Path(data), int(number))
        case ["neutral", data]:
            neutral(Path(data))
        case ["sets", pairs_file, sampled, neutral_file, rewritten]:
            sets(pairs_file, sampled, neutral_file, rewritten)
        case _:
            sys.exit(__doc__)
