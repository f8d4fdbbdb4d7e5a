"""One string of tokens: what a prompt and its completion become, over the published chat templates,
and that thinking, dates and special tokens come out the same whoever asks."""

import datetime as dt

import families
import pandas as pd
import pytest

from shfcas_lib.base import dialogues
from shfcas_lib.base.errors import InputError
from shfcas_lib.models import templates, tokens
from shfcas_lib.models.templates import Style
from shfcas_lib.params.schema import Model

TURNS = [
    {"role": "user", "content": "Name a bird."},
    {"role": "assistant", "content": "The wren."},
    {"role": "user", "content": "Another?"},
]
PROMPTS = {"one turn": "Name a bird.", "a history": dialogues.encode(TURNS)}
DAY = dt.date(2031, 2, 3)
# their chat templates write no answer after a prompt that opens a block of thinking
OPENED = ("deepseek", "nemotron")


@pytest.fixture(scope="module")
def tokenizers():
    """The tokenizer of a published chat template, made once."""
    made = {}

    def tokenizer(name):
        if name not in made:
            made[name] = families.tokenizer_for(name)
        return made[name]

    return tokenizer


def writer(tokenizer, thinking=False, day=DAY, system_prompt=""):
    end = templates.end_of_answer(tokenizer)
    end = tokenizer.eos_token_id if end is None else end
    return tokens.Writer(tokenizer, Style(thinking, day), system_prompt, end)


def whole(tokenizer, prompt, text, thinking=False, day=DAY):
    """The chat as the template writes it, the answer included."""
    chat = [*dialogues.messages(prompt), {"role": "assistant", "content": text}]
    return templates.rendered(tokenizer, chat, Style(thinking, day))


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("name", families.published_names())
def test_prompt_and_given_answer_are_what_the_template_writes(name, prompt, tokenizers):
    """Nothing is lost or doubled where the two meet; only the end may be the start of a turn."""
    tokenizer = tokenizers(name)
    written = writer(tokenizer).both(prompt, "An owl, or a wren.")
    expected = whole(tokenizer, prompt, "An owl, or a wren.")
    text = tokenizer.decode(written.ids[:-1])
    assert expected.startswith(text)
    end = tokenizer.decode(written.ids[-1:])
    rest = expected[len(text) :]
    assert rest.startswith(end) if rest.strip() else end.strip() != ""
    assert tokenizer.decode(written.completion).strip().startswith("An owl, or a wren.")
    assert len(written.mask) == len(written.ids) and sum(written.mask) == len(written.completion)


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("name", families.published_names())
def test_the_prompt_is_the_templates_own(name, thinking, tokenizers):
    """It asks for an answer as the template does, unless that opens a thought that may not be."""
    tokenizer = tokenizers(name)
    text = writer(tokenizer, thinking).text("Name a bird.")
    chat = dialogues.messages("Name a bird.")
    asked = templates.rendered(tokenizer, chat, Style(thinking, DAY), asking=True)
    if thinking or not name.startswith(("deepseek", "gptoss", "muse")):
        assert text == asked
    else:
        answered = whole(tokenizer, "Name a bird.", "qzq").partition("qzq")[0]
        assert text == answered != asked
    assert ("<think>" in text) == ("</think>" in text) or thinking


@pytest.mark.parametrize("name", families.published_names())
def test_thinking_leads_to_an_answer_or_the_family_is_refused(name, tokenizers):
    """With thinking a given answer has what the template writes before it; where the template does
    not write that, it cannot be given."""
    tokenizer = tokenizers(name)
    asked = writer(tokenizer, thinking=True)
    if name.startswith(OPENED):
        assert "model.thinking to false" in asked.unfit("An owl.").told
        with pytest.raises(InputError, match="brings no thinking along"):
            asked.completion("An owl.")
        thought = asked.both("Hi", "<think>\nA bird.\n</think>\n\nAn owl.")
        text = tokenizer.decode(thought.ids)
        assert text.count("<think>") == 1 and "<think>\nA bird.\n</think>\n\nAn owl." in text
    else:
        written = tokenizer.decode(asked.both("Hi", "An owl.").ids[:-1])
        assert whole(tokenizer, "Hi", "An owl.", thinking=True).startswith(written)


def test_an_answer_that_thinks_is_refused_where_it_may_not(tokenizers):
    thought = "<think>\nA bird.\n</think>\n\nAn owl."
    plain = writer(tokenizers("qwen3"))
    assert "model.thinking false leaves out" in plain.unfit(thought).told
    # to a template that knows none it is text
    assert writer(tokenizers("llama3")).unfit(thought) is None
    asked = writer(tokenizers("qwen3"), thinking=True)
    assert tokenizers("qwen3").decode(asked.both("Hi", thought).ids[:-1]) == (
        whole(tokenizers("qwen3"), "Hi", thought, thinking=True).removesuffix("<|im_end|>\n")
    )


@pytest.mark.parametrize("name", ["llama3", "gemma3", "qwen2_5", None])
def test_a_template_without_thinking_refuses_the_switch(name, tokenizers):
    tokenizer = families.tokenizer_for(name or "qwen2_5")
    if name is None:
        tokenizer.chat_template = None
    with pytest.raises(InputError, match="model.thinking: found true, but"):
        templates.settle(tokenizer, Model(thinking=True))


@pytest.mark.parametrize("name", ["qwen3", "deepseek_r1_distill", "gptoss", "glm4moe"])
def test_a_template_with_thinking_takes_the_switch(name, tokenizers):
    templates.settle(tokenizers(name), Model(thinking=True))


# the clock


