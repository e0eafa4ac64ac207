#!/usr/bin/env python3
"""The toxic sentences that default@3 was trained on rewrites of, one a line: posts of many data sets, and sources of ParaDetox.

    default-3-sources.py ROUND POSTS PAIRS   sentences of round 1 or 2, no one twice: so many of posts, and of pairs

Variables: DATA and JUDGEMENTS, as for people.py. Held-out sentences and those that people judged are left out. Needs scikit-learn.
"""
import csv, json, os, random, re, sys
from pathlib import Path

import people

DATA = Path(os.environ["DATA"])
# Shares of the data sets: those with much that is insulting in so many words, little that is hostile without.
SHARES = {"toxic-spans": 0.37, "davidson": 0.24, "tweeteval-offensive": 0.17, "dynabench": 0.12, "surge-toxicity": 0.07, "tweeteval-hate": 0.03}


def rows(path):
    return [json.loads(line) for line in (DATA / path).read_text(encoding="utf-8").splitlines()]


def letters(text):
    return re.sub(r"\W+", " ", text.lower()).strip()


def sentences(path):
    """(sentence, data set) of toxic posts, without addresses and names at the front."""
    for row in rows(path):
        if row["label"]:
            text = re.sub(r"\bhttps?://\S+|&\w+;", " ", row["text"])
            text = " ".join(re.sub(r"^(RT )?(@\w+:? )+", "", text).split())
            for sentence in re.split(r"(?<=[.!?])\s+", text):
                is_ascii = sum(map(str.isascii, sentence)) > 0.97 * len(sentence)
                if is_ascii and fits(sentence) and not re.search(r"http|@|#\w+ #", sentence):
                    yield sentence, row["source"]


def fits(sentence):
    return 5 <= len(people.words(sentence)) <= 26


def held_out():
    for row in rows("detox/valid.jsonl"):
        yield from [row["toxic"], *row["neutral"]]
    for sentence, _ in sentences("toxicity/valid.jsonl"):
        yield sentence
    for path in Path(os.environ["JUDGEMENTS"]).glob("*/English.tsv"):
        with open(path, encoding="utf-8", newline="") as file:
            yield from (row["toxic_sentence"] for row in csv.DictReader(file, delimiter="\t"))


def main(number, posts, pairs):
    draw, banned = random.Random(21), set(map(letters, held_out()))
    of_set = {}
    for sentence, source in sentences("toxicity/train.jsonl"):
        if letters(sentence) not in banned:
            of_set.setdefault(source, {})[sentence] = None
    chosen = []
    for source, share in SHARES.items():
        found = draw.sample(list(of_set[source]), len(of_set[source]))
        count = round(share * posts)
        toxic = people.toxicity_of()(found) > 0.6
        chosen += [sentence for sentence, is_toxic in zip(found, toxic) if is_toxic][(number - 1) * count : number * count]
    sources = [people.closed_up(row["toxic"]) for row in rows("detox/train.jsonl")]
    sources = [text for text in sources if fits(text) and letters(text) not in banned]
    draw.shuffle(sources)
    chosen += sources[(number - 1) * pairs : number * pairs]
    draw.shuffle(chosen)
    print("\n".join(chosen))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*map(int, sys.argv[1:]))
