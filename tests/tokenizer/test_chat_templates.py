"""Dialogues: the templates give the ids of Meta's dialogue encoding, token for token.

Meta's encoding is spelled here with sentencepiece alone, after FACTS.md 5.4: each `encode` call of
Meta's is one `encode` call here.
"""

from __future__ import annotations

from itertools import product

import pytest
from jinja2.exceptions import TemplateError
from jinja2.sandbox import SandboxedEnvironment

from codellama_convert.tokenizer.chat_templates import (
    HEADER_TEMPLATE,
    INST_TEMPLATE,
    STEP_TEMPLATE,
    chat_template,
)
from tests.witness.vocabularies import processor

BOS, EOS = 1, 2
CONTENTS = (
    "hi",
    "  spaced \n",
    "def f(x):\n\treturn x  \n\n",
    "\n    indented",
    "你好 🙂 e\u0301",
    "[INST] <<SYS>> {{ braces }} {% percent %} 'quotes' \"double\" \\n",
    "Source: user\nDestination: assistant",
    "\u00a0no break\u3000",
    "a" + " " * 40 + "b",
    "",
    "   \n ",
)
SYSTEMS = (None, "", "Be brief.", "  Two lines,\n spaced.  ", "\n")


def meta_inst_ids(name: str, system: str | None, turns: list[str]) -> list[int]:
    """Encode user, assistant, user, ... texts as `chat_completion` of 7B to 34B does."""
    encode = processor(name).encode
    if system is not None:
        turns = ["<<SYS>>\n" + system + "\n<</SYS>>\n\n" + turns[0], *turns[1:]]
    ids = []
    for user, answer in zip(turns[::2], turns[1::2], strict=False):
        ids += [BOS, *encode(f"[INST] {user.strip()} [/INST] {answer.strip()} "), EOS]
    if len(turns) % 2:
        ids += [BOS, *encode(f"[INST] {turns[-1].strip()} [/INST]")]
    return ids


def meta_step_ids(
    name: str, messages: list[tuple[str, str, str | None]], *, reply: bool
) -> list[int]:
    """Encode (role, content, destination) messages as `dialog_prompt_tokens` of 70B Instruct does."""
    encode, step = processor(name).encode, processor(name).piece_to_id("<step>")
    if messages[0][0] != "system":
        messages = [("system", "", None), *messages]
    ids = [BOS]
    for role, content, destination in messages:
        header = f" Source: {role.strip()}"
        if destination is not None:
            header += f"\nDestination: {destination.strip()}"
        ids += encode(header)
        if content:
            ids += encode("\n\n " + content.strip())
        ids.append(step)
    if reply:
        ids += encode(" Source: assistant\nDestination: user") + encode("\n\n ")
    return ids


def dialogue(system: str | None, turns: list[str]) -> list[dict[str, str]]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return messages + [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]


def template_ids(tokenizer, messages, *, reply: bool) -> list[int]:
    encoded = tokenizer.apply_chat_template(
        messages, add_generation_prompt=reply, tokenize=True, return_dict=True
    )
    return list(encoded["input_ids"])


def all_turns() -> list[list[str]]:
    single = [[content] for content in CONTENTS]
    double = [[a, b, "then?"] for a, b in product(CONTENTS, CONTENTS)]
    return [*single, *double, ["a", " b ", "c ", " d", "e"], list("abcdefg")]


