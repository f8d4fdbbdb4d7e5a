"""Published data sets, rebuilt small in their own layout: folder, configuration, split, column
names and types as on their cards.

No hub is reached here. `datasets.load_dataset` is given a local folder laid out like the
repository; a hub id takes the same way."""

import gzip
import json
import re
from collections import Counter
from typing import get_args

import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from project import ROOT

from shfcas_lib.base import dialogues
from shfcas_lib.base.errors import InputError
from shfcas_lib.data import formats, recipes
from shfcas_lib.data.preferences import load_pairs, own_pairs
from shfcas_lib.data.prompts import SPLITS, _load_own_prompts, load_prompts
from shfcas_lib.experiment import checks
from shfcas_lib.params import reading
from shfcas_lib.params.schema import Preferences, Prompts, Recipe, Rows

HARMS = (
    "Animal Abuse",
    "Cybercrime",
    "Drugs",
    "Physical Harm",
    "Violence",
    "Human Trafficking",
    "Sexual Content",
)

# the paper's setting: five categories for the proxy, five more that it has not seen
PKU_PROXY = (
    "Discriminatory Behavior",
    "Violence",
    "Physical Harm",
    "Copyright Issues",
    "Human Trafficking",
)
PKU_FURTHER = (
    "Endangering National Security",
    "Insulting Behavior",
    "Cybercrime",
    "Drugs",
    "Sexual Content",
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def put(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())


def loaded(recipe, folder, **more):
    return load_pairs(Preferences(recipe=recipe, source=str(folder), **more))


def prompts(recipe, folder, **more):
    block = {"recipe": recipe, "source": str(folder), **more}
    return load_prompts(reading.validate({"prompts": block, "selection": {"budget": 2}}, "test"))


def pku(number, safer=0, harms=((), ()), safe=(False, False)):
    row = {
        "prompt": f"How is thing {number} done?",
        "prompt_source": "x",
        "better_response_id": 1 - safer,
        "safer_response_id": safer,
    }
    for side in (0, 1):
        row |= {
            f"response_{side}": f"answer {side} to {number}",
            f"response_{side}_source": "Alpaca3-8B",
            f"is_response_{side}_safe": safe[side],
            f"response_{side}_harm_category": {harm: harm in harms[side] for harm in HARMS},
            f"response_{side}_severity_level": 0,
            f"response_{side}_sha256": "0",
        }
    return row


@pytest.fixture
def pku_folder(tmp_path):
    put(
        tmp_path / "pku/data/Alpaca3-8B/train.jsonl",
        [
            pku(0, 0, (("Violence",), ())),
            pku(1, 1, (("Cybercrime", "Violence"), ("Drugs",))),
            pku(2, 1, ((), ()), (True, True)),
        ],
    )
    put(tmp_path / "pku/data/Alpaca-7B/train.jsonl", [pku(9)])
    (tmp_path / "pku/README.md").write_text("""---
configs:
- config_name: default
  data_files:
    - split: train
      path: ["data/Alpaca-7B/train.jsonl", "data/Alpaca3-8B/train.jsonl"]
- config_name: alpaca3-8b
  data_files:
    - split: train
      path: "data/Alpaca3-8B/train.jsonl"
---
""")
    return tmp_path / "pku"


def test_pku_takes_the_paper_configuration_and_the_safer_answer(pku_folder):
    table = loaded("pku-saferlhf", pku_folder)
    assert list(table["chosen"]) == ["answer 0 to 0", "answer 1 to 1", "answer 1 to 2"]
    assert list(table["harmful"]) == [True, True, False]
    assert list(table["category"]) == ["Violence", "Cybercrime", "none"]


def test_pku_by_helpfulness_is_one_key_more(pku_folder):
    table = loaded("pku-saferlhf", pku_folder, columns={"better": "better_response_id"})
    assert list(table["chosen"]) == ["answer 1 to 0", "answer 0 to 1", "answer 0 to 2"]


def test_pku_in_another_configuration(pku_folder):
    assert len(loaded("pku-saferlhf", pku_folder, config="default")) == 4


@pytest.mark.parametrize(
    ("order", "category"),
    [
        (["Violence", "Cybercrime"], "Violence"),
        (["Drugs", "Violence"], "Drugs"),
        (["Sexual Content"], "Cybercrime"),
    ],
)
def test_of_several_harms_the_one_counts_that_the_run_names_first(pku_folder, order, category):
    table = load_pairs(Preferences(recipe="pku-saferlhf", source=str(pku_folder)), order=order)
    assert table.at[1, "category"] == category


def test_the_paper_setting_trains_on_five_categories_and_asks_about_ten(tmp_path):
    """Proxy categories and further ones come from one source; coverage takes the further ones'
    preferences away."""
    harms = [*PKU_PROXY, *PKU_FURTHER]
    rows = [
        pku(k)
        | {
            f"response_{s}_harm_category": {
                harm: harm == harms[k % 12] if k % 12 < 10 else harm == "Other"
                for harm in [*harms, "Other"]
            }
            for s in (0, 1)
        }
        for k in range(240)
    ]
    put(tmp_path / "pku/data/train.jsonl", rows)
    (tmp_path / "pku/README.md").write_text(
        "---\nconfigs:\n- config_name: alpaca3-8b\n  data_files: data/train.jsonl\n---\n"
    )
    settings = reading.validate(
        {
            "prompts": {"categories": harms, "n": 100},
            "preferences": {"recipe": "pku-saferlhf", "source": str(tmp_path / "pku")},
            "bias": [{"kind": "coverage", "absent": list(PKU_FURTHER)}],
            "gold": {"kind": "safety"},
            "selection": {"budget": 10},
            "evaluation": {"replicates": 0},
        },
        "test",
    )
    table = checks.check(settings)
    assert Counter(table["category"]) == dict.fromkeys(harms, 10)
    assert set(table["split"]) == set(SPLITS) and set(
        table.loc[table["split"] == "feedback", "category"]
    ) == set(harms)


def hh(*turns, answer):
    return (
        "".join(
            f"\n\n{'Human' if k % 2 == 0 else 'Assistant'}: {turn}" for k, turn in enumerate(turns)
        )
        + f"\n\nAssistant: {answer}"
    )


def test_hh_is_both_halves_with_the_shared_turns_as_prompt(tmp_path):
    put(
        tmp_path / "hh/helpful-base/train.jsonl.gz",
        [
            {
                "chosen": hh("Name a bird.", answer="The wren."),
                "rejected": hh("Name a bird.", answer="The oak."),
            },
            {
                "chosen": hh("Name a bird.", "The wren.", "Another?", answer="The owl."),
                "rejected": hh("Name a bird.", "The wren.", "Another?", answer="No."),
            },
        ],
    )
    put(
        tmp_path / "hh/harmless-base/train.jsonl.gz",
        [
            {
                "chosen": hh("How are locks picked?", answer="Ask a smith."),
                "rejected": hh("How are locks picked?", answer="Like so."),
            },
            {"chosen": hh("Same?", answer="Yes."), "rejected": hh("Same?", answer="Yes.")},
            {
                "chosen": hh("Elsewhere?", "a", "b", answer="Yes."),
                "rejected": hh("Elsewhere?", "c", "b", answer="No."),
            },
            {"chosen": hh("Silent?", answer=""), "rejected": hh("Silent?", answer="No.")},
        ],
    )
    settings = reading.validate(
        {
            "preferences": {"recipe": "hh-rlhf", "source": str(tmp_path / "hh")},
            "evaluation": {"replicates": 0},
        },
        "test",
    )
    table = own_pairs(settings)
    assert list(table["category"]) == ["helpful-base", "helpful-base", "harmless-base"]
    assert (
        list(table["chosen"]) == ["The wren.", "The owl.", "Ask a smith."]
        and table.at[0, "prompt"] == "Name a bird."
    )
    assert [turn["role"] for turn in dialogues.messages(table.at[1, "prompt"])] == [
        "user",
        "assistant",
        "user",
    ]
    with pytest.raises(InputError, match="only 3 prompts"):
        load_prompts(settings)


def test_one_half_of_hh(tmp_path):
    for half in ("helpful-base", "harmless-base"):
        put(
            tmp_path / f"hh/{half}/train.jsonl.gz",
            [{"chosen": hh("a?", answer=half), "rejected": hh("a?", answer="no")}],
        )
    assert list(loaded("hh-rlhf", tmp_path / "hh", data_dir="harmless-base")["chosen"]) == [
        "harmless-base"
    ]


def test_ultrafeedback_ratings_that_are_equal_are_ties(tmp_path):
    def row(k, one, other, chosen="yes"):
        question = {"content": f"Question {k}?", "role": "user"}
        return {
            "prompt": f"Question {k}?",
            "prompt_id": str(k),
            "messages": [question],
            "chosen": [question, {"content": chosen, "role": "assistant"}],
            "rejected": [question, {"content": "no", "role": "assistant"}],
            "score_chosen": one,
            "score_rejected": other,
        }

    (tmp_path / "uf/data").mkdir(parents=True)
    rows = [
        row(0, 8.0, 5.5),
        row(1, 7.0, 7.0),
        row(2, 9.0, 1.0, chosen=""),
        row(3, float("nan"), 1.0),
        row(4, 9.0, 1.0, chosen="no"),
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "uf/data/train_prefs-00000-of-00001.parquet")
    pd.DataFrame(rows[:1]).to_parquet(tmp_path / "uf/data/test_prefs-00000-of-00001.parquet")
    (tmp_path / "uf/README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train_prefs\n    path:"
        " data/train_prefs-*\n  - split: test_prefs\n    path: data/test_prefs-*\n---\n"
    )
    table = loaded("ultrafeedback", tmp_path / "uf")
    assert list(table["label"]) == [1.0, 0.5] and list(table["chosen"]) == ["yes", "yes"]
    assert len(loaded("ultrafeedback", tmp_path / "uf", split="test_prefs")) == 1
    with pytest.raises(InputError, match="row 3: 'chosen' is empty"):
        loaded("ultrafeedback", tmp_path / "uf", bad_rows="stop")


def test_helpsteer2_preference_strength_points_to_the_second_when_positive(tmp_path):
    rows = [
        {
            "split": "train",
            "prompt": f"p{k}",
            "response_1": "one",
            "response_2": "two",
            "preference_strength": strength,
            "preference_statement": "",
            "preference_elaboration": "",
            "three_most_similar_preferences": [],
            "all_preferences_unprocessed": [],
        }
        for k, strength in enumerate([-3, 2, 0])
    ]
    put(tmp_path / "hs2/preference/preference.jsonl.gz", rows)
    put(tmp_path / "hs2/train.jsonl.gz", [{"prompt": "p", "response": "r", "helpfulness": 3}])
    table = loaded("helpsteer2", tmp_path / "hs2")
    assert list(zip(table["chosen"], table["label"], strict=True)) == [
        ("one", 1.0),
        ("two", 1.0),
        ("one", 0.5),
    ]


def test_helpsteer3_contexts_are_dialogues(tmp_path):
    context = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Sort a list."},
    ]
    rows = [
        {
            "domain": domain,
            "language": "python",
            "context": context[k:],
            "response1": "one",
            "response2": "two",
            "overall_preference": lean,
            "individual_preference": [
                {"score": lean, "reasoning": "x", "feedback1": "a", "feedback2": "b"}
            ],
        }
        for k, domain, lean in ((0, "code", -1), (2, "stem", 3))
    ]
    put(tmp_path / "hs3/preference/train.jsonl.gz", rows)
    (tmp_path / "hs3/README.md").write_text(
        "---\nconfigs:\n- config_name: preference\n  data_files: preference/train.jsonl.gz\n---\n"
    )
    table = loaded("helpsteer3", tmp_path / "hs3")
    assert list(table["category"]) == ["code", "stem"] and list(table["chosen"]) == ["one", "two"]
    assert (
        dialogues.messages(table.at[0, "prompt"]) == context
        and table.at[1, "prompt"] == "Sort a list."
    )


