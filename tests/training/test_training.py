"""What TRL trains on the tiny model: the LoRA reward and the policies. Importing TRL takes most
of this file's time."""

import numpy as np
import pandas as pd
import pytest
from toy import KEY, adapter_weights, assert_same_weights, load_tiny, make_pool, make_preferences

from shfcas_lib import loop, refine, trust
from shfcas_lib.base.errors import InputError
from shfcas_lib.feedback import SimulatedHuman
from shfcas_lib.models.backbone import POLICY
from shfcas_lib.params import reading
from shfcas_lib.params.schema import Lora, Policy, Reward
from shfcas_lib.pool import score
from shfcas_lib.storage.runs import Stage
from shfcas_lib.training import policy as policy_training
from shfcas_lib.training import reward as lora_reward

REWARD = Reward(kind="lora", learning_rate=3e-3, epochs=4, batch_size=8, lora=Lora(dropout=0.0))
GOOD = [
    "a good answer",
    "the honest cat sat on the mat in the rain",
    "an honest user and a good dog",
]
BAD = ["42 17 99", "0 1 2 3 4 5 6 7 8 9 10 11", "7777 8888 9999 10"]


@pytest.fixture(scope="module")
def pool():
    return make_pool()


@pytest.fixture(scope="module")
def quality(pool):
    """1 for words, 0 for figures."""
    return (pool["index"] % 2 == 0).to_numpy(float)


@pytest.fixture(scope="module")
def preferences(pool):
    return make_preferences(pool)


@pytest.fixture(scope="module")
def trained(tiny_model, pool, preferences):
    """A LoRA reward trained on the preferences, on a backbone of its own. Tests leave it as it
    is."""
    return lora_reward.train(load_tiny(tiny_model), "proxy", pool, preferences, REWARD, seed=0)


def base_weights(backbone):
    return {
        name: weight for name, weight in backbone.causal.named_parameters() if "lora" not in name
    }


def accuracy(pool, scores, quality):
    """Share of within-prompt pairs of a better and a worse completion that the scores rank so."""
    right = []
    for rows in pool.groupby("prompt_id").indices.values():
        good, bad = scores[rows][quality[rows] == 1], scores[rows][quality[rows] == 0]
        right.extend((good[:, None] > bad[None, :]).ravel())
    return np.mean(right)


# the LoRA reward


def test_reward_learns_its_training_pairs(trained, pool, quality):
    assert accuracy(pool, trained.score(pool), quality) == 1


def test_an_untrained_reward_does_not_know_them(tiny_model, pool, quality):
    import torch

    backbone = load_tiny(tiny_model)
    backbone.add_adapter("proxy", Lora())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = lora_reward._new_head(backbone)
    assert (
        0.1
        < accuracy(pool, lora_reward.LoraReward(backbone, "proxy", head).score(pool), quality)
        < 0.9
    )


@pytest.mark.parametrize(
    ("pairs", "batch_size", "epochs", "rate"),
    [
        (100, 8, 2, 1e-3),
        (400, 8, 2, 1e-3),
        (800, 8, 2, 5e-4),
        (4000, 8, 2, 1e-4),
        (10**6, 8, 3, 1e-4),
    ],
)
def test_few_steps_get_a_large_learning_rate(pairs, batch_size, epochs, rate):
    settings = Reward(kind="lora", batch_size=batch_size, epochs=epochs)
    assert lora_reward.learning_rate(settings, pairs) == pytest.approx(rate)
    given = settings.model_copy(update={"learning_rate": 2e-5})
    assert lora_reward.learning_rate(given, pairs) == 2e-5