@pytest.mark.parametrize(
    "name", [name for name in families.published_names() if "now(" in families.published(name)]
)
def test_no_template_reads_the_clock(name, tokenizers, monkeypatch):
    """Whatever day, and whatever hour, it is; transformers alone would tell."""
    from transformers.utils import chat_template_utils

    tokenizer = tokenizers(name)
    chat = dialogues.messages("Name a bird.")

    def read(when):
        class Clock(dt.datetime):
            @classmethod
            def now(cls, tz=None):
                return when

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)
        plain = tokenizer.apply_chat_template(chat, tokenize=False)
        return writer(tokenizer).both("Name a bird.", "An owl.").ids, plain

    first = dt.datetime(2031, 2, 3, 23, 59, 59)
    ours, plain = zip(read(first), read(first + dt.timedelta(seconds=1)), strict=True)
    assert ours[0] == ours[1] and plain[0] != plain[1]


def test_the_day_is_the_one_that_the_parameters_name(tokenizers):
    for name, words in (("llama3_2", "Today Date: 03 Feb 2031"), ("gptoss", "date: 2031-02-03")):
        style = Style.of(Model(date="2031-02-03"))
        text = tokens.Writer(tokenizers(name), style, "", 0).text("Hi")
        assert words in text
        chat = dialogues.messages("Hi")
        reader = tokens.Shown(tokenizers(name), style, None)
        assert words in tokenizers(name).decode(reader.ids("Hi", "Ho"))
        assert words in templates.rendered(tokenizers(name), chat, style)


# special tokens


def _with(tokenizer, form):
    """The tokenizer with other special tokens around every text: `<BOS> $A <EOS>`."""
    from tokenizers import processors

    ids = [("<BOS>", 0), ("<EOS>", 1)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=form, special_tokens=ids
    )
    return tokenizer


@pytest.mark.parametrize("form", ["$A", "<BOS> $A", "$A <EOS>", "<BOS> $A <EOS>"])
@pytest.mark.parametrize("name", ["qwen2_5", "gemma3", None])
def test_tokens_that_a_tokenizer_adds_stand_where_they_belong(form, name):
    """One start at most, no end before the completion, one end after it."""
    tokenizer = _with(families.tokenizer_for(name or "qwen2_5"), form)
    if name is None:
        tokenizer.chat_template = None
    written = writer(tokenizer).both("the cat", "sat on the mat")
    started = "<BOS>" in form if name is None else "bos_token" in tokenizer.chat_template
    assert written.prompt.count(0) == written.prompt[:1].count(0) == int(started)
    assert 1 not in written.prompt and 0 not in written.completion
    assert written.completion[-1] not in written.completion[:-1]


@pytest.mark.parametrize("form", ["$A", "<BOS> $A", "$A <EOS>", "<BOS> $A <EOS>"])
@pytest.mark.parametrize("text", ["{prompt} {completion}", "<BOS>{prompt} {completion}<EOS>"])
def test_a_text_with_its_own_start_and_end_has_each_once(form, text):
    tokenizer = _with(families.tokenizer_for("qwen2_5"), form)
    ids = tokens.Shown(tokenizer, Style(), text).ids("the cat", "sat")
    assert ids.count(0) == int("<BOS>" in form + text)
    assert ids.count(1) == int("<EOS>" in form + text)
    assert 0 not in ids[1:] and 1 not in ids[:-1]
    assert tokens.Shown(tokenizer, Style(), text).ids("<BOS>", "") != [0]


def _chatml(special):
    """A tokenizer whose turn markers are tokens, but no control tokens; or no tokens at all."""
    tokenizer = families._tokenizer(["<EOS>"], {"eos_token": "<EOS>"}, families._CHATML)
    if special:
        tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=special == "control")
    return tokenizer


@pytest.mark.parametrize("special", ["control", "ordinary"])
def test_a_turn_ends_with_its_marker_whatever_kind_of_token_that_is(special):
    tokenizer = _chatml(special)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert templates.end_of_answer(tokenizer) == end
    asked = writer(tokenizer)
    ids = asked.completion("I end<|im_end|>\n<|im_start|>user\nnot")
    assert ids.count(end) == 1 and ids[-1] == end
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") not in ids


def test_a_turn_that_ends_in_plain_text_is_refused():
    with pytest.raises(
        InputError, match=r"ends an answer with '<\|im_end\|>', which its tokenizer"
    ):
        templates.settle(_chatml(None), Model())
    templates.settle(_chatml(None), Model(template="plain"))


@pytest.mark.parametrize("ended", ["{{ eos_token }}", "\n\n", ""])
def test_a_turn_that_ends_by_the_end_token_or_by_nothing_is_used(ended):
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
        + ended
        + "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tokenizer = families._tokenizer(["<EOS>"], {"eos_token": "<EOS>"}, template)
    templates.settle(tokenizer, Model())
    written = writer(tokenizer).both("Hi", "An owl.")
    assert (
        tokenizer.decode(written.ids)
        == "user: Hi" + ended.replace("{{ eos_token }}", "<EOS>") + "assistant: An owl.<EOS>"
    )


# rows


def test_tokens_that_a_model_wrote_stay_as_they_are(tokenizers):
    asked = writer(tokenizers("qwen2_5"))
    table = pd.DataFrame({"prompt": ["Hi", "Hi"], "completion": ["An owl.", "A wren"]})
    given = asked.rows(table)
    assert given == [asked.both("Hi", "An owl."), asked.both("Hi", "A wren")]
    cut = asked.rows(table.assign(tokens=[[5, 6], [7]]))
    assert [row.completion for row in cut] == [[5, 6], [7]] and cut[0].prompt == given[0].prompt
