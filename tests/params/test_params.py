"""Parameters: bad input ends in one sentence that names the file, the key, what was found and
what was expected."""

import json
import re

import pytest
import yaml
from project import ROOT
from pydantic import ValidationError

from shfcas_lib.base.errors import InputError
from shfcas_lib.params import reading, schema
from shfcas_lib.params.schema import Attribute, Coverage, Noise, Params


def load(folder, text):
    path = folder / "mine.yaml"
    path.write_text(text)
    return reading.load(path)


def refusal(folder, text):
    """The message that a YAML text is refused with; every one is a single line that names the
    file."""
    with pytest.raises(InputError) as caught:
        load(folder, text)
    message = str(caught.value)
    assert "\n" not in message and str(folder / "mine.yaml") in message
    return message.replace(str(folder), "")  # the folder's name holds words of the test's name


def nested(dotted, value):
    """{'a': {'b': value}} for 'a.b'."""
    for key in reversed(dotted.split(".")):
        value = {key: value}
    return value


def leaves(values, prefix=""):
    """Dotted names of everything in a nested dict that is no dict itself."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


# --- what is accepted


def test_a_file_of_one_key_has_defaults_for_the_rest(tmp_path):
    settings = load(tmp_path, "seed: 3\n")
    assert settings.seed == 3
    assert settings.model_dump() == Params(seed=3).model_dump()
    assert (
        settings.sampling.n,
        settings.sampling.temperature,
        settings.sampling.top_k,
        settings.sampling.top_p,
    ) == (8, 0.7, 0, 1.0)


def test_seed_zero_is_a_seed(tmp_path):
    assert load(tmp_path, "seed: 0\n").seed == 0


def test_a_whole_number_is_fine_where_a_number_is_wanted(tmp_path):
    temperature = load(tmp_path, "sampling: {temperature: 1}\n").sampling.temperature
    assert temperature == 1.0 and isinstance(temperature, float)


@pytest.mark.parametrize("rate", [0, 1, 0.5])
def test_both_ends_of_epsilon_are_valid(tmp_path, rate):
    assert load(tmp_path, f"bias: [{{kind: noise, rate: {rate}}}]\n").bias[0].rate == rate


def test_bias_mechanisms_keep_their_order_and_type(tmp_path):
    text = """
    bias:
      - {kind: coverage, absent: [travel]}
      - {kind: attribute, attribute: length, strength: 0.6}
      - {kind: noise, rate: 0.05}
    """
    assert load(tmp_path, text).bias == [
        Coverage(kind="coverage", absent=["travel"]),
        Attribute(kind="attribute", attribute="length", strength=0.6),
        Noise(kind="noise", rate=0.05),
    ]


def test_parameters_are_frozen(tmp_path):
    settings = load(tmp_path, "seed: 1\n")
    with pytest.raises(ValidationError):
        settings.seed = 2
    with pytest.raises(ValidationError):
        settings.sampling.n = 4
    assert (settings.seed, settings.sampling.n) == (1, 8)


def test_two_runs_do_not_share_their_default_lists():
    one, other = Params(), Params()
    one.selection.strategies.append("pacs")
    one.bias.append(Noise(kind="noise", rate=1.0))
    assert Params().selection.strategies == ["shf_cas", "random"]
    assert Params().bias == [] == other.bias


# --- unknown and misspelt keys


@pytest.mark.parametrize(
    ("text", "found", "nearest"),
    [
        ("sed: 0", "'sed'", "'seed'"),
        ("Sampling: {n: 4}", "'Sampling'", "'sampling'"),
        ("sampling: {tempratur: 1.0}", "'sampling.tempratur'", "'temperature'"),
        ("selection: {budgets: 12}", "'selection.budgets'", "'budget'"),
        ("reward: {lora: {alfa: 16}}", "'reward.lora.alfa'", "'alpha'"),
        ("bias: [{kind: noise, rate: 0.1, rates: 0.2}]", "'bias.0.rates'", "'rate'"),
        (
            (
                "bias: [{kind: coverage, absent: []}, {kind: attribute, attribute: length,"
                " strength: 1.0, strenght: 1.0}]"
            ),
            "'bias.1.strenght'",
            "'strength'",
        ),
    ],
)
def test_a_misspelt_key_is_answered_with_the_nearest_valid_one(tmp_path, text, found, nearest):
    message = refusal(tmp_path, text)
    assert f"unknown parameter {found}; did you mean {nearest}?" in message


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("bias: [{kind: noise, rte: 0.1}]", "'rate'"),
        ("bias: [{kind: attribute, atribute: length, strength: 0.5}]", "'attribute'"),
        ("bias: [{kind: coverage, absentt: [travel]}]", "'absent'"),
    ],
)
def test_a_misspelt_key_that_was_required_also_gets_the_nearest_one(tmp_path, text, nearest):
    """The user wrote the key, though wrongly: 'missing' alone would hide the typing error."""
    assert f"did you mean {nearest}" in refusal(tmp_path, text)


def test_an_unknown_key_with_no_likeness_lists_the_valid_ones(tmp_path):
    message = refusal(tmp_path, "split: {xyzzy: 1}")
    assert "'split.xyzzy'" in message and "did you mean" not in message
    assert "train, feedback, evaluate" in message


def test_a_key_of_one_block_is_unknown_in_another(tmp_path):
    assert "'policy.temperature'" in refusal(tmp_path, "policy: {temperature: 1.0}")


@pytest.mark.parametrize("text", ["1: 2", "true: 1", "null: 1"])
def test_keys_that_are_no_text_are_refused(tmp_path, text):
    assert "expected a name in letters as key" in refusal(tmp_path, text)


# --- numbers that YAML reads as text


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("policy.learning_rate", "1e-5"),
        ("policy.learning_rate", "5E-4"),
        ("policy.learning_rate", "1.5e3"),
        ("policy.beta", "'0.5'"),
        ("sampling.n", "'4'"),
        ("prompts.n", "'40'"),
        ("bias.0.rate", "1e-2"),
    ],
)
def test_a_number_read_as_text_is_refused_with_the_way_to_write_it(tmp_path, key, text):
    def document(number):
        if key == "bias.0.rate":
            return f"bias: [{{kind: noise, rate: {number}}}]"
        return yaml.safe_dump(nested(key, "HERE")).replace("HERE", number)

    message = refusal(tmp_path, document(text))
    assert f": {key}: YAML read {text.strip(chr(39))!r} as text, expected a " in message
    advice = re.search(r"\(write ([^\s)]+)", message).group(1)
    values = load(tmp_path, document(advice)).model_dump()
    for part in key.split("."):
        values = values[int(part) if part.isdigit() else part]
    assert values == float(text.strip("'"))


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("policy.epochs", "1e3"),
        ("policy.epochs", "'1.5'"),
        ("policy.beta", "123456789e-13"),
        ("policy.beta", "1e400"),
        ("policy.beta", "nan"),
        ("policy.beta", "inf"),
    ],
)
def test_no_advice_is_given_that_would_be_refused_or_change_the_number(tmp_path, key, text):
    """`(write X)` is a promise: X must load, as the number that the user meant."""
    message = refusal(tmp_path, yaml.safe_dump(nested(key, "HERE")).replace("HERE", text))
    advice = re.search(r"\(write ([^\s)]+)", message)
    if advice:
        block, name = key.split(".")
        loaded = load(
            tmp_path, yaml.safe_dump(nested(key, "HERE")).replace("HERE", advice.group(1))
        )
        assert getattr(getattr(loaded, block), name) == float(text.strip("'"))


# --- wrong types and ranges


@pytest.mark.parametrize(
    ("text", "key", "found", "expected"),
    [
        ("sampling: {n: 1}", "sampling.n", "1", "greater than or equal to 2"),
        ("sampling: {n: 0}", "sampling.n", "0", "greater than or equal to 2"),
        ("sampling: {n: 8.0}", "sampling.n", "8.0", "whole number"),
        ("sampling: {n: true}", "sampling.n", "true", "whole number"),
        ("sampling: {n: null}", "sampling.n", "null", "whole number"),
        ("sampling: {n: many}", "sampling.n", "'many'", "number"),
        ("sampling: {temperature: 0}", "sampling.temperature", "0", "greater than 0"),
        ("sampling: {temperature: -0.7}", "sampling.temperature", "-0.7", "greater than 0"),
        ("sampling: {temperature: .nan}", "sampling.temperature", "NaN", "finite"),
        ("sampling: {temperature: .inf}", "sampling.temperature", "Infinity", "finite"),
        ("sampling: {temperature: off}", "sampling.temperature", "false", "number"),
        ("sampling: {top_p: 0}", "sampling.top_p", "0", "greater than 0"),
        ("sampling: {top_p: 1.1}", "sampling.top_p", "1.1", "less than or equal to 1"),
        ("sampling: {top_k: -1}", "sampling.top_k", "-1", "greater than or equal to 0"),
        (
            "sampling: {max_new_tokens: 0}",
            "sampling.max_new_tokens",
            "0",
            "greater than or equal to 1",
        ),
        ("sampling: 8", "sampling", "8", "keys under it (n, temperature,"),
        ("sampling: null", "sampling", "null", "keys under it (n, temperature,"),
        ("policy: {beta: 0}", "policy.beta", "0", "greater than 0"),
        ("policy: {beta: -1}", "policy.beta", "-1", "greater than 0"),
        ("policy: {dpo_beta: 0}", "policy.dpo_beta", "0", "greater than 0"),
        (
            "policy: {kind: ppo}",
            "policy.kind",
            '"ppo"',
            "'tilt', 'dpo', 'rso', 'kto', 'rloo' or 'grpo'",
        ),
        ("policy: {generations: 1}", "policy.generations", "1", "greater than or equal to 2"),
        (
            "training: {optimiser: adam}",
            "training.optimiser",
            '"adam"',
            "'adamw_torch', 'adamw_8bit' or 'paged_adamw_8bit'",
        ),
        ("training: {micro_batch: 0}", "training.micro_batch", "0", "greater than or equal to 1"),
        ("bias: [{kind: noise, rate: 1.5}]", "bias.0.rate", "1.5", "less than or equal to 1"),
        ("bias: [{kind: noise, rate: -0.1}]", "bias.0.rate", "-0.1", "greater than or equal to 0"),
        (
            "bias: [{kind: attribute, attribute: length, strength: 2}]",
            "bias.0.strength",
            "2",
            "less than or equal to 1",
        ),
        (
            "bias: [{kind: attribute, attribute: 3, strength: 1}]",
            "bias.0.attribute",
            "3",
            "expected text",
        ),
        (
            "bias: [{kind: coverage, absent: travel}]",
            "bias.0.absent",
            '"travel"',
            "a list: [travel]",
        ),
        (
            "bias: [{kind: nois, rate: 0.1}]",
            "bias.0",
            '{"kind": "nois", "rate": 0.1}',
            "'noise', 'attribute', 'coverage'",
        ),
        ("bias: [{rate: 0.1}]", "bias.0", '{"rate": 0.1}', "kind"),
        ("bias: {kind: noise, rate: 0.1}", "bias", '{"kind": "noise", "rate": 0.1}', "list"),
        ("bias: [noise]", "bias.0", '"noise"', "keys, first of all kind: 'noise', "),
        ("bias: null", "bias", "null", "list"),
        ("feedback: {noise: 1.01}", "feedback.noise", "1.01", "less than or equal to 1"),
        (
            "feedback: {tie_margin: -0.1}",
            "feedback.tie_margin",
            "-0.1",
            "greater than or equal to 0",
        ),
        ("selection: {budget: 0}", "selection.budget", "0", "greater than or equal to 1"),
        ("selection: {tau: 1.2}", "selection.tau", "1.2", "less than or equal to 1"),
        ("selection: {top_share: 0}", "selection.top_share", "0", "greater than 0"),
        ("selection: {strategies: []}", "selection.strategies", "[]", "at least 1"),
        ("selection: {strategies: [shf-cas]}", "selection.strategies.0", '"shf-cas"', "'shf_cas'"),
        ("reward: {lora: {dropout: 1}}", "reward.lora.dropout", "1", "less than 1"),
        ("reward: {l2: 0}", "reward.l2", "0", "greater than 0"),
        ("prompts: {n: 0}", "prompts.n", "0", "greater than or equal to 1"),
        ("prompts: {categories: travel}", "prompts.categories", '"travel"', "list"),
        ("evaluation: {betas: [1]}", "evaluation.betas", "[1]", "at least 2"),
        ("evaluation: {betas: [1, 0]}", "evaluation.betas.1", "0", "greater than 0"),
        ("seed: -1", "seed", "-1", "greater than or equal to 0"),
        ("seed: 1.0", "seed", "1.0", "whole number"),
        ("seed: null", "seed", "null", "whole number"),
        ("seed: 2020-01-01", "seed", '"2020-01-01"', "whole number"),
        ("task: saftey", "task", '"saftey"', "'helpfulness', 'safety' or 'instructions'"),
        ("run: ../elsewhere", "run", '"../elsewhere"', "a name of letters, digits"),
        ("run: 7", "run", "7", "expected text"),
        (
            "model: {quantisation: no}",
            "model.quantisation",
            "false",
            "'nf4', 'int8', 'none' or 'as_stored'",
        ),
        ("model: {source: null}", "model.source", "null", "expected text"),
    ],
)
def test_wrong_type_or_range(tmp_path, text, key, found, expected):
    message = refusal(tmp_path, text)
    assert (
        f": {key}: found {found}, " in message or f": {key}: YAML read {found} as text, " in message
    )
    assert expected in message


def leaf_values(block, value, path=()):
    """A parameter file for every key in which that key has this value."""
    for name, field in block.model_fields.items():
        yield path + (name,), value
        if isinstance(field.annotation, type) and issubclass(field.annotation, schema.Block):
            yield from leaf_values(field.annotation, value, path + (name,))


JARGON = re.compile(
    "instance|dictionary|tag|discriminator|pattern|boolean|valid |validation|string|input|object|"
    r"\.str\b|\.int\b|list\[",
    re.IGNORECASE,
)


@pytest.mark.parametrize(
    "value", [None, 3, -1.5, "middle", True, [], [3], ["x"], {}, {"kind": 3}, {"x": 1}, [[1]], [{}]]
)
def test_no_sentence_speaks_the_validators_language(value):
    told = 0
    for path, wrong in leaf_values(Params, value):
        values = wrong
        for name in reversed(path):
            values = {name: values}
        try:
            reading.validate(values, "file")
        except InputError as error:
            message = str(error).partition(": ")[2]
            said = message.partition("found ")[2] or message
            assert not JARGON.search(said.replace(json.dumps(value), "")), message
            told += 1
    assert told


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"gold": "none"}, 'gold: found "none", expected keys under it (kind, model)'),
        (
            {"prompts": {"columns": {"category": 3}}},
            "prompts.columns.category: found 3, expected text, a list of texts or null",
        ),
        (
            {"reward": {"model": {"label": 1.5}}},
            "reward.model.label: found 1.5, expected a whole number, text or null",
        ),
        ({"selection": {"strategies": ["randm"]}}, "did you mean 'random'?"),
        ({"selection": {"strategies": "random"}}, "expected a list: [random]"),
        (
            {"reward": {"proxy": "mine"}},
            "expected 'trained', 'given' or 'model:' and a hub id or folder",
        ),
    ],
)
def test_what_was_expected_is_said_in_words(values, words):
    with pytest.raises(InputError) as caught:
        reading.validate(values, "file")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("split: {train: 0.5}", ["split", "must be 1"]),
        ("selection: {budget: null}", ["selection", "budget", "shf_cas_threshold"]),
        ("selection: {budget: 1, rounds: 2}", ["selection", "budget of 1", "2 rounds"]),
        ("selection: {strategies: [random, random]}", ["selection", "named twice"]),
        ("gold: {kind: none}", ["feedback.kind gold", "gold.kind is none"]),
        (
            "{evaluation: {replicates: 3}, policy: {kind: dpo}}",
            ["evaluation.replicates", "policy.kind tilt", "0"],
        ),
        ("policy: {kind: rloo, batch_size: 6}", ["policy", "batch_size 6", "generations 4"]),
        ("policy: {kind: kto, batch_size: 1}", ["policy", "batch_size of 1", "2 or more"]),
        (
            "{evaluation: {replicates: 0}, policy: {kind: kto}, training: {micro_batch: 1}}",
            ["training.micro_batch 1", "2 or more"],
        ),
        (
            "{evaluation: {replicates: 0}, reward: {kind: lora}, training: {micro_batch: 3}}",
            ["training.micro_batch 3", "reward.batch_size 8"],
        ),
        ("sft: {answers: chosen}", ["sft.answers chosen", "preferences of your own"]),
        ("bias: [{kind: noise}]", ["bias.0.rate", "missing"]),
    ],
)
def test_keys_that_do_not_go_together(tmp_path, text, names):
    message = refusal(tmp_path, text)
    assert all(name in message for name in names)


def test_a_long_value_is_shortened_in_the_message(tmp_path):
    message = refusal(tmp_path, f"seed: {list(range(400))}")
    assert len(message) < 300


# --- the file itself


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "a: [",
        "seed: 0\n\tn: 1",
        "seed: 'x",
        "\x00",
        "seed: @",
        "? [1, 2]\n: 3",
        pytest.param("[" * 1000, id="deep"),
    ],
)
def test_not_yaml(tmp_path, text):
    assert "not valid YAML" in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "NoneType"),
        ("# only a comment\n", "NoneType"),
        ("[1]", "list"),
        ("3", "int"),
        ("seed", "str"),
    ],
)
def test_not_a_mapping(tmp_path, text, kind):
    assert f"holds {kind}, expected a mapping" in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "key"), [("seed: 0\nseed: 1", "'seed'"), ("sampling: {n: 2, n: 3}", "'n'")]
)
def test_a_key_given_twice(tmp_path, text, key):
    assert f"key {key} is given twice" in refusal(tmp_path, text)


@pytest.mark.parametrize(
    "text", ["sampling: &a {n: 4}\npolicy: *a", "a: &a [1]\nb: {<<: *a}", "&a [*a]"]
)
def test_aliases_are_refused(tmp_path, text):
    assert "aliases" in refusal(tmp_path, text)


def test_a_tag_that_would_run_code_is_refused(tmp_path):
    marker = tmp_path / "ran"
    assert "not valid YAML" in refusal(
        tmp_path, f"seed: !!python/object/apply:os.system ['touch {marker}']"
    )
    assert not marker.exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read parameter file .*nowhere\.yaml"):
        reading.load(tmp_path / "nowhere.yaml")


def test_a_folder_is_no_parameter_file(tmp_path):
    with pytest.raises(InputError, match="cannot read parameter file"):
        reading.load(tmp_path)


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00seed")
    with pytest.raises(InputError, match=r"cannot read parameter file .*mine\.yaml"):
        reading.load(path)


# --- fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"task": "safety"},
        {"sampling": {"n": 4}},
        {"sampling": {"temperature": 0.71}},
        {"reward": {"lora": {"r": 4}}},
        {"bias": [{"kind": "noise", "rate": 0.1}]},
        {"prompts": {"categories": []}},
        {"model": {"system_prompt": " "}},
        {"evaluation": {"betas": [2.0, 1.0]}},
    ],
    ids=str,
)
def test_a_changed_value_changes_the_fingerprint(change):
    assert reading.fingerprint(reading.validate(change, "test")) != reading.fingerprint(Params())


def test_the_order_of_mechanisms_changes_the_fingerprint():
    one, other = {"kind": "noise", "rate": 0.1}, {"kind": "coverage", "absent": ["travel"]}
    assert reading.fingerprint(
        reading.validate({"bias": [one, other]}, "t")
    ) != reading.fingerprint(reading.validate({"bias": [other, one]}, "t"))


def test_the_way_a_file_is_written_does_not_change_the_fingerprint(tmp_path):
    one = load(tmp_path, "seed: 1\nsampling: {n: 4, temperature: 1}\n")
    other = load(
        tmp_path, "sampling:\n  temperature: 1.0\n  n: 4\n# a comment\nseed: 1\ntask: helpfulness\n"
    )
    assert reading.fingerprint(one) == reading.fingerprint(other)


def test_a_block_and_its_plain_values_have_one_fingerprint():
    settings = Params(seed=4)
    assert reading.fingerprint(settings) == reading.fingerprint(settings.model_dump())
    assert reading.fingerprint({"sampling": settings.sampling}) == reading.fingerprint(
        {"sampling": settings.sampling.model_dump()}
    )


def test_parts_and_their_order_matter():
    assert (
        len(
            {
                reading.fingerprint(*parts)
                for parts in ((), (1,), (1, 2), (2, 1), ([1, 2],), ("1", "2"))
            }
        )
        == 6
    )


def test_the_fingerprint_is_the_same_on_every_machine():
    assert reading.fingerprint({"b": [1, 0.5], "a": "x"}, None) == "0dafc0dc2151083e"


# --- the list of keys


def test_keys_lists_every_leaf_once():
    names = [name for name, _, _ in reading.keys()]
    expected = set(leaves(Params().model_dump()))
    mechanisms = {
        "bias[kind: noise].rate",
        "bias[kind: attribute].attribute",
        "bias[kind: attribute].strength",
        "bias[kind: coverage].absent",
    }
    assert len(names) == len(set(names))
    assert set(names) == expected | mechanisms


def test_every_key_has_a_description():
    assert [name for name, _, text in reading.keys() if not text.strip()] == []


@pytest.mark.parametrize(
    ("name", "default"),
    [(name, default) for name, default, _ in reading.keys() if default != "(required)"],
)
def test_the_default_that_is_printed_is_the_default(name, default):
    assert reading.validate(nested(name, json.loads(default)), "test") == Params()
    values = Params().model_dump()
    for part in name.split("."):
        values = values[part]
    assert values == json.loads(default)


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda p: p.stem)
def test_what_differs_from_the_defaults_makes_the_same_run(path):
    params = reading.load(path)
    said = reading.changed(params)
    assert reading.validate(said, "test") == params
    assert list(said) == list(Params.model_fields)
    assert reading.changed(Params())["sampling"] == {}


@pytest.mark.parametrize(
    "values",
    [
        {"policy": {"kind": "dpo"}},
        {"reward": {"kind": "lora"}, "selection": {"strategies": ["shf_cas"]}},
        {"reward": {"proxy": "model:x/y"}, "selection": {"strategies": ["shf_cas"]}},
        {"preferences": {"recipe": "ultrafeedback"}},
        {"preferences": {"file": "mine.jsonl"}, "gold": {"kind": "none"}},
        {"feedback": {"kind": "person"}},
    ],
)
def test_there_are_no_replicates_where_there_can_be_none(values):
    """Nobody need say so; who asks for some is told why not."""
    if "preferences" in values and "gold" in values:
        values = values | {"feedback": {"kind": "person"}}
    checked = reading.validate(values, "test")
    assert checked.evaluation.replicates == 0
    assert reading.validate(checked.model_dump(mode="json"), "again") == checked
    with pytest.raises(InputError, match="evaluation.replicates"):
        reading.validate(values | {"evaluation": {"replicates": 3}}, "test")
    assert reading.validate({}, "test").evaluation.replicates == 20
