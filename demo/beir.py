"""Writes the demo's texts and questions in the files of BEIR: `python -m demo.beir FOLDER`.

The demo has a few questions, made by hand. With `--names` every documented name is one, in words
("tempfile mkdtemp"), whose answer is its text: thousands, which show small differences between models.

Then, for example: `elanus eval FOLDER --model-dir .models --model sentence-transformers/all-MiniLM-L6-v2`.
"""

import argparse
import json
import re
from pathlib import Path

from demo import library
from demo.corpus import Document, collect


def named(document: Document) -> library.Question:
    """What `collections.OrderedDict.move_to_end` is: collections Ordered Dict move to end."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", document.name)
    return library.Question(" ".join(words), frozenset([document.name]))


def write(folder: Path, names: bool = False) -> tuple[int, int]:
    """Documents and questions written."""
    documents = collect()
    questions = [named(document) for document in documents] if names else library.questions(documents)
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    with open(folder / "corpus.jsonl", "w") as corpus:
        for document in documents:
            corpus.write(json.dumps({"_id": document.name, "title": "", "text": document.text}) + "\n")
    with open(folder / "queries.jsonl", "w") as asked, open(folder / "qrels" / "test.tsv", "w") as judged:
        judged.write("query-id\tcorpus-id\tscore\n")
        for number, question in enumerate(questions):
            asked.write(json.dumps({"_id": str(number), "text": question.ask}) + "\n")
            for answer in sorted(question.answers):
                judged.write(f"{number}\t{answer}\t1\n")
    return len(documents), len(questions)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--names", action="store_true", help="ask for every document by its name")
    arguments = parser.parse_args()
    documents, questions = write(arguments.folder, arguments.names)
    print(f"{documents} documents, {questions} questions")
