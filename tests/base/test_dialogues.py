"""A prompt of several turns is one string, and comes back as it was; text that merely looks like
one stays text."""

import copy
import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shfcas_lib import refine
from shfcas_lib.base import dialogues
from shfcas_lib.data.prompts import load_prompts
from shfcas_lib.experiment import proxy_data
from shfcas_lib.params import reading
from shfcas_lib.params.schema import Policy, Reward
from shfcas_lib.storage import runs
from shfcas_lib.training import policy as policy_training

TURNS = [
    {"role": "user", "content": "Name a bird."},
    {"role": "assistant", "content": "The wren."},
    {"role": "user", "content": "Another?"},
]

contents = (
    st.text(max_size=20)
    | st.just(dialogues.encode(TURNS))
    | st.just('[{"role": "user", "content": "x"}]')
)
turns = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": contents}),
    min_size=1,
    max_size=5,
)


@settings(max_examples=200, deadline=None)
@given(turns)
def test_turns_survive_the_way_to_a_string_and_back(found):
    assert dialogues.messages(dialogues.encode(found)) == found


@settings(max_examples=200, deadline=None)
@given(contents)
def test_any_text_of_one_turn_comes_back_as_that_text(text):
    """Even a request that is itself the JSON of a dialogue."""
    prompt = dialogues.encode([{"role": "user", "content": text}])
    assert (
        dialogues.messages(prompt) == [{"role": "user", "content": text}]
        and dialogues.plain(prompt) == text
    )


def test_a_request_of_one_turn_is_its_own_text():
    assert dialogues.encode(TURNS[:1]) == "Name a bird."


def test_plain_names_the_speakers():
    assert (
        dialogues.plain(dialogues.encode(TURNS))
        == "User: Name a bird.\n\nAssistant: The wren.\n\nUser: Another?"
    )


@pytest.mark.parametrize(
    "text",
    [
        '[{"role": "user", "content": "a"}',
        '[{"role": "tool", "content": "a"}]',
        '[{"role": "user", "content": 3}]',
        '[{"role": "user"}]',
        json.dumps(TURNS, indent=1),
        '[{"role": ' * 5000,
        "[]",
        "",
    ],
    ids=["open", "role", "number", "half", "indented", "deep", "empty list", "empty"],
)
def test_what_encode_did_not_write_is_one_turn_of_text(text):
    assert dialogues.messages(text) == [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("text", "roles"),
    [
        ("\n\nHuman: a\n\nAssistant: b", ["user", "assistant"]),
        ("Human: a\n\nAssistant:", ["user", "assistant"]),
        (
            "\n\nHuman: He said Human: no\nAssistant: x\n\nAssistant: b\n\nHuman: c",
            ["user", "assistant", "user"],
        ),
    ],
)
def test_transcripts(text, roles):
    assert [turn["role"] for turn in dialogues.from_transcript(text)] == roles


@pytest.mark.parametrize("text", ["", "no speakers", "Before.\n\nHuman: a", "human: a"])
def test_text_that_is_no_transcript(text):
    assert dialogues.from_transcript(text) is None


# --- with a model


def test_a_chat_template_gets_the_turns(backbone):
    text = (
        "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in TURNS)
        + "<|im_start|>assistant\n"
    )
    assert backbone.prompt_ids(dialogues.encode(TURNS)) == backbone.tokenizer(text)["input_ids"]


def test_a_system_prompt_stands_before_the_history(backbone):
    asked = dataclasses.replace(backbone, system_prompt="Be brief.")
    assert asked.writer.messages(dialogues.encode(TURNS)) == [
        {"role": "system", "content": "Be brief."},
        *TURNS,
    ]


def test_without_a_chat_template_the_speakers_are_named(backbone):
    tokenizer = copy.deepcopy(backbone.tokenizer)
    tokenizer.chat_template = None
    backbone = dataclasses.replace(backbone, tokenizer=tokenizer)
    assert (
        backbone.writer.text(dialogues.encode(TURNS))
        == "User: Name a bird.\n\nAssistant: The wren.\n\nUser: Another?\n\nAssistant: "
    )
    assert backbone.writer.text("Name a bird.") == "Name a bird.\n\n"


def test_a_dialogue_of_a_preference_file_goes_through_scoring_both_rewards_and_policy_training(
    fresh_backbone, tmp_path
):
    """Ties and histories on the way that a run takes them, from file to refined policy."""
    rows = [
        {
            "chosen": [*TURNS, {"role": "assistant", "content": f"a good answer {k}"}],
            "rejected": [*TURNS, {"role": "assistant", "content": f"rain {k}"}],
            "label": 0.5 if k == 0 else 1,
        }
        for k in range(4)
    ]
    rows += [
        {
            "chosen": [
                {"role": "user", "content": f"{k}?"},
                {"role": "assistant", "content": "the cat"},
            ],
            "rejected": [
                {"role": "user", "content": f"{k}?"},
                {"role": "assistant", "content": "the dog"},
            ],
        }
        for k in range(6)
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings_ = reading.validate(
        {
            "preferences": {"file": str(path)},
            "evaluation": {"replicates": 0},
            "selection": {"budget": 2},
        },
        "test",
    )
    train = load_prompts(settings_).assign(split="train")
    pool = proxy_data.training_pool(fresh_backbone, train, settings_)
    preferences = proxy_data.clean_preferences(pool, train, settings_, runs.Memory())
    assert (preferences["label"] == 0.5).sum() == 1 and len(pool) == 20
    history = pool[pool["prompt"] == dialogues.encode(TURNS)]
    expected = fresh_backbone.tokenizer("a good answer 0", add_special_tokens=False)["input_ids"]
    assert len(history) == 8 and list(history.iloc[0]["tokens"])[:-1] == expected
    for kind in ("probe", "lora"):
        reward = Reward(kind=kind, epochs=1, batch_size=2, l2=1.0)
        adapter = refine.Adapter(kind, fresh_backbone)
        scores = refine.fit(reward, pool, preferences, 0, adapter=adapter).score(pool)
        assert np.isfinite(scores).all()
    policy = Policy(kind="dpo", pairs=4, batch_size=2)
    policy_training.train(
        fresh_backbone,
        policy_training.pairs(pool, scores, policy, np.random.default_rng(0)),
        policy,
        0,
    )
    assert "default" in fresh_backbone.peft.peft_config