def test_a_reward_that_has_not_learnt_its_own_pairs_is_named(
    tiny_model, trained, pool, preferences, tmp_path, capsys
):
    assert trained.learnt == 1 and lora_reward.unlearnt(trained) is None
    idle = REWARD.model_copy(update={"learning_rate": 1e-9, "epochs": 1})
    wrong = preferences.assign(label=(preferences["label"] == 0).astype(float))
    for labels in (preferences, wrong):  # one of them is what chance says by less than half
        reward = lora_reward.train(load_tiny(tiny_model), "proxy", pool, labels, idle, seed=0)
        if reward.learnt < 0.6:
            break
    told = capsys.readouterr().out
    expected = f"reward proxy ranks {reward.learnt:.0%} of the pairs that trained it as they say"
    assert expected in told and lora_reward.unlearnt(reward) in told
    scores = reward.score(pool)
    assert reward.learnt == lora_reward.share_learnt(pool, scores, labels)
    reward.save(tmp_path)
    assert lora_reward.load(reward.backbone, "proxy", tmp_path).learnt == reward.learnt


def test_reversed_labels_teach_the_reverse(tiny_model, pool, preferences, quality):
    reward = lora_reward.train(
        load_tiny(tiny_model),
        "proxy",
        pool,
        preferences.assign(label=1 - preferences["label"]),
        REWARD,
        seed=0,
    )
    assert accuracy(pool, reward.score(pool), quality) == 0


def test_training_repeats_with_its_seed(tiny_model, trained, pool, preferences):
    again = lora_reward.train(load_tiny(tiny_model), "proxy", pool, preferences, REWARD, seed=0)
    np.testing.assert_allclose(again.score(pool), trained.score(pool), atol=1e-5)


def test_scores_have_unit_spread_within_prompts(trained, pool):
    assert pd.Series(trained.score(pool)).groupby(pool["prompt_id"]).std(
        ddof=0
    ).mean() == pytest.approx(1)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_scores_do_not_depend_on_the_batch(trained, pool, batch_size):
    shuffled = pool.sample(frac=1, random_state=batch_size)
    expected = pd.Series(trained.score(pool), index=pool.index)
    np.testing.assert_allclose(
        trained.score(shuffled, batch_size=batch_size), expected[shuffled.index], atol=1e-5
    )


def test_scores_are_those_of_a_plain_computation(trained, pool):
    """One example at a time, no padding: the head on the final hidden state of the last token
    before the end token, which is the pad token of this model and so the position that
    transformers' classifiers, and TRL with them, read."""
    import torch

    backbone = trained.backbone
    for row in pool.head(4).itertuples():
        ids = torch.tensor([backbone.writer.both(row.prompt, row.completion).ids])
        with backbone.using("proxy"), torch.no_grad():
            hidden = backbone.causal.model(input_ids=ids).last_hidden_state[0, -2]
        expected = float(hidden @ trained.head.weight[0]) / trained.spread
        assert trained.score(pd.DataFrame([row._asdict()]))[0] == pytest.approx(expected, abs=1e-5)


def test_score_reads_the_position_that_the_trainer_trains(
    tiny_model, pool, preferences, monkeypatch
):
    """Both must read the same position of the same tokens; the pad token of this model is its end
    token."""
    import torch

    seen, build = [], lora_reward.classifier
    monkeypatch.setattr(
        lora_reward,
        "classifier",
        lambda backbone, head: seen.append(build(backbone, head)) or seen[-1],
    )
    backbone = load_tiny(tiny_model)
    reward = lora_reward.train(
        backbone, "proxy", pool, preferences, REWARD.model_copy(update={"epochs": 1}), seed=0
    )
    model, rows = seen[0], pool.head(2)
    ids = [backbone.writer.both(row.prompt, row.completion).ids for row in rows.itertuples()]
    width = max(map(len, ids))
    assert width > min(map(len, ids))
    # as TRL's collator pads
    batch = {
        "input_ids": torch.tensor(
            [i + [model.config.pad_token_id] * (width - len(i)) for i in ids]
        ),
        "attention_mask": torch.tensor([[1] * len(i) + [0] * (width - len(i)) for i in ids]),
    }
    with backbone.using("proxy"), torch.no_grad():
        in_training = model(**batch).logits[:, 0].double().numpy()
    np.testing.assert_allclose(reward.score(rows) * reward.spread, in_training, atol=1e-4)