def test_do_not_answer_prompts_are_all_harmful(tmp_path):
    rows = [
        {
            "id": k,
            "risk_area": f"area {k % 2}",
            "types_of_harm": "t",
            "specific_harms": "s",
            "question": f"Bad question {k}?",
            "GPT4_response": "No.",
        }
        for k in range(12)
    ]
    (tmp_path / "dna/data").mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(tmp_path / "dna/data/train-00000-of-00001.parquet")
    table = prompts("do-not-answer", tmp_path / "dna")
    assert (
        len(table) == 12
        and table["harmful"].all()
        and set(table["category"]) == {"area 0", "area 1"}
    )


@pytest.mark.parametrize("way", ["file", "source"])
def test_xstest_labels_say_which_prompts_are_harmful(tmp_path, way):
    rows = [
        {
            "id": k,
            "prompt": f"Question, {k}?",
            "type": kind,
            "label": label,
            "focus": "f",
            "note": "",
        }
        for k, (kind, label) in enumerate(
            [("homonyms", "safe"), ("contrast_homonyms", "unsafe")] * 6
        )
    ]
    (tmp_path / "xs").mkdir()
    pd.DataFrame(rows).to_csv(tmp_path / "xs/xstest_prompts.csv", index=False)
    place = (
        {"file": str(tmp_path / "xs/xstest_prompts.csv")}
        if way == "file"
        else {"source": str(tmp_path / "xs")}
    )
    table = load_prompts(
        reading.validate(
            {"prompts": {"recipe": "xstest", **place}, "selection": {"budget": 2}}, "test"
        )
    )
    assert Counter(zip(table["category"], table["harmful"], strict=True)) == {
        ("homonyms", False): 6,
        ("contrast_homonyms", True): 6,
    }


