"""How long until something happens: importing the library, the command line's help, loading the
embedded model warm, starting a notebook.

python benchmarks/start.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from race import race, ratios, release

ROOT = Path(__file__).resolve().parents[1]
CLASSES = (
    "import torch, bitsandbytes; from transformers import AutoModelForCausalLM, AutoTokenizer,"
    " LlamaForCausalLM, BitsAndBytesConfig"
)
LOAD = "import shfcas_lib as shf; shf.load_backbone(shf.load('params/quickstart.yaml').model)"


def python(*arguments: str):
    def run() -> None:
        subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True)

    return run


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.ipynb"
        empty.write_text(
            '{"cells": [{"cell_type": "code", "id": "a", "metadata": {}, "source": "1", "outputs":'
            ' [], "execution_count": null}], "metadata": {"kernelspec": {"name": "python3",'
            ' "display_name": "Python 3"}}, "nbformat": 4, "nbformat_minor": 5}'
        )
        table = ratios(
            race(
                {
                    "import torch": python("-c", "import torch"),
                    "import shfcas_lib": python("-c", "import shfcas_lib"),
                    "shfcas run --help": python("-m", "shfcas_lib", "run", "--help"),
                    "import torch and transformers' classes": python("-c", CLASSES),
                    "load the embedded model, warm": python("-c", LOAD),
                    "an empty notebook through Papermill": python(
                        "-m", "papermill", str(empty), str(Path(folder) / "out.ipynb")
                    ),
                }
            ),
            "import torch",
        )
    release("start", table)


if __name__ == "__main__":
    main()