def test_a_saved_reward_scores_the_same_on_a_fresh_backbone(trained, tiny_model, pool, tmp_path):
    trained.save(tmp_path)
    again = lora_reward.load(load_tiny(tiny_model), "again", tmp_path)
    np.testing.assert_allclose(again.score(pool), trained.score(pool), rtol=0, atol=1e-6)


def test_the_score_head_is_saved_as_trained(trained, tiny_model, tmp_path):
    import torch

    trained.save(tmp_path)
    again = lora_reward.load(load_tiny(tiny_model), "again", tmp_path)
    assert torch.equal(again.head.weight, trained.head.weight)
    assert again.spread == trained.spread != 1.0


def test_the_head_is_trained_and_not_left_at_its_start(trained, tiny_model):
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = lora_reward._new_head(trained.backbone)
    assert not torch.allclose(trained.head.weight, start.weight, atol=1e-3)


def test_a_folder_without_its_marker_is_no_reward(trained, tiny_model, tmp_path):
    trained.save(tmp_path)
    (tmp_path / "reward.json").unlink()
    with pytest.raises(InputError, match="no finished reward"):
        lora_reward.load(trained.backbone, "again", tmp_path)


def test_refine_reads_back_a_reward_that_was_trained(trained, tiny_model, pool, tmp_path):
    trained.save(tmp_path)
    adapter = refine.Adapter("again", load_tiny(tiny_model))
    again = refine.finished(REWARD, tmp_path, adapter)
    np.testing.assert_allclose(again.score(pool), trained.score(pool), rtol=0, atol=1e-6)


def test_the_classifier_holds_the_backbones_own_weights(trained):
    model = lora_reward.classifier(trained.backbone, trained.head)
    own = {weight.data_ptr() for weight in trained.backbone.causal.model.parameters()}
    assert own == {
        weight.data_ptr()
        for name, weight in model.named_parameters()
        if not name.startswith("score")
    }
    assert model.score is trained.head


def test_training_leaves_the_backbone_where_and_as_it_was(tiny_model, pool, preferences):
    backbone = load_tiny(tiny_model)
    before = {weight.data_ptr(): weight.detach().clone() for weight in backbone.causal.parameters()}
    lora_reward.train(
        backbone, "proxy", pool, preferences, REWARD.model_copy(update={"epochs": 1}), seed=0
    )
    after = {weight.data_ptr(): weight for weight in base_weights(backbone).values()}
    assert set(before) == set(after)
    assert all(bool((before[key] == after[key]).all()) for key in before)


def test_training_leaves_no_adapter_in_use(trained, tiny_model, pool):
    assert trained.backbone.active is None
    np.testing.assert_array_equal(
        score(trained.backbone, pool)["logp"], score(load_tiny(tiny_model), pool)["logp"]
    )


def test_two_rewards_live_side_by_side(tiny_model, pool, preferences, quality):
    backbone = load_tiny(tiny_model)
    proxy = lora_reward.train(
        backbone, "proxy", pool, preferences.assign(label=1 - preferences["label"]), REWARD, seed=0
    )
    before = proxy.score(pool)
    refined = lora_reward.train(backbone, "refined", pool, preferences, REWARD, seed=0)
    np.testing.assert_allclose(proxy.score(pool), before, atol=1e-6)
    assert (
        accuracy(pool, refined.score(pool), quality) == 1
        and accuracy(pool, proxy.score(pool), quality) == 0
    )


def test_ties_alone_are_nothing_to_train_on(tiny_model, pool, preferences):
    with pytest.raises(InputError, match="no preferences"):
        lora_reward.train(
            load_tiny(tiny_model), "proxy", pool, preferences.assign(label=0.5), REWARD, seed=0
        )


def rows_given_to_trl(backbone, pool, preferences, monkeypatch):
    """How often each preference reaches TRL's format; training stops there."""
    seen = []
    monkeypatch.setattr(
        lora_reward, "_encoded", lambda *given: seen.append(given[2]) or {"chosen_ids": []}
    )
    with pytest.raises(InputError):
        lora_reward.train(backbone, "proxy", pool, preferences, REWARD, seed=0)
    return seen[0].value_counts(KEY).to_dict()


