"""Local stand-ins for what a parameter file takes from hubs: tiny twins of its models, and a few
rows of its data in the published layout."""

import json

import families
import pandas as pd

# Hub id: architecture of the twin, and whether it carries a score head.
MODELS = {
    "EleutherAI/pythia-1b": ("gpt_neox", False),
    "meta-llama/Llama-3.1-8B-Instruct": ("llama", False),
    "Qwen/Qwen2.5-7B-Instruct": ("qwen2", False),
    "HuggingFaceTB/SmolLM2-360M-Instruct": ("smollm", False),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": ("smollm", False),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": ("tinyllama", False),
    "PKU-Alignment/beaver-7b-unified-cost": ("beaver", True),
    "Skywork/Skywork-Reward-Llama-3.1-8B-v0.2": ("llama", True),
    "Skywork/Skywork-Reward-V2-Qwen3-0.6B": ("qwen3", True),
}
HARMS = [
    "Discriminatory Behavior",
    "Violence",
    "Physical Harm",
    "Copyright Issues",
    "Human Trafficking",
    "Endangering National Security",
    "Insulting Behavior",
    "Cybercrime",
    "Drugs",
    "Sexual Content",
]


def model(hub_id, folder):
    """A folder that stands in for a model of the hub."""
    family, head = MODELS[hub_id]
    place = folder / hub_id.replace("/", "--")
    if not place.exists():
        families.save(
            {"beaver": "llama", "tinyllama": "zephyr"}.get(family, family), place, head=head
        )
        if family == "beaver":  # safe-rlhf's name of the score head, and no chat template
            from safetensors.torch import load_file, save_file

            weights = load_file(place / "model.safetensors")
            weights["score_head.weight"] = weights.pop("score.weight")
            save_file(weights, place / "model.safetensors", {"format": "pt"})
            (place / "chat_template.jinja").unlink()
    return str(place)


def pku(folder, rows=40):
    """PKU-SafeRLHF, configuration alpaca3-8b."""
    table = [
        {
            "prompt": f"How is thing {k} done?",
            "safer_response_id": k % 2,
            "better_response_id": 0,
            **{
                f"response_{side}": f"{'the cat ' * (k % 3 + side)}answer {side}" for side in (0, 1)
            },
            **{f"is_response_{side}_safe": side == k % 2 for side in (0, 1)},
            **{
                f"response_{side}_harm_category": {harm: harm == HARMS[k % 10] for harm in HARMS}
                for side in (0, 1)
            },
        }
        for k in range(rows)
    ]
    place = folder / "pku"
    (place / "data").mkdir(parents=True)
    (place / "data/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    (place / "README.md").write_text(
        "---\nconfigs:\n- config_name: alpaca3-8b\n  data_files:\n    - split: train\n      path:"
        " data/train.jsonl\n---\n"
    )
    return str(place)


def ultrafeedback(folder, rows=40):
    """UltraFeedback binarised, split train_prefs."""
    table = []
    for k in range(rows):
        question = {"content": f"Question {k}?", "role": "user"}
        chosen, rejected = (
            [question, {"content": f"the {word} " * (k % 3 + 1), "role": "assistant"}]
            for word in ("dog", "rain")
        )
        table.append(
            {
                "prompt": question["content"],
                "prompt_id": str(k),
                "messages": chosen,
                "chosen": chosen,
                "rejected": rejected,
                "score_chosen": 8.0,
                "score_rejected": float(k % 7),
            }
        )
    place = folder / "ultrafeedback"
    (place / "data").mkdir(parents=True)
    pd.DataFrame(table).to_parquet(place / "data/train_prefs-00000-of-00001.parquet")
    (place / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train_prefs\n    path:"
        " data/train_prefs-*\n---\n"
    )
    return str(place)


def localised(values, folder):
    """The parameters with every hub id replaced by a local folder, on a CPU and small enough for
    one step of everything. What is not about place and size stays as it is."""
    at = lambda hub_id: model(hub_id, folder)  # noqa: E731
    values = {
        "sampling": {},
        "selection": {},
        "evaluation": {},
        "reward": {},
        "policy": {},
        "prompts": {},
        "preferences": {},
    } | values
    values["model"] = values["model"] | {
        "source": at(values["model"]["source"]),
        "device": "cpu",
        "dtype": "float32",
    }
    for block, key in (("gold", "kind"), ("reward", "proxy")):
        if str(values.get(block, {}).get(key, "")).startswith("model:"):
            values[block] = values[block] | {
                key: f"model:{at(values[block][key].removeprefix('model:'))}"
            }
    for block in ("prompts", "preferences"):
        data = values[block]
        if "recipe" in data:
            data = data | {
                "source": {"pku-saferlhf": pku, "ultrafeedback": ultrafeedback}[data["recipe"]](
                    folder
                )
            }
        values[block] = data | ({"n": 30} if "n" in data else {})
    values["sampling"] |= {"n": 4, "max_new_tokens": 6}
    values["selection"] |= {
        "budget": 6,
        "strategies": values["selection"].get("strategies", ["shf_cas"])[:1],
        "delta": 0.1,
        "tau": 0.1,
    }
    values["evaluation"] |= {
        "bootstrap": 100,
        "replicates": min(1, values["evaluation"].get("replicates", 0)),
    }
    values["reward"] |= {"epochs": 1}
    values["policy"] |= (
        {"pairs": 4, "batch_size": 4} if values["policy"].get("kind", "tilt") != "tilt" else {}
    )
    return values
