"""Writes the demo's texts and questions in the files of BEIR: `python -m demo.beir FOLDER`.

Then, for example: `elanus eval FOLDER --model-dir .models --model sentence-transformers/all-MiniLM-L6-v2`.
"""

import argparse
import json
from pathlib import Path

from demo import library
from demo.corpus import collect


def write(folder: Path) -> tuple[int, int]:
    """Documents and questions written."""
    documents = collect()
    questions = library.questions(documents)
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
    documents, questions = write(parser.parse_args().folder)
    print(f"{documents} documents, {questions} questions")