def test_a_pair_of_weight_three_is_repeated_three_times(backbone, pool, preferences, monkeypatch):
    weighted = preferences.head(3).assign(weight=[1.0, 3.0, 2.4])
    assert rows_given_to_trl(backbone, pool, weighted, monkeypatch) == {
        ("p00", 0, 1): 1,
        ("p00", 0, 2): 3,
        ("p00", 0, 3): 2,
    }


def test_weights_hold_for_tables_put_together_from_two(backbone, pool, preferences, monkeypatch):
    """Such a table names its rows 0, 1, 0, 1."""
    both = pd.concat([preferences.head(2), preferences.iloc[6:8].reset_index(drop=True)]).assign(
        weight=[1.0, 2.0, 1.0, 3.0]
    )
    expected = {("p00", 0, 1): 1, ("p00", 0, 2): 2, ("p01", 0, 1): 1, ("p01", 0, 2): 3}
    assert rows_given_to_trl(backbone, pool, both, monkeypatch) == expected


def margins_given_to_trl(backbone, pool, preferences, monkeypatch, offset=None):
    """The margins of the batches that TRL computes its loss on, {chosen ids: margin}."""
    from trl import RewardTrainer

    seen, compute = {}, RewardTrainer.compute_loss

    def spy(self, model, inputs, *rest, **more):
        if "margin" in inputs:
            chosen = inputs["input_ids"][: len(inputs["margin"])].tolist()
            seen.update(zip(map(tuple, chosen), inputs["margin"].tolist(), strict=True))
        return compute(self, model, inputs, *rest, **more)

    monkeypatch.setattr(RewardTrainer, "compute_loss", spy)
    settings = REWARD.model_copy(update={"epochs": 1, "batch_size": 1})
    lora_reward.train(backbone, "proxy", pool, preferences, settings, seed=0, offset=offset)
    return seen


def chosen_ids(backbone, pool, prompt, index):
    row = pool[(pool["prompt_id"] == prompt) & (pool["index"] == index)].iloc[0]
    return tuple(backbone.writer.both(row["prompt"], row["completion"]).ids)


def graded_pairs():
    rows = [("p00", 0, 1, 1.0, 2.0), ("p01", 0, 1, 0.0, 1.0), ("p02", 0, 2, 0.5, np.nan)]
    rows += [("p03", 2, 3, 1.0, 1.5), ("p04", 0, 3, 1.0, np.nan)]
    return pd.DataFrame(rows, columns=[*KEY, "label", "grade"]).assign(weight=1.0)


def found_by_start(seen, wanted):
    """A batch pads the shorter answer, so a pair is told by how its chosen answer begins."""
    return {
        key: next(margin for ids, margin in seen.items() if ids[: len(start)] == start)
        for key, start in wanted.items()
    }


def test_a_grade_is_the_margin_of_trls_loss(tiny_model, pool, monkeypatch):
    backbone, pairs = load_tiny(tiny_model), graded_pairs()
    seen = margins_given_to_trl(backbone, pool, pairs, monkeypatch)
    places = [("p00", 0), ("p01", 1), ("p03", 2), ("p04", 0)]
    wanted = {place: chosen_ids(backbone, pool, *place) for place in places}
    assert list(found_by_start(seen, wanted).values()) == [1.0, 0.0, 0.5, 0.0]
    assert len(seen) == 4


def test_a_grade_adds_to_the_margin_of_a_published_proxy(tiny_model, pool, monkeypatch):
    backbone, pairs = load_tiny(tiny_model), graded_pairs()
    offset = np.linspace(-1, 1, len(pool))
    seen = margins_given_to_trl(backbone, pool, pairs, monkeypatch, offset)
    at = pool.assign(offset=offset).set_index(["prompt_id", "index"])["offset"]
    wanted = {"much": chosen_ids(backbone, pool, "p00", 0)}
    wanted["better"] = chosen_ids(backbone, pool, "p01", 1)
    found = found_by_start(seen, wanted)
    assert found["much"] == pytest.approx(1 - (at["p00", 0] - at["p00", 1]), abs=1e-6)
    assert found["better"] == pytest.approx(0 - (at["p01", 1] - at["p01", 0]), abs=1e-6)


