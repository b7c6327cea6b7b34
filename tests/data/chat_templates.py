"""Chat templates in the formats of well-known models, each with and without marks of what the model generates.

Written for these tests: they have the formats' turns, default texts and oddities, and not all of their features. `[[`
and `]]` stand where a template for training would have {% generation %} and {% endgeneration %}.
"""

_CHATML = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['role'] == 'assistant' -%}[[{{- message['content'] + '<|im_end|>\n' -}}]]"
    "{%- else -%}{{- message['content'] + '<|im_end|>\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
# A default system's message, as SmolLM2 and Qwen 2.5 have.
_DEFAULT_SYSTEM = (
    "{%- if messages[0]['role'] != 'system' -%}{{- '<|im_start|>system\nYou are helpful.<|im_end|>\n' -}}{%- endif -%}"
) + _CHATML
_LLAMA_3 = (
    "{{- bos_token -}}{%- set system = '' -%}{%- set rest = messages -%}"
    "{%- if messages[0]['role'] == 'system' -%}"
    "{%- set system = messages[0]['content'] | trim -%}{%- set rest = messages[1:] -%}{%- endif -%}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\n' -}}"
    "{{- 'Today Date: ' + strftime_now('%d %b %Y') + '\n\n' + system + '<|eot_id|>' -}}"
    "{%- for message in rest -%}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' -}}"
    "{%- if message.role == 'assistant' -%}[[{{- message['content'] | trim + '<|eot_id|>' -}}]]"
    "{%- else -%}{{- message['content'] | trim + '<|eot_id|>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{%- endif -%}"
)
_LLAMA_2 = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{- bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' -}}"
    "{%- elif message['role'] == 'assistant' -%}[[{{- ' ' + message['content'].strip() + ' ' + eos_token -}}]]"
    "{%- else -%}{{- raise_exception('no such role') -}}{%- endif -%}"
    "{%- endfor -%}"
)
_MISTRAL = (
    "{%- if messages[0].role == 'system' -%}{%- set first = messages[0].content -%}{%- set rest = messages[1:] -%}"
    "{%- else -%}{%- set rest = messages -%}{%- endif -%}{{- bos_token -}}"
    "{%- for message in rest -%}"
    "{%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{- raise_exception('they take turns') -}}{%- endif -%}"
    "{%- if message.role == 'user' -%}"
    "{%- if loop.first and first is defined -%}{{- '[INST] ' + first + '\n\n' + message.content + '[/INST]' -}}"
    "{%- else -%}{{- '[INST] ' + message.content + '[/INST]' -}}{%- endif -%}"
    "{%- else -%}[[{{- ' ' + message.content | trim + eos_token -}}]]{%- endif -%}"
    "{%- endfor -%}"
)
_GEMMA = (
    "{{- bos_token -}}"
    "{%- if messages[0]['role'] == 'system' -%}{{- raise_exception('System role not supported') -}}{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}{%- set role = 'model' -%}{%- else -%}{%- set role = message['role'] -%}"
    "{%- endif -%}{{- '<start_of_turn>' + role + '\n' -}}"
    "{%- if role == 'model' -%}[[{{- message['content'] | trim + '<end_of_turn>\n' -}}]]"
    "{%- else -%}{{- message['content'] | trim + '<end_of_turn>\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}"
)
# Reasoning is written in the last turn alone, where an empty one stands if there is none.
_QWEN_3 = (
    "{%- set ns = namespace(last=0) -%}"
    "{%- for message in messages[::-1] -%}{%- if message.role == 'user' and not ns.last -%}"
    "{%- set ns.last = messages | length - loop.index0 -%}{%- endif -%}{%- endfor -%}"
    "{%- for message in messages -%}"
    "{%- set content = message.content if message.content is string else '' -%}"
    "{%- if message.role == 'assistant' -%}"
    "{%- set reasoning = message.reasoning_content or '' -%}{{- '<|im_start|>assistant\n' -}}[["
    "{%- if loop.index > ns.last -%}{{- '<think>\n' + reasoning + '\n</think>\n\n' -}}{%- endif -%}"
    "{{- content.lstrip('\n') -}}"
    "{%- for call in message.tool_calls or [] -%}{{- '<tool_call>' + (call | tojson) + '</tool_call>' -}}{%- endfor -%}"
    "{{- '<|im_end|>\n' -}}]]"
    "{%- elif message.role == 'tool' -%}{{- '<|im_start|>user\n<tool_response>' + content + '<|im_end|>\n' -}}"
    "{%- else -%}{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
# The text ends with EOS, which the turns before do not have.
_PHI_3 = (
    "{%- for message in messages -%}{{- '<|' + message['role'] + '|>\n' -}}"
    "{%- if message['role'] == 'assistant' -%}[[{{- message['content'] + '<|end|>\n' -}}]]"
    "{%- else -%}{{- message['content'] + '<|end|>\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>\n' -}}"
    "{%- elif messages[-1]['role'] == 'assistant' -%}[[{{- eos_token -}}]]{%- else -%}{{- eos_token -}}{%- endif -%}"
)
# Headers are plain text, and messages are read by number.
_VICUNA = (
    "{%- for i in range(messages | length) -%}{%- set message = messages[i] -%}"
    "{%- if message.role == 'assistant' -%}{{- 'ASSISTANT:' -}}[[{{- ' ' + message.content + eos_token -}}]]"
    "{%- else -%}{{- message.role | upper + ': ' + message.content + ' ' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"
)
_ALL = {
    "chatml": _CHATML,
    "default_system": _DEFAULT_SYSTEM,
    "llama_3": _LLAMA_3,
    "llama_2": _LLAMA_2,
    "mistral": _MISTRAL,
    "gemma": _GEMMA,
    "qwen_3": _QWEN_3,
    "phi_3": _PHI_3,
    "vicuna": _VICUNA,
}


def _replaced(source: str, begin: str, end: str) -> str:
    return source.replace("[[", begin).replace("]]", end)


PLAIN = {name: _replaced(source, "", "") for name, source in _ALL.items()}
MARKED = {name: _replaced(source, "{%- generation -%}", "{%- endgeneration -%}") for name, source in _ALL.items()}
_SPECIALS = "<s> </s> <|im_start|> <|im_end|> <|start_header_id|> <|end_header_id|> <|eot_id|> [INST] [/INST]"
SPECIALS = f"{_SPECIALS} <start_of_turn> <end_of_turn> <|user|> <|assistant|> <|system|> <|end|>".split(" ")
