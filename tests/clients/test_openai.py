"""The official `openai` package, unmodified."""

import asyncio
import json
from typing import Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

from server import PATIENCE, Server

ASK = [{"role": "user", "content": "find all files larger than 100MB"}]

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Rome", "Oslo", "Lima"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


def check_weather(call):
    assert call.type == "function" and call.id
    assert call.function.name == "get_weather"
    arguments = json.loads(call.function.arguments)
    assert set(arguments) == {"city", "days"}
    assert arguments["city"] in ("Rome", "Oslo", "Lima") and 1 <= arguments["days"] <= 7


def test_models_are_listed(client, model):
    found = client.models.retrieve(model)
    assert found.id == model and found.object == "model" and found.owned_by == "sedge"


def test_a_chat_is_answered(client, model):
    answer = client.chat.completions.create(model=model, messages=ASK, max_tokens=40, temperature=0)
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage.prompt_tokens > 0 and answer.usage.completion_tokens <= 40
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_conversation_of_all_roles_and_parts_is_taken(client, model):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is"}, {"type": "text", "text": "grep?"}]},
        {"role": "assistant", "content": "A tool that finds text."},
        {"role": "user", "content": "And sed?", "name": "ann"},
    ]
    answer = client.chat.completions.create(model=model, messages=messages, max_completion_tokens=10, user="ann")
    assert answer.usage.completion_tokens <= 10


def test_a_stream_says_the_same_and_ends_with_the_usage(client, model):
    request = dict(model=model, messages=ASK, max_tokens=40, temperature=0)
    whole = client.chat.completions.create(**request)
    chunks = list(client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_the_stream_helper_collects_an_answer(client, model):
    with client.chat.completions.stream(model=model, messages=ASK, max_tokens=20) as stream:
        kinds = {event.type for event in stream}
        answer = stream.get_final_completion()
    assert "content.delta" in kinds and answer.choices[0].message.content


def test_n_answers_differ_and_a_seed_repeats_them(client, model):
    def texts(seed):
        answer = client.chat.completions.create(
            # The model is sure of its answer to this question: only heat makes it say anything else.
            model=model, messages=ASK, n=3, seed=seed, temperature=5, top_p=1, max_tokens=20,
            extra_body={"top_k": 0, "min_p": 0},
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.message.content for choice in answer.choices]

    first = texts(1)
    assert first == texts(1)
    assert len(set(first)) == 3 and not set(first) & set(texts(2))


def test_stop_texts_end_an_answer_and_are_not_in_it(client, model):
    request = dict(model=model, messages=ASK, max_tokens=40, temperature=0)
    full = client.chat.completions.create(**request).choices[0].message.content
    stop = full[len(full) // 2 :][:3]
    answer = client.chat.completions.create(**request, stop=[stop]).choices[0]
    assert answer.message.content == full[: full.index(stop)]
    assert answer.finish_reason == "stop"


def test_penalties_and_biases_are_taken(client, model):
    answer = client.chat.completions.create(
        model=model, messages=ASK, max_tokens=5, top_p=0.9, presence_penalty=0.5, frequency_penalty=0.5,
        logit_bias={"5": -100}, extra_body={"top_k": 40, "min_p": 0.01, "repetition_penalty": 1.1},
    )
    assert answer.choices[0].message.content is not None


def test_logprobs_belong_to_the_text(client, model):
    answer = client.chat.completions.create(
        model=model, messages=ASK, max_tokens=8, temperature=0, logprobs=True, top_logprobs=3
    ).choices[0]
    tokens = answer.logprobs.content
    assert b"".join(bytes(token.bytes or []) for token in tokens).decode() == answer.message.content
    for token in tokens:
        assert len(token.top_logprobs) == 3 and token.logprob <= 0
        # Greedy: the chosen token is the likeliest.
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_required_call_has_valid_arguments(client, model, choice):
    answer = client.chat.completions.create(model=model, messages=ASK, tools=[WEATHER], tool_choice=choice)
    assert answer.choices[0].finish_reason == "tool_calls"
    check_weather(answer.choices[0].message.tool_calls[0])


def test_a_streamed_call_is_the_same(client, model):
    with client.chat.completions.stream(
        model=model, messages=ASK, tools=[WEATHER], tool_choice="required", temperature=0
    ) as stream:
        for _ in stream:
            pass
        answer = stream.get_final_completion()
    assert answer.choices[0].finish_reason == "tool_calls"
    check_weather(answer.choices[0].message.tool_calls[0])


def test_tools_are_optional_by_default_and_results_go_back(client, model):
    first = client.chat.completions.create(model=model, messages=ASK, tools=[WEATHER], tool_choice="required")
    message = first.choices[0].message
    call = message.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    answer = client.chat.completions.create(
        model=model, messages=[*ASK, message, result], tools=[WEATHER], max_tokens=20
    )
    assert answer.choices[0].message.content or answer.choices[0].message.tool_calls


def test_pydantic_models_come_back_filled(client, model):
    class Part(BaseModel):
        name: Literal["bolt", "nut"]
        count: int = Field(ge=1, le=99)

    class Order(BaseModel):
        urgent: bool
        parts: list[Part] = Field(min_length=1, max_length=2)

    answer = client.chat.completions.parse(model=model, messages=ASK, response_format=Order, seed=3)
    order = answer.choices[0].message.parsed
    assert isinstance(order, Order) and 1 <= len(order.parts) <= 2


def test_json_objects_and_grammars_are_kept(client, model):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
              "additionalProperties": False}
    for extra in (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
        {"extra_body": {"grammar": {"type": "json_schema", "value": schema}}},
    ):
        answer = client.chat.completions.create(model=model, messages=ASK, seed=5, **extra)
        assert isinstance(json.loads(answer.choices[0].message.content)["ok"], bool)
    # Any object may be long: what there is of it must be the beginning of one.
    answer = client.chat.completions.create(
        model=model, messages=ASK, response_format={"type": "json_object"}, max_tokens=30
    ).choices[0]
    assert answer.message.content.lstrip().startswith("{")
    if answer.finish_reason == "stop":
        assert isinstance(json.loads(answer.message.content), dict)
    answer = client.chat.completions.create(
        model=model, messages=ASK, extra_body={"grammar": 'start: "yes" | "no"'}
    )
    assert answer.choices[0].message.content in ("yes", "no")


def test_texts_are_continued_with_echo_and_logprobs(client, model):
    answer = client.completions.create(
        model=model, prompt=["The file", "A folder"], max_tokens=4, echo=True, logprobs=2, temperature=0
    )
    for choice, prompt in zip(answer.choices, ("The file", "A folder")):
        assert choice.text.startswith(prompt)
        assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs)
        assert choice.logprobs.token_logprobs[0] is None
        assert all(value <= 0 for value in choice.logprobs.token_logprobs[1:])
    streamed = client.completions.create(model=model, prompt="The file", max_tokens=4, temperature=0, stream=True)
    assert "The file" + "".join(chunk.choices[0].text for chunk in streamed) == answer.choices[0].text