def test_pairs_that_nobody_graded_have_no_margin(tiny_model, pool, preferences, monkeypatch):
    seen = margins_given_to_trl(load_tiny(tiny_model), pool, preferences.head(6), monkeypatch)
    assert seen == {}


# a LoRA reward that learns whom to trust


@pytest.fixture(scope="module")
def disputed(tiny_model, pool, preferences):
    """Biased pairs that like figures, with features, and labels on five prompts that like words."""
    decided = preferences[preferences["label"] != 0.5]
    labels = decided[decided["prompt_id"] < "p05"].groupby("prompt_id").head(2)
    biased = decided[decided["prompt_id"] >= "p05"]
    biased = biased.assign(label=1 - biased["label"])
    features = score(load_tiny(tiny_model), pool)
    return refine.Data(features, biased.reset_index(drop=True), labels.reset_index(drop=True))


def test_a_lora_reward_is_relieved_of_the_annotators_taste(tiny_model, disputed, monkeypatch):
    """The biased pairs carry the taste's lead, the labels, which replace a biased pair, none."""
    seen = []
    monkeypatch.setattr(lora_reward, "train", lambda *given: seen.append(given[3]) or "trained")
    settings = REWARD.model_copy(update={"l2": 3.0})
    adapter = refine.Adapter("refined", load_tiny(tiny_model))
    both = pd.concat([disputed.biased, disputed.labels.head(1).assign(label=0.0)])
    agreeing = disputed.labels.assign(label=1 - disputed.labels["label"])
    size = []
    for labels in (disputed.labels, agreeing):
        trusted = refine.update(
            settings, refine.Data(disputed.pool, both, labels), 0, adapter=adapter
        )
        table = seen.pop().set_index(KEY)
        from_labels = table.index.isin(pd.MultiIndex.from_frame(labels[KEY]))
        assert len(table) == len(disputed.biased) + len(labels)
        assert table["lead"][from_labels].isna().all()
        assert set(table["weight"][from_labels]) == {REWARD.feedback_weight}
        assert table["weight"][~from_labels].eq(1).all()
        at = disputed.pool.assign(taste=trusted.taste.score(disputed.pool))
        at = at.set_index(["prompt_id", "index"])["taste"]
        for (prompt, i, j), lead in table["lead"][~from_labels].items():
            assert lead == pytest.approx(at[prompt, i] - at[prompt, j])
        says = table["label"][~from_labels] - 0.5
        size.append((table["lead"][~from_labels] * says).mean())
    assert size[0] > 2 * size[1] > 0, "the more the labels contradict, the more is taste"


def test_a_pairs_own_lead_is_taken_off_the_margin(tiny_model, pool, monkeypatch):
    backbone, pairs = load_tiny(tiny_model), graded_pairs()
    pairs = pairs.assign(lead=[0.5, 0.5, 0.5, np.nan, -2.0])
    seen = margins_given_to_trl(backbone, pool, pairs, monkeypatch)
    # the grade's margin less what the chosen answer has already
    expected = {("p00", 0): 1 - 0.5, ("p01", 1): 0 + 0.5, ("p03", 2): 0.5, ("p04", 0): 0 + 2.0}
    wanted = {place: chosen_ids(backbone, pool, *place) for place in expected}
    found = found_by_start(seen, wanted)
    assert found == {place: pytest.approx(value, abs=1e-6) for place, value in expected.items()}


def test_a_trusted_lora_reward_survives_saving(tiny_model, disputed, tmp_path):
    settings = REWARD.model_copy(update={"epochs": 1})
    stage, adapter = Stage(tmp_path, None), refine.Adapter("refined", load_tiny(tiny_model))
    reward = refine.updated(stage, settings, disputed, 0, adapter=adapter)
    again = refine.finished(settings, tmp_path, refine.Adapter("again", load_tiny(tiny_model)))
    assert isinstance(again, trust.Trusted) and isinstance(again.quality, lora_reward.LoraReward)
    np.testing.assert_allclose(again.score(disputed.pool), reward.score(disputed.pool), atol=1e-6)
    tastes = [taken.taste.score(disputed.pool) for taken in (again, reward)]
    np.testing.assert_array_equal(*tastes)
    assert str(again.report) == str(reward.report)


