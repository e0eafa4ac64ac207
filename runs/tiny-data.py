#!/usr/bin/env python3
"""Training data of `tiny`, pairs of a source and its rewrite.

    python3 runs/tiny-data.py heal --pairs train.jsonl --text paragraphs.txt --lexicon lexicon.txt --out heal.jsonl
    python3 runs/tiny-data.py distil --pairs heal.jsonl --sets sets.jsonl [--sets more.jsonl] --out distil.jsonl

heal: human rewrites; sentences that come back as they are; sentences that come back as they were before something rude was put in.
distil: what the larger model wrote and its verifier accepted, with some of the former.
"""
import argparse, json, pathlib, random, re

REMARKS = ["you idiot", "you moron", "dumbass", "stupid", "you pathetic loser", "asshole", "bitch", "jackass", "you clown", "you piece of shit"]
ADVERBS = ["fucking", "goddamn", "bloody", "damn", "freaking", "fuckin", "f**king"]
ADJECTIVES = ["stupid", "shitty", "crappy", "dumb", "idiotic", "pathetic", "moronic", "fucked up", "retarded"]


def put_in(random, sentence, lexicon):
    """The sentence with one to three rude insertions."""
    words = sentence.split(" ")
    for _ in range(random.choice([1, 1, 2, 3])):
        kind = random.random()
        place = random.randrange(1, len(words)) if len(words) > 1 else 0
        if kind < 0.35:
            words.insert(place, random.choice(ADVERBS))
        elif kind < 0.55 and any(word.lower() in ("the", "a", "this", "that", "your", "his", "her", "their", "my") for word in words):
            places = [i for i, word in enumerate(words) if word.lower() in ("the", "this", "that", "your", "his", "her", "their", "my")]
            if places:
                words.insert(random.choice(places) + 1, random.choice(ADJECTIVES))
        elif kind < 0.75:
            end = re.fullmatch(r"(.*?)([.!?]*)", words[-1])
            words[-1] = end[1] + random.choice([", ", " "]) + random.choice(REMARKS) + end[2]
        elif kind < 0.9:
            words.insert(0, random.choice(REMARKS).removeprefix("you ").capitalize() + ",")
        else:
            words.insert(place, random.choice(lexicon))
    return " ".join(words)


def sentences_of(paragraphs):
    for paragraph in paragraphs:
        yield from (s for s in re.split(r"(?<=[.!?]) +", paragraph) if 3 <= len(s.split(" ")) <= 22)


def heal(args, rng):
    lexicon = [word for word in args.lexicon.read_text().splitlines() if word.isalpha()]
    pairs = [json.loads(line) for line in args.pairs.read_text().splitlines()]
    rows = [(pair["toxic"], text) for pair in pairs for text in pair["neutral"]]
    sentences = list(sentences_of(args.text.read_text().splitlines()))
    rng.shuffle(sentences)
    rows += [(sentence, sentence) for sentence in sentences[:8_000]]
    rows += [(put_in(rng, sentence, lexicon), sentence) for sentence in sentences[8_000:20_000]]
    return [row for row in rows if len(row[0]) < 140]


def distil(args, rng):
    sets = [json.loads(line) for file in args.sets for line in file.read_text().splitlines()]
    rows = list(dict.fromkeys((one["anchor"], text) for one in sets for text in one["positives"][:4]))
    former = [json.loads(line) for line in args.pairs.read_text().splitlines()]
    former = [(row["toxic"], row["neutral"][0]) for row in former]
    same = [row for row in former if row[0] == row[1]]
    only_less = [row for row in former if row[0] != row[1] and set(row[1].split()) <= set(row[0].split())]
    others = [row for row in former if not set(row[1].split()) <= set(row[0].split())]
    rows += rng.sample(same, 1_200) + rng.sample(only_less, 1_500) + rng.sample(others, 1_500)
    return [row for row in rows if len(row[0]) < 150]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["heal", "distil"])
    for name in ("pairs", "out"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    for name in ("text", "lexicon"):
        parser.add_argument(f"--{name}", type=pathlib.Path)
    parser.add_argument("--sets", type=pathlib.Path, action="append", default=[])
    args = parser.parse_args()
    rng = random.Random(0)
    rows = {"heal": heal, "distil": distil}[args.stage](args, rng)
    rng.shuffle(rows)
    args.out.write_text("".join(json.dumps({"toxic": source, "neutral": [rewrite]}) + "\n" for source, rewrite in rows))
    print(len(rows), "pairs")


if __name__ == "__main__":
    main()