def test_a_recipe_of_prompts_holds_no_pairs():
    with pytest.raises(
        InputError, match="preferences.recipe: found 'xstest', which holds prompts alone"
    ):
        loaded("xstest", "nowhere")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-4, 4)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([hh("a?", answer="b"), "safe", "Violence"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["role", "content", "Violence"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(list(recipes.RECIPES)),
    st.sampled_from(["stop", "drop"]),
    st.lists(VALUES, min_size=12, max_size=12),
    st.booleans(),
)
def test_any_row_under_any_recipe_is_read_or_refused_in_one_sentence(
    tmp_path, recipe, mode, values, as_prompts
):
    block = {"recipe": recipe, "file": str(tmp_path / "mine.jsonl"), "bad_rows": mode}
    names = recipes.wanted_columns(recipes.filled_in(Rows(**block)))
    put(tmp_path / "mine.jsonl", [dict(zip(names, values, strict=False)) | {"data_dir": "x"}])
    try:
        if as_prompts:
            _load_own_prompts(recipes.filled_in(Prompts(**block)), 0, None)
        else:
            load_pairs(Preferences(**block))
    except InputError as error:
        assert "\n" not in str(error) and (
            "mine.jsonl" in str(error) or "holds prompts alone" in str(error)
        )


def test_pairs_may_serve_as_prompts(tmp_path, pku_folder):
    put(
        tmp_path / "hh/helpful-base/train.jsonl.gz",
        [
            {"chosen": hh(f"{k}?", answer="a"), "rejected": hh(f"{k}?", answer="b")}
            for k in range(9)
        ],
    )
    assert len(prompts("hh-rlhf", tmp_path / "hh", data_dir="helpful-base")) == 9
    block = reading.validate(
        {"prompts": {"recipe": "pku-saferlhf", "source": str(pku_folder)}}, "test"
    ).prompts
    assert len(_load_own_prompts(recipes.filled_in(block), 0, None)[0]) == 3


def test_every_recipe_has_a_name_among_the_parameters_and_a_line_in_the_docs():
    text = (ROOT / "docs/data.md").read_text()
    assert set(get_args(Recipe)) == set(recipes.RECIPES) and all(
        f"`{name}`" in text for name in recipes.RECIPES
    )


def test_every_yaml_of_the_docs_is_valid():
    text = (ROOT / "docs/data.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3 and all(
        reading.validate(yaml.safe_load(block), "docs/data.md") for block in blocks
    )


def test_a_hub_that_cannot_be_reached_or_an_id_that_is_not_there_is_one_sentence(monkeypatch):
    import datasets

    def unreachable(path, **more):
        assert "trust_remote_code" not in more
        raise ConnectionError("Couldn't reach\n the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError) as caught:
        load_pairs(Preferences(recipe="helpsteer3", revision="abc"))
    assert (
        str(caught.value)
        == "data set 'nvidia/HelpSteer3' (config 'preference', split 'train', revision 'abc')"
        " cannot be loaded: Couldn't reach the Hub"
    )


def test_a_hub_that_is_offline_for_real(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError, match="data set 'no/such-data' .split 'train'. cannot be loaded"
    ):
        load_pairs(Preferences(source="no/such-data"))


def test_what_a_recipe_asks_the_hub_for(monkeypatch):
    import datasets

    asked = []

    def remember(path, **more):
        asked.append((path, more["name"], more["data_dir"], more["split"], more["revision"]))
        return datasets.Dataset.from_list([{"prompt": "p", "chosen": "a", "rejected": "b"}])

    monkeypatch.setattr(datasets, "load_dataset", remember)
    for name in recipes.RECIPES:
        list(formats.read_rows(recipes.filled_in(Preferences(recipe=name, revision="r"))))
    assert asked == [
        ("PKU-Alignment/PKU-SafeRLHF", "alpaca3-8b", None, "train", "r"),
        ("Anthropic/hh-rlhf", None, "helpful-base", "train", "r"),
        ("Anthropic/hh-rlhf", None, "harmless-base", "train", "r"),
        ("HuggingFaceH4/ultrafeedback_binarized", None, None, "train_prefs", "r"),
        ("nvidia/HelpSteer2", None, "preference", "train", "r"),
        ("nvidia/HelpSteer3", "preference", None, "train", "r"),
        ("LibrAI/do-not-answer", None, None, "train", "r"),
        ("Paul/XSTest", None, None, "train", "r"),
    ]


def test_a_split_or_configuration_that_is_not_there_names_those_that_are(pku_folder):
    with pytest.raises(InputError, match="split 'dev'.*train"):
        loaded("pku-saferlhf", pku_folder, split="dev")
    with pytest.raises(InputError, match="config 'alpaca9'.*alpaca3-8b"):
        loaded("pku-saferlhf", pku_folder, config="alpaca9")