def rounds_of_three(tiny_model, disputed, quality, folder, **policy):
    """Three rounds of 3, 3 and 6 labels of a human who likes words, on half of the prompts."""
    values = {
        "selection": {"strategies": ["random"], "budget": 12, "rounds": 3},
        "reward": {"kind": "lora", "learning_rate": 3e-3, "epochs": 1, "l2": 3.0},
        "sampling": {"max_new_tokens": 6},
        "evaluation": {"replicates": 0},
        "policy": policy,
    }
    settings, pool = reading.validate(values, "test"), disputed.pool
    backbone = load_tiny(tiny_model)
    asked = (pool["prompt_id"] < "p08").to_numpy()
    prompts = pool[["prompt_id", "prompt"]].drop_duplicates().assign(harmful=False, category="")
    train, feedback = (pool[rows].reset_index(drop=True) for rows in (~asked, asked))
    biased = disputed.biased[disputed.biased["prompt_id"] >= "p08"].reset_index(drop=True)
    proxy = refine.fit(settings.reward, train, biased, 0, adapter=refine.Adapter("proxy", backbone))
    setting = loop.Setting(settings, 0, prompts, train, feedback, biased, proxy, backbone)
    truth = dict(zip(zip(pool["prompt_id"], pool["index"], strict=True), quality, strict=True))
    human = SimulatedHuman(
        lambda t: np.array([truth[k] for k in zip(t["prompt_id"], t["index"], strict=True)])
    )
    return setting, loop.run_rounds("random", setting, human, Stage(folder, None))


def test_too_few_labels_are_merged_and_a_later_round_of_the_run_trusts(
    tiny_model, disputed, quality, tmp_path
):
    _, outcome = rounds_of_three(tiny_model, disputed, quality, tmp_path)
    kinds = [type(reward).__name__ for reward in outcome.rewards]
    assert outcome.rounds["labels"].tolist() == [3, 3, 6]
    assert kinds[0] == "LoraReward" and kinds[-1] == "Trusted"
    before = outcome.reward.score(disputed.pool)

    # read back, by another process
    _, again = rounds_of_three(tiny_model, disputed, quality, tmp_path)
    assert [type(reward).__name__ for reward in again.rewards] == kinds
    np.testing.assert_allclose(again.reward.score(disputed.pool), before, atol=1e-6)
    assert again.reward.report.decided == (again.labels["label"] != 0.5).sum()


@pytest.mark.parametrize("kind", ["dpo", "rso", "kto", "rloo"])
def test_a_policy_learns_from_a_trusted_reward_as_from_the_reward_in_it(
    kind, tiny_model, disputed, quality, tmp_path
):
    online = {"generations": 4, "prompts": 4, "beta": 0.02} if kind == "rloo" else {"pairs": 8}
    values = {"policy": {"kind": kind, "epochs": 1, "learning_rate": 3e-3, **online}}
    values |= {"sampling": {"max_new_tokens": 6}, "evaluation": {"replicates": 0}}
    values["policy"]["lora"] = {"dropout": 0.0}
    settings = REWARD.model_copy(update={"epochs": 1})
    adapter = refine.Adapter("refined", load_tiny(tiny_model))
    refine.updated(Stage(tmp_path / "r", None), settings, disputed, 0, adapter=adapter)
    weights = []
    for name, read in (("trusted", lambda reward: reward), ("plain", trust.inner)):
        backbone = load_tiny(tiny_model)
        reward = refine.finished(settings, tmp_path / "r", refine.Adapter("refined", backbone))
        params = reading.validate(values, "test")
        setting = loop.Setting(params, 0, None, None, None, None, None, backbone)
        loop.train_policy(setting, read(reward), disputed.pool, tmp_path / name)
        weights.append(adapter_weights(backbone, POLICY))
    assert_same_weights(*weights)
    assert max(float(weight.abs().max()) for key, weight in weights[0].items() if "_B" in key) > 0


