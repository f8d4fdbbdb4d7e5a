"""What leaves this library, seen from outside: the programs of the cards in a process that cannot
import it, and a small benchmark."""

import json
import os
import subprocess
import sys

# Every card's own program runs as it stands; then its names score or read texts of the test's.
CLEAN = """
import json, os, re, sys

REFUSED = "shfcas_lib"


class Refuses:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == REFUSED:
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, Refuses)
given = json.loads(open(sys.argv[1]).read())
found = {}
for form, folder in given["folders"].items():
    os.chdir(folder)
    names = {}
    exec(re.search(r"```python\\n(.*?)```", open("README.md").read(), re.S)[1], names)
    import torch

    if "policy" in form:
        ids = torch.tensor([given["ids"]])
        with torch.inference_mode():
            logits = names["model"](ids).logits[0].double()
        found[form] = torch.log_softmax(logits, -1)[-1].tolist()
        continue
    rows = [names["ids"](*text) for text in given["texts"]]
    for side in ("left", "right"):
        batch = names["tokenizer"].pad({"input_ids": rows}, padding_side=side, return_tensors="pt")
        with torch.inference_mode():
            found[f"{form} {side}"] = names["model"](**batch).logits[:, 0].tolist()
assert not any(name.startswith(REFUSED) for name in sys.modules)
print("FOUND", json.dumps(found))
"""


def read_cleanly(tmp_path, given):
    """What the cards' programs find in a process of their own."""
    (tmp_path / "given.json").write_text(json.dumps(given))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CLEAN, str(tmp_path / "given.json")],
        cwd=tmp_path,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr[-3000:]
    return json.loads(said.stdout.rpartition("FOUND ")[2])


def styled(folder, rows=6):
    """A small set in RM-Bench's layout: words are chosen, figures rejected."""
    folder.mkdir()
    for name in ("chat", "safety"):
        entries = []
        for k in range(rows):
            plain, long = f"the cat {k}", f"the cat {k} sat on the mat and the dog ran"
            bad = [f"{k} 17", f"{k} 17 99 42 17 99 42 17 99", f"# {k}\n* 17\n* 99"]
            entries.append(
                {
                    "prompt": f"question {k} of {name}",
                    "chosen": [plain, long, f"# {long}"],
                    "rejected": bad,
                }
            )
        (folder / f"{name}.json").write_text(json.dumps(entries))
    return folder
