"""Runs the official Python clients against a running server: clients.py URL"""

import json
import sys

import anthropic
import openai

URL = sys.argv[1]
MODEL = "default"
ASK = [{"role": "user", "content": "It is a truth universally acknowledged"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "The weather", "parameters": PARAMETERS}}
THINK = {"chat_template_kwargs": {"think": True}}

oai = openai.OpenAI(base_url=URL + "/v1", api_key="key", max_retries=0, timeout=60)
ant = anthropic.Anthropic(base_url=URL, api_key="key", max_retries=0, timeout=60)


def check_arguments(arguments):
    assert arguments["city"] in ("Paris", "Rome") and 1 <= arguments["days"] <= 9, arguments


def chat():
    whole = oai.chat.completions.create(model=MODEL, messages=ASK, max_completion_tokens=8, logprobs=True, top_logprobs=2)
    assert whole.choices[0].message.content and whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 8 == len(whole.choices[0].logprobs.content)
    text, usage = "", None
    stream = oai.chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=8, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
        usage = chunk.usage or usage
    assert text == whole.choices[0].message.content, (text, whole)
    assert usage.total_tokens == usage.prompt_tokens + 8
    thinking = oai.chat.completions.create(model=MODEL, messages=ASK, max_tokens=8, extra_body=THINK)
    assert thinking.choices[0].message.reasoning_content and thinking.usage.completion_tokens_details.reasoning_tokens == 8


def chat_stream_helper():
    choice = {"structured_outputs": {"choice": ["truth"]}}
    with oai.chat.completions.stream(model=MODEL, messages=ASK, extra_body=choice) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "content.delta" in kinds and final.choices[0].message.content == "truth"


def tools():
    choice = {"type": "function", "function": {"name": "get_weather"}}
    whole = oai.chat.completions.create(model=MODEL, messages=ASK, tools=[TOOL], tool_choice=choice, max_tokens=100)
    call = whole.choices[0].message.tool_calls[0]
    check_arguments(json.loads(call.function.arguments))
    assert whole.choices[0].finish_reason == "tool_calls"
    messages = ASK + [
        whole.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "Sunny"},
    ]
    assert oai.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL], max_tokens=4).choices[0].message.content
    name, arguments = "", ""
    for chunk in oai.chat.completions.create(
        model=MODEL, messages=ASK, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, max_tokens=100, stream=True
    ):
        for delta in chunk.choices[0].delta.tool_calls or []:
            name += delta.function.name or ""
            arguments += delta.function.arguments or ""
    assert name == "get_weather"
    check_arguments(json.loads(arguments))


def structured():
    response_format = {"type": "json_schema", "json_schema": {"name": "weather", "strict": True, "schema": PARAMETERS}}
    whole = oai.chat.completions.create(model=MODEL, messages=ASK, response_format=response_format, max_tokens=100)
    check_arguments(json.loads(whole.choices[0].message.content))


def text():
    whole = oai.completions.create(model=MODEL, prompt="It is a truth", max_tokens=5, logprobs=1)
    assert whole.choices[0].text.startswith(" ") and len(whole.choices[0].logprobs.tokens) == 5
    streamed = "".join(
        chunk.choices[0].text for chunk in oai.completions.create(model=MODEL, prompt="It is a truth", max_tokens=5, stream=True)
    )
    assert streamed == whole.choices[0].text


def responses():
    whole = oai.responses.create(model=MODEL, input="It is a truth", max_output_tokens=8, store=False)
    assert whole.output_text and whole.status == "incomplete" and whole.usage.output_tokens == 8
    with oai.responses.stream(model=MODEL, input="It is a truth", max_output_tokens=8) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response() if "response.completed" in kinds else None
    assert kinds[0] == "response.created" and "response.output_text.delta" in kinds, kinds
    tool = {"type": "function", "strict": False, **TOOL["function"]}
    events = list(
        oai.responses.create(
            model=MODEL, input="The weather?", tools=[tool], tool_choice={"type": "function", "name": "get_weather"}, stream=True
        )
    )
    assert events[-1].type == "response.completed", events[-1]
    check_arguments(json.loads(events[-1].response.output[0].arguments))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert final is None or final.id


def models():
    assert oai.models.list().data[0].id == "austen-qwen3-moe-4bit"
    assert oai.models.retrieve("austen-qwen3-moe-4bit").owned_by == "zmlx"
    assert ant.models.list().data[0].id == "austen-qwen3-moe-4bit"


def errors():
    for make, kind in [
        (lambda: oai.chat.completions.create(model="other", messages=ASK), openai.NotFoundError),
        (lambda: oai.chat.completions.create(model=MODEL, messages=[]), openai.BadRequestError),
        (lambda: oai.chat.completions.create(model=MODEL, messages=ASK, temperature=9), openai.BadRequestError),
        (lambda: oai.with_options(api_key="wrong").models.list(), openai.AuthenticationError),
        (lambda: ant.messages.create(model=MODEL, max_tokens=1, messages=[]), anthropic.BadRequestError),
        (lambda: ant.messages.create(model="claude", max_tokens=1, messages=ASK), anthropic.NotFoundError),
        (lambda: ant.with_options(api_key="wrong").messages.create(model=MODEL, max_tokens=1, messages=ASK), anthropic.AuthenticationError),
    ]:
        try:
            make()
        except kind as error:
            assert error.request_id, error
        else:
            raise AssertionError(f"{kind} did not come")
    try:
        oai.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "truth " * 5000}])
    except openai.BadRequestError as error:
        assert error.code == "context_length_exceeded" and error.param == "messages"


def messages():
    whole = ant.messages.create(model=MODEL, max_tokens=8, messages=ASK, system="Be brief.")
    assert whole.content[0].text and whole.stop_reason == "max_tokens" and whole.usage.output_tokens == 8
    counted = ant.messages.count_tokens(model=MODEL, messages=ASK, system="Be brief.")
    assert counted.input_tokens == whole.usage.input_tokens + whole.usage.cache_read_input_tokens
    with ant.messages.stream(model=MODEL, max_tokens=8, messages=ASK, system="Be brief.") as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.stop_reason == "max_tokens" and final.usage.output_tokens == 8
    tool = {"name": "get_weather", "input_schema": PARAMETERS}
    choice = {"type": "tool", "name": "get_weather"}
    with ant.messages.stream(
        model=MODEL, max_tokens=100, messages=ASK, tools=[tool], tool_choice={**choice, "disable_parallel_tool_use": True}
    ) as stream:
        final = stream.get_final_message()
    assert final.stop_reason == "tool_use"
    check_arguments(final.content[0].input)
    follow = ASK + [
        {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in final.content]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": final.content[0].id, "content": "Sunny"}]},
    ]
    assert ant.messages.create(model=MODEL, max_tokens=4, messages=follow, tools=[tool]).content
    thinking = ant.messages.create(model=MODEL, max_tokens=8, messages=ASK, extra_body=THINK)
    assert thinking.content


for run in [chat, chat_stream_helper, tools, structured, text, responses, models, errors, messages]:
    run()
    print("ok", run.__name__)