# pairs for policy training


def policy(kind, **changes):
    return Policy(
        **{
            "kind": kind,
            "pairs": 32,
            "learning_rate": 3e-3,
            "epochs": 2,
            "lora": Lora(dropout=0.0),
            **changes,
        }
    )


@pytest.fixture
def scored(pool):
    """The pool, with rewards that differ everywhere."""
    return pool, np.random.default_rng(0).permutation(len(pool)).astype(float)


@pytest.mark.parametrize("kind", ["dpo", "rso"])
def test_pairs_obey_the_reward(scored, kind):
    pool, reward = scored
    value = dict(zip(zip(pool["prompt"], pool["completion"], strict=True), reward, strict=False))
    pairs = policy_training.pairs(pool, reward, policy(kind), np.random.default_rng(0))
    assert len(pairs) > 8
    assert all(
        value[row.prompt, row.chosen] > value[row.prompt, row.rejected]
        for row in pairs.itertuples()
    )


@pytest.mark.parametrize("kind", ["dpo", "rso"])
def test_pairs_are_at_most_as_many_as_asked_for_and_touch_many_prompts(scored, kind):
    pairs = policy_training.pairs(*scored, policy(kind, pairs=10), np.random.default_rng(0))
    assert len(pairs) == 10 == pairs["prompt"].nunique()


@pytest.mark.parametrize("kind", ["dpo", "rso"])
def test_pairs_repeat_with_their_generator(scored, kind):
    one, other = (
        policy_training.pairs(*scored, policy(kind), np.random.default_rng(4)) for _ in range(2)
    )
    pd.testing.assert_frame_equal(one, other)


def test_dpo_compares_best_with_worst_first(scored):
    pool, reward = scored
    pairs = policy_training.pairs(
        pool, reward, policy("dpo", pairs=16), np.random.default_rng(0)
    ).set_index("prompt")
    for prompt, part in pool.assign(reward=reward).groupby("prompt"):
        assert pairs.loc[prompt, "chosen"] == part.loc[part["reward"].idxmax(), "completion"]
        assert pairs.loc[prompt, "rejected"] == part.loc[part["reward"].idxmin(), "completion"]


def test_dpo_never_uses_a_pair_twice(scored):
    pairs = policy_training.pairs(*scored, policy("dpo", pairs=500), np.random.default_rng(0))
    # 4 completions give 2 pairs: best-worst and second-third
    assert len(pairs) == 32 and not pairs.duplicated().any()


def test_rso_draws_from_the_tilted_policy():
    """Of three completions the tilt makes one nearly impossible: the two others are drawn."""
    pool = pd.DataFrame(
        {
            "prompt_id": "p",
            "index": range(3),
            "prompt": "hi",
            "completion": ["best", "second", "hopeless"],
        }
    )
    pairs = policy_training.pairs(
        pool,
        np.array([1.0, 0.9, -50.0]),
        policy("rso", beta=1.0, pairs=20),
        np.random.default_rng(0),
    )
    assert set(map(tuple, pairs.to_numpy())) == {("hi", "best", "second")}


@pytest.mark.parametrize("kind", ["dpo", "rso"])
def test_a_reward_that_tells_nothing_apart_is_an_error(pool, kind):
    with pytest.raises(InputError, match="tells no two completions apart"):
        policy_training.pairs(pool, np.ones(len(pool)), policy(kind), np.random.default_rng(0))


@pytest.mark.parametrize("kind", ["dpo", "rso"])
def test_completions_of_the_same_text_make_no_pair(kind):
    pool = pd.DataFrame(
        {
            "prompt_id": "p",
            "index": range(4),
            "prompt": "hi",
            "completion": ["same", "same", "same", "other"],
        }
    )
    pairs = policy_training.pairs(
        pool, np.array([3.0, 2.0, 0.0, 1.0]), policy(kind, beta=5.0), np.random.default_rng(0)
    )
    assert all(row.chosen != row.rejected for row in pairs.itertuples())