def test_embeddings_agree_in_both_encodings(client, model):
    texts = ["find a file", "remove a folder"]
    # The package asks for base64 unless told otherwise.
    packed = client.embeddings.create(model=model, input=texts)
    plain = client.embeddings.create(model=model, input=texts, encoding_format="float")
    for a, b in zip(packed.data, plain.data):
        assert a.embedding == pytest.approx(b.embedding, abs=1e-6)
        assert sum(x * x for x in a.embedding) == pytest.approx(1, abs=1e-5)
    assert packed.data[0].embedding != packed.data[1].embedding
    short = client.embeddings.create(model=model, input=texts[0], dimensions=16)
    assert len(short.data[0].embedding) == 16


def test_errors_are_the_packages_own(client, model):
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="nothing", messages=ASK)
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=model, messages=ASK, temperature=-1)
    assert error.value.param == "temperature"
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://localhost/x.png"}}]}]
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=model, messages=image)
    assert error.value.param == "messages[0].content[0].type"
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "word " * 50_000}])
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=model, messages=ASK, extra_body={"colour": "red"})
    assert error.value.param == "colour"


def test_many_at_once_are_all_answered(server, model):
    async def ask_all():
        async with AsyncOpenAI(base_url=server.url + "/v1", api_key="none", timeout=PATIENCE) as client:
            asks = [
                client.chat.completions.create(model=model, messages=ASK, max_tokens=12, temperature=0)
                for _ in range(24)
            ]
            return await asyncio.gather(*asks)

    texts = {answer.choices[0].message.content for answer in asyncio.run(ask_all())}
    assert len(texts) == 1, "company changes nobody's answer"


def test_a_client_that_leaves_frees_its_slot(server, client, model):
    before = server.metric("sedge_requests_cancelled_total")
    stream = client.chat.completions.create(
        model=model, messages=ASK, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    server.wait_for(lambda: server.metric("sedge_requests_cancelled_total") == before + 1, "the cancelling")
    server.wait_for(lambda: server.metric("sedge_requests_running") == 0, "the free slot")
    assert server.metric("sedge_kv_pages_used") == 0


def test_keys_are_asked_for():
    server = Server("--api-key", "sesame")
    try:
        with pytest.raises(openai.AuthenticationError):
            OpenAI(base_url=server.url + "/v1", api_key="wrong", max_retries=0).models.list()
        assert OpenAI(base_url=server.url + "/v1", api_key="sesame", max_retries=0).models.list().data
    finally:
        assert server.stop() == 0


def test_sigterm_lets_a_running_answer_end():
    server = Server()
    client = OpenAI(base_url=server.url + "/v1", api_key="none", timeout=PATIENCE, max_retries=0)
    stream = client.chat.completions.create(
        model="", messages=ASK, stream=True, max_tokens=150, extra_body={"ignore_eos": True}
    )
    chunks = iter(stream)
    assert next(chunks).choices[0].delta.role == "assistant"
    server.terminate()
    assert list(chunks)[-1].choices[0].finish_reason == "length"
    # Not `stop`: a second signal means now.
    assert server.process.wait(PATIENCE) == 0
    with pytest.raises(openai.APIConnectionError):
        client.models.list()
