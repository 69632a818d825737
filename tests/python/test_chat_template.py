"""Chat templates: the same text as `transformers`, whatever a template tries."""

from datetime import datetime

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from runtime.chat_template import ChatTemplate
from runtime.errors import InvalidRequestError, ModelFormatError

CHATML = """{%- for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

LLAMA = """{{ bos_token }}
{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('roles must alternate') }}
    {% endif %}
    {% if message['role'] == 'user' %}
[INST] {{ message['content'] | trim }} [/INST]
    {% else %}
{% generation %} {{ message['content'] }} {{ eos_token }}{% endgeneration %}
    {% endif %}
{% endfor %}"""

TOOLS = """{%- set ns = namespace(seen=0) -%}
{%- if tools is not none %}{%- for tool in tools %}{%- set ns.seen = ns.seen + 1 %}
{{ tool | tojson(indent=2) }}
{%- if ns.seen > 1 %}{%- break %}{%- endif %}{%- endfor %}{%- endif %}
{{ strftime_now('%d %b %Y') }}
{% for message in messages %}{{ message.role }}: {{ message.content }}<&>{{ '\n' }}{% endfor %}"""

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TALK = [
    {"role": "user", "content": " Wie heißt du? <b> "},
    {"role": "assistant", "content": "Ich bin's\n😀"},
    {"role": "user", "content": "{{ 7*7 }}"},
]
FUNCTIONS = [{"type": "function", "function": {"name": name, "description": "Größe > 1 & so"}} for name in "abc"]


@pytest.fixture
def make():
    made = []

    def build(source, **options):
        made.append(ChatTemplate(source, TOKENS, **options))
        return made[-1]

    yield build
    for template in made:
        template.close()


@pytest.mark.parametrize("source", [CHATML, LLAMA, TOOLS])
@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize("tools", [None, FUNCTIONS])
def test_renders_as_transformers_does(make, source, add_generation_prompt, tools):
    expected, _ = render_jinja_template(
        [TALK], chat_template=source, add_generation_prompt=add_generation_prompt, tools=tools, **TOKENS
    )
    rendered = make(source).render(TALK, add_generation_prompt=add_generation_prompt, tools=tools)
    assert rendered == expected[0]


def test_the_date_is_todays(make):
    assert make("{{ strftime_now('%Y') }}").render(TALK) == datetime.now().strftime("%Y")


def test_further_variables_reach_the_template(make):
    assert make("{{ enable_thinking }}").render(TALK, enable_thinking=False) == "False"


def test_raise_exception_refuses_the_messages(make):
    with pytest.raises(InvalidRequestError, match="roles must alternate"):
        make(LLAMA).render(TALK[1:])


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ (lambda: 1)() }}",
        "{% if %}",
        "{{ undefined.attribute }}",
    ],
)
def test_what_the_sandbox_forbids_is_a_fault_of_the_template(make, source):
    with pytest.raises(ModelFormatError, match="chat template"):
        make(source).render(TALK)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 10000000000 }}",
        "{{ 'x' | center(10000000000) }}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
    ],
)
def test_time_memory_and_output_are_bounded(make, source):
    template = make(source, timeout_s=0.5)
    with pytest.raises(ModelFormatError):
        template.render(TALK)
    template.source = "{{ messages[0].role }}"
    assert template.render(TALK) == "user"  # the next rendering has a new process


@pytest.mark.parametrize(
    "messages, sentence",
    [
        ([], "at least one message"),
        ("hello", "a list of"),
        ([{"content": "x"}], r"messages\[0\]"),
        ([{"role": "user", "content": object()}], "plain JSON"),
    ],
)
def test_messages_must_be_a_conversation(make, messages, sentence):
    with pytest.raises(InvalidRequestError, match=sentence):
        make(CHATML).render(messages)