# policy training


@pytest.fixture(scope="module", params=["dpo", "rso"])
def aligned(request, tiny_model, pool, preferences, quality):
    """A policy trained against quality beside a reward: (backbone, pairs, reward, reward's scores
    before, its weights before)."""
    backbone = load_tiny(tiny_model)
    reward = lora_reward.train(
        backbone, "proxy", pool, preferences, REWARD.model_copy(update={"epochs": 1}), seed=0
    )
    scores, weights = reward.score(pool), adapter_weights(backbone, "proxy")
    settings = policy(request.param)
    pairs = policy_training.pairs(pool, quality, settings, np.random.default_rng(0))
    policy_training.train(backbone, pairs, settings, seed=0)
    return backbone, pairs, reward, scores, weights


def margin(backbone, pairs):
    """Log-probability of chosen minus that of rejected, (pairs,)."""
    sides = [
        pairs.assign(prompt_id="p", index=range(len(pairs)), completion=pairs[side])
        for side in ("chosen", "rejected")
    ]
    chosen, rejected = (score(backbone, side)["logp"].to_numpy() for side in sides)
    return chosen - rejected


def test_training_raises_the_margin_of_chosen_over_rejected_against_the_reference(aligned):
    backbone, pairs, *_ = aligned
    with backbone.using(None):
        before = margin(backbone, pairs)
    with backbone.using(POLICY):
        after = margin(backbone, pairs)
    assert (after - before).mean() > 1 and (after > before).mean() > 0.9


def test_a_trained_policy_leaves_the_reward_beside_it_alone(aligned, pool):
    backbone, _, reward, scores, weights = aligned
    assert_same_weights(adapter_weights(backbone, "proxy"), weights)
    np.testing.assert_array_equal(reward.score(pool), scores)


def test_a_trained_policy_leaves_the_reference_alone(aligned, tiny_model, pool):
    backbone, *_ = aligned
    with backbone.using(None):
        found = score(backbone, pool)["logp"]
    np.testing.assert_array_equal(found, score(load_tiny(tiny_model), pool)["logp"])


def test_after_training_no_adapter_is_in_use_and_trls_copy_is_gone(aligned):
    backbone, *_ = aligned
    assert backbone.active is None
    assert sorted(backbone.peft.peft_config) == [POLICY, "proxy"]


def test_a_trained_policy_survives_saving(aligned, tiny_model, pool, tmp_path):
    backbone, *_ = aligned
    with backbone.using(POLICY):
        expected = score(backbone, pool)["logp"]
    backbone.save_adapter(POLICY, tmp_path / "adapter")
    other = load_tiny(tiny_model)
    other.load_adapter(POLICY, tmp_path / "adapter")
    with other.using(POLICY):
        np.testing.assert_allclose(score(other, pool)["logp"], expected, rtol=0, atol=1e-6)


def test_the_two_kinds_are_trained_with_their_own_loss(fresh_backbone, pool, quality, monkeypatch):
    losses = []
    monkeypatch.setattr(
        policy_training, "run_trainer", lambda *given, **_: losses.append(given[3]["loss_type"])
    )
    for kind in ("dpo", "rso"):
        pairs = policy_training.pairs(pool, quality, policy(kind), np.random.default_rng(0))
        policy_training.train(fresh_backbone, pairs, policy(kind), seed=0)
    assert losses == [["sigmoid"], ["hinge"]]


def test_training_again_starts_from_the_base_policy(aligned, pool, quality):
    """A second training does not build on the first: the anchor of every round is the base
    policy."""
    backbone, pairs, *_ = aligned
    with backbone.using(POLICY):
        first = margin(backbone, pairs)
    settings = policy("dpo", learning_rate=1e-7, epochs=1)
    policy_training.train(backbone, pairs, settings, seed=0)
    with backbone.using(POLICY):
        second = margin(backbone, pairs)
    with backbone.using(None):
        base = margin(backbone, pairs)
    np.testing.assert_allclose(second, base, atol=0.05)
    assert np.abs(first - base).max() > 1
