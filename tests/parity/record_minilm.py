"""Writes minilm.json: embeddings and cosines of texts by sentence-transformers with all-MiniLM-L6-v2.

    python record_minilm.py FOLDER
"""

import json
import sys
from pathlib import Path

from sentence_transformers import SentenceTransformer

TEXTS = [
    "You are an idiot, and your plan is stupid.",
    "I don't think that your plan will work.",
    "The train leaves at 10:45.",
    "Only an idiot would pay 300 dollars for that!",
    "Nobody should pay 300 dollars for that.",
    "",
    "é, Ünïcödé; naïve CAFÉ: 東京 and 😀",
    "A sentence that is longer than all the others, with several clauses, some of which say nothing new, so that padding matters.",
    "words that go on and on " * 80,
]


def main():
    model = SentenceTransformer(sys.argv[1], device="cpu")
    embeddings = model.encode(TEXTS, batch_size=len(TEXTS))
    rows = {
        "texts": TEXTS,
        "embeddings": [[round(float(x), 5) for x in row] for row in embeddings],
        "cosines": [[round(float(x), 6) for x in row] for row in embeddings @ embeddings.T],
    }
    (Path(__file__).parent / "minilm.json").write_text(json.dumps(rows, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