@pytest.mark.parametrize("name", ["plain", "infilling", "mistral"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_inst_dialogues_have_metas_ids(name, system, auto_of):
    tokenizer = auto_of(name, "instruct")
    for turns in all_turns():
        found = template_ids(tokenizer, dialogue(system, turns), reply=True)
        assert found == meta_inst_ids(name, system, turns), (system, turns)


@pytest.mark.parametrize("name", ["step", "step_control", "mistral_step"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_step_dialogues_have_metas_ids(name, system, auto_of):
    tokenizer = auto_of(name, "instruct")
    for turns in all_turns():
        messages = dialogue(system, turns)
        expected = [(message["role"], message["content"], None) for message in messages]
        found = template_ids(tokenizer, messages, reply=True)
        assert found == meta_step_ids(name, expected, reply=True), (system, turns)


def test_llama_2_chat_uses_the_same_form(auto_of):
    found = template_ids(auto_of("plain", "chat"), dialogue("Be brief.", ["hi"]), reply=True)
    assert found == meta_inst_ids("plain", "Be brief.", ["hi"])


def test_a_destination_is_a_second_header_line(auto_of):
    messages = dialogue(None, ["hi", "hello", "more"])
    messages[1]["destination"] = " user "
    messages[2]["destination"] = None
    expected = [("user", "hi", None), ("assistant", "hello", "user"), ("user", "more", None)]
    found = template_ids(auto_of("step", "instruct"), messages, reply=True)
    assert found == meta_step_ids("step", expected, reply=True)


def test_a_destination_of_none_is_none_in_any_engine():
    """Rendered with jinja2 itself: transformers 5 removes such keys before the template sees them."""
    messages = [{"role": "user", "content": "a", "destination": None}]
    template = SandboxedEnvironment().from_string(chat_template(step=True))
    assert template.render(messages=messages, bos_token="<s>", add_generation_prompt=True) == (
        "<s> Source: system<step> Source: user \n\n a<step>"
        " Source: assistant\nDestination: user \n\n "
    )


def test_the_ids_are_the_right_ones_seen_by_eye(auto_of):
    """The expectations above share sentencepiece; this one is spelled in pieces."""
    tokenizer = auto_of("step", "instruct")
    ids = template_ids(tokenizer, dialogue(None, ["hi"]), reply=True)
    assert "|".join(tokenizer.convert_ids_to_tokens(ids)) == (
        "<s>|▁|▁S|ource|:|▁system|<step>"
        "|▁|▁S|ource|:|▁user|▁|<0x0A>|<0x0A>|▁|hi|<step>"
        "|▁|▁S|ource|:|▁assistant|<0x0A>|D|est|ination|:|▁user|▁|<0x0A>|<0x0A>|▁"
    )


def test_without_a_generation_prompt_an_answer_may_be_last(auto_of):
    turns = ["hi", "hello"]
    found = template_ids(auto_of("plain", "instruct"), dialogue(None, turns), reply=False)
    assert found == meta_inst_ids("plain", None, turns)
    assert found[-1] == EOS
    expected = [("user", "hi", None), ("assistant", "hello", None)]
    found = template_ids(auto_of("step", "instruct"), dialogue(None, turns), reply=False)
    assert found == meta_step_ids("step", expected, reply=False)


def test_without_a_generation_prompt_a_question_may_be_last(auto_of):
    messages = dialogue("s", ["hi"])
    found = template_ids(auto_of("plain", "instruct"), messages, reply=False)
    assert found == meta_inst_ids("plain", "s", ["hi"])
    expected = [("system", "s", None), ("user", "hi", None)]
    found = template_ids(auto_of("step", "instruct"), messages, reply=False)
    assert found == meta_step_ids("step", expected, reply=False)


@pytest.mark.parametrize("name", ["plain", "step"])
@pytest.mark.parametrize(
    ("roles", "fact"),
    [
        ("s", "needs a user message"),
        ("a", "roles must be"),
        ("sa", "roles must be"),
        ("uu", "roles must be"),
        ("us", "roles must be"),
        ("ss", "roles must be"),
        ("uau?", "roles must be"),
        ("ua", "last message must be from user"),
        ("suaua", "last message must be from user"),
    ],
)
def test_dialogues_that_metas_code_refuses_are_refused(name, roles, fact, auto_of):
    names = {"s": "system", "u": "user", "a": "assistant", "?": "tool"}
    messages = [{"role": names[role], "content": "x"} for role in roles]
    tokenizer = auto_of(name, "instruct")
    with pytest.raises(TemplateError, match=fact):
        template_ids(tokenizer, messages, reply=True)
    if roles in ("ua", "suaua"):
        assert template_ids(tokenizer, messages, reply=False)


def rendered(template: str, messages: list[dict[str, object]]) -> str:
    """Render a template with jinja2 itself, as programs other than transformers do."""

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    return (
        SandboxedEnvironment()
        .from_string(template)
        .render(
            messages=messages, bos_token="<s>", eos_token="</s>", raise_exception=raise_exception
        )
    )


@pytest.mark.parametrize("template", [INST_TEMPLATE, STEP_TEMPLATE, HEADER_TEMPLATE])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(
    "content", [{"content": [{"type": "text", "text": "x"}]}, {"content": None}, {"content": 4}, {}]
)
def test_content_that_is_not_a_string_is_refused(template, place, content) -> None:
    """A list of parts stood in the prompt as Python shows it, None as "None"; none was nothing."""
    roles = ("system", "user", "assistant")
    messages: list[dict[str, object]] = [{"role": role, "content": "x"} for role in roles]
    assert rendered(template, messages).count("x") == 3
    messages[place] = {"role": roles[place], **content}
    with pytest.raises(TemplateError, match="must be a string"):
        rendered(template, messages)


@pytest.mark.parametrize("flavor", ["base", "python", None])
def test_models_without_dialogue_have_no_template(flavor, auto_of):
    assert auto_of("plain", flavor).chat_template is None


def test_a_template_with_a_planted_fault_is_found_different(auto_of):
    """The shape that circulates for 70B Instruct: no space before the line breaks, no system turn."""
    tokenizer = auto_of("step", "instruct")
    right = tokenizer.chat_template
    messages = dialogue("s", ["hi"])
    faulty = right.replace(" \\n\\n ", "\\n\\n ")
    assert faulty != right
    expected = meta_step_ids("step", [("system", "s", None), ("user", "hi", None)], reply=True)
    encoded = tokenizer.apply_chat_template(
        messages, chat_template=faulty, add_generation_prompt=True, return_dict=True, tokenize=True
    )
    assert list(encoded["input_ids"]) != expected
    assert template_ids(tokenizer, messages, reply=True) == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [("plain", "a </s> b"), ("plain", "<s>"), ("infilling", "x▁<PRE>y"), ("step", "a<step>b")],
)
def test_literal_special_tokens_in_a_message_become_special_tokens(name, content, auto_of):
    """The corner that no template can mend: Meta's code takes them as text (or refuses `<step>`).

    Applications that let strangers write messages must remove these strings themselves.
    """
    tokenizer = auto_of(name, "instruct")
    found = template_ids(tokenizer, dialogue(None, [content]), reply=True)
    if name == "step":
        expected = meta_step_ids(name, [("user", content, None)], reply=True)
    else:
        expected = meta_inst_ids(name, None, [content])
    assert found != expected


def test_a_destination_that_ends_like_a_space_joins_the_one_after_it(auto_of):
    """The other corner: U+2581 at the end of a header is no white space that strip() would remove."""
    messages = [{"role": "user", "content": "hi", "destination": "x▁"}]
    found = template_ids(auto_of("step", "instruct"), messages, reply=True)
    assert found != meta_step_ids("step", [("user", "hi", "x▁")], reply=True)
