#!/usr/bin/env python3
"""Records what Hugging Face's Jinja2 environment makes of conversations: conversations.py > conversations.json

Needs `pip install jinja2 transformers`; the tests need only the recording. The templates (*.jinja beside this file, or those
given as arguments) write conversations as GLM-4.5 to 4.7, Qwen3 and Qwen3-Coder want them. Messages are recorded as clients
send them; templates see them as zmlx hands them over: arguments as objects, no null."""
import copy
import json
import pathlib
import sys

import jinja2
import transformers
from transformers.utils.chat_template_utils import _compile_jinja_template

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": " Weather of a town, e.g. Zürich <now> & 'then' 天気 ",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The town", "enum": ["Paris", "Zürich"]},
                "days": {"type": ["integer", "null"], "default": None, "minimum": 1, "maximum": 1e2},
                "where": {"type": "object", "properties": {"lat": {"type": "number"}}, "additionalProperties": False},
            },
            "required": ["city"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}


def call(name, arguments):
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


def user(content):
    return {"role": "user", "content": content}


SYSTEM = {"role": "system", "content": "Be brief. “Quotes” & <tags>."}
CALLS = {
    "role": "assistant",
    "content": None,
    "reasoning_content": "\nI need two things.\n",
    "tool_calls": [
        call("get_weather", '{"city": "Zürich", "days": 3, "where": {"lat": 47.0, "near": [true, null, "x\\"y"]}}'),
        call("get_time", ""),
    ],
}
RESULTS = [
    {"role": "tool", "tool_call_id": "call_1", "content": '{"sky": "klar ☀"}'},
    {"role": "tool", "tool_call_id": "call_2", "content": "12:30\n"},
]
CONVERSATIONS = {
    "question": [user("Hello")],
    "system": [SYSTEM, user(" Hello 🦀\n")],
    "turns": [SYSTEM, user("a"), {"role": "assistant", "content": "A."}, user("b"),
              {"role": "assistant", "content": " B. \n"}, user("c")],
    "thought in the text": [user("a"), {"role": "assistant", "content": "<think>\nhm\n</think>\n\nA."}, user("b"),
                            {"role": "assistant", "content": "<think>so\n</think>B."}],
    "thought apart": [user("a"), {"role": "assistant", "content": "A.", "reasoning_content": "hm"}, user("b"),
                      {"role": "assistant", "content": "\n\nB.", "reasoning_content": "\nso\n\nso\n"}],
    "parts": [user([{"type": "text", "text": "one "}, {"type": "text", "text": "two"}])],
    "calls": [SYSTEM, user("Weather?"), CALLS, *RESULTS],
    "after calls": [user("Weather?"), CALLS, *RESULTS, {"role": "assistant", "content": "Clear."}, user("Thanks")],
    "calls with text": [user("Weather?"), {**CALLS, "content": "Let me look.", "tool_calls": CALLS["tool_calls"][:1]},
                        RESULTS[0]],
    "system in the middle": [user("a"), {"role": "assistant", "content": "A."}, SYSTEM, user("/nothink")],
    "unknown role": [user("a"), {"role": "critic", "content": "no"}],
}
SETTINGS = [
    {"tools": None, "kwargs": {}},
    {"tools": [WEATHER, TIME], "kwargs": {}},
    {"tools": None, "kwargs": {"enable_thinking": False}},
    {"tools": [WEATHER], "kwargs": {"enable_thinking": True, "clear_thinking": False}},
]


def normal(messages):
    messages = copy.deepcopy(messages)
    for message in messages:
        message["content"] = message["content"] if message["content"] is not None else ""
        for made in message.get("tool_calls", []):
            made["function"]["arguments"] = json.loads(made["function"]["arguments"] or "{}")
    return messages


def main():
    here = pathlib.Path(__file__).parent
    files = [pathlib.Path(arg) for arg in sys.argv[1:]] or sorted(here.glob("*.jinja"))
    cases = []
    for file in files:
        template = _compile_jinja_template(file.read_text(encoding="utf-8"))
        for name, messages in CONVERSATIONS.items():
            for settings in SETTINGS:
                for opens in (True, False):
                    case = {"template": file.name, "name": name, "messages": messages, "opens": opens, **settings}
                    try:
                        case["text"] = template.render(messages=normal(messages), tools=settings["tools"],
                                                       documents=None, add_generation_prompt=opens,
                                                       **settings["kwargs"])
                    except jinja2.TemplateError:
                        case["fails"] = True
                    except TypeError:
                        case["fails"] = True
                    cases.append(case)
    versions = {"jinja2": jinja2.__version__, "transformers": transformers.__version__}
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    print('{"recorded_with": %s, "cases": [\n%s\n]}' % (json.dumps(versions), lines))


main()
