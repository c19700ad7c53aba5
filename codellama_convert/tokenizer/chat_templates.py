"""Own how a dialogue becomes a prompt, as Jinja templates.

A template's text goes through tokenizer.json, which cuts it at special tokens and puts SentencePiece's
leading space before each part: the same places where Meta's code starts a new `encode` call. Where
Meta starts a new call without a special token between, the template writes that space out.

Sources:
    meta-llama/codellama llama/generation.py: `chat_completion`, `dialog_prompt_tokens`.
    meta-llama/llama-models models/llama3/chat_format.py: `encode_dialog_prompt`.
"""

from __future__ import annotations

# `trim` makes a text of anything: of None "None", of a list of parts what Python shows of it.
_TEXT_ONLY = (
    "{% if message['content'] is not string %}"
    "{{ raise_exception('the content of a message must be a string') }}{% endif %}"
)
_ALL_TEXT = "{% for message in messages %}" + _TEXT_ONLY + "{% endfor %}"

# On one line each: engines differ in which line breaks and indents around a block they keep.
# Meta strips the folded text, system message included, so the trim is outside of the sum.
INST_TEMPLATE = _ALL_TEXT + (
    "{% if messages and messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% set turns = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% if not turns %}{{ raise_exception('a dialogue needs a user message') }}{% endif %}"
    "{% for message in turns %}"
    "{% if message['role'] != ('assistant' if loop.index0 % 2 else 'user') %}"
    "{{ raise_exception('roles must be user, assistant, user, ... after an optional system message') }}"
    "{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + ((system if loop.first else '') + message['content']) | trim"
    " + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt and turns[-1]['role'] != 'user' %}"
    "{{ raise_exception('the last message must be from user') }}{% endif %}"
)

# Meta encodes header and body of a message apart, which puts a space before the body's line breaks.
STEP_TEMPLATE = _ALL_TEXT + (
    "{% if messages and messages[0]['role'] == 'system' %}{% set dialog = messages %}"
    "{% else %}{% set dialog = [{'role': 'system', 'content': ''}] + messages %}{% endif %}"
    "{% if dialog | length < 2 %}"
    "{{ raise_exception('a dialogue needs a user message') }}{% endif %}"
    "{{ bos_token }}"
    "{% for message in dialog %}"
    "{% if message['role'] !="
    " ('system' if loop.first else 'user' if loop.index0 % 2 else 'assistant') %}"
    "{{ raise_exception('roles must be user, assistant, user, ... after an optional system message') }}"
    "{% endif %}"
    "{{ ' Source: ' + message['role'] }}"
    "{% if message['destination'] is defined and message['destination'] is not none %}"
    "{{ '\\nDestination: ' + message['destination'] | trim }}{% endif %}"
    "{% if message['content'] %}{{ ' \\n\\n ' + message['content'] | trim }}{% endif %}"
    "{{ '<step>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{% if dialog[-1]['role'] != 'user' %}"
    "{{ raise_exception('the last message must be from user') }}{% endif %}"
    "{{ ' Source: assistant\\nDestination: user \\n\\n ' }}{% endif %}"
)

# Meta encodes the header's line breaks and the content apart, which is the same if the content does
# not begin with white space. Llama 3's code strips it, that of later ones takes it as it is.
# Tool calls have other forms (JSON, or code behind a token): better none than a wrong one.
HEADER_TEMPLATE = (
    "{% if tools is defined and tools %}"
    "{{ raise_exception('tools are not written: put them into the system message') }}{% endif %}"
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% set role = 'ipython' if message['role'] == 'tool' else message['role'] %}"
    "{% if role not in ['system', 'user', 'assistant', 'ipython'] %}"
    "{{ raise_exception('roles must be system, user, assistant or ipython') }}{% endif %}"
    "{% if message['tool_calls'] is defined and message['tool_calls'] %}"
    "{{ raise_exception('tool calls are not written: put them into the content') }}{% endif %}"
    + _TEXT_ONLY
    + "{{ '<|start_header_id|>' + role + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def chat_template(*, step: bool) -> str:
    """Choose the dialogue form as Meta's code does: by whether the tokenizer has a `<step>` piece.

    Args:
        step: Whether it has one (Code Llama 70B Instruct).

    Returns:
        A template for `apply_chat_template`, which gives it `messages`, `bos_token`, `eos_token`,
        `add_generation_prompt` and `raise_exception`.
    """
    return STEP_TEMPLATE if step else INST_TEMPLATE
