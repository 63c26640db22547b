"""What OpenAI clients see of the real server with the real default model."""

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from conftest import serve

QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
CONVERSATION = [
    {"role": "system", "content": "You answer in short sentences."},
    {"role": "user", "content": "Name three animals that live in the sea."},
    {"role": "assistant", "content": "Whales, sharks and crabs live in the sea."},
    {"role": "user", "content": "Which of them is the largest, and how large does it become?"},
]
SCHEDULERS = ["vllm", "vllm-v1", "sarathi", "orca", "fastertransformer", "chunked"]


def gauges(url):
    text = httpx.get(f"{url}/metrics").text
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    lines = [line for line in text.splitlines() if line.startswith(names)]
    return {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in lines}


def wait_for(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_chat_answers(client, model):
    answer = client.chat.completions.create(model=model, messages=QUESTION, temperature=0, max_tokens=16)
    assert "paris" in answer.choices[0].message.content.lower()
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_streamed_text_is_the_same(client, model):
    ask = dict(model=model, messages=QUESTION, temperature=0, max_tokens=24)
    whole = client.chat.completions.create(**ask).choices[0]
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason]
    assert text == whole.message.content
    assert reasons == [whole.finish_reason]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0


def test_the_example_chats(url):
    example = Path(__file__).parents[3] / "examples/chat.py"
    command = [sys.executable, example, "Say hello."]
    env = {**os.environ, "OPENAI_BASE_URL": f"{url}/v1"}
    output = subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=60).stdout
    assert output.strip()


def test_completions_streamed_and_not(client, url, model):
    ask = dict(model=model, prompt=["The sky is", "Two plus two is"], n=2, temperature=0, max_tokens=8, logprobs=2)
    ask["extra_body"] = {"ignore_eos": True}
    whole = client.completions.create(**ask)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert all(len(choice.logprobs.tokens) == 8 for choice in whole.choices)
    texts = dict.fromkeys(range(4), "")
    # The client's type for a completion wants a finish reason in every chunk, which OpenAI's own streams don't have.
    lenient = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    for chunk in lenient.completions.create(**ask, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert [texts[choice.index] for choice in whole.choices] == [choice.text for choice in whole.choices]


def test_refusals_are_the_clients_own_errors(client, model):
    ask = dict(model=model, messages=QUESTION, max_tokens=4)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(**ask, extra_body={"temperature": -1})
    with pytest.raises(openai.BadRequestError, match="response_format"):
        client.chat.completions.create(**ask, response_format={"type": "json_object"})
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**{**ask, "model": "no-such-model"})


def test_raw_transcript(url, model):
    body = {"model": model, "prompt": "One, two,", "max_tokens": 4, "temperature": 0, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert all(event["object"] == "text_completion" for event in events)
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert events[-1]["choices"][0]["text"] != ""


def test_shared_prefix_is_cached(client, model):
    prefix = " ".join(f"item {i}" for i in range(400))
    ask = dict(model=model, max_tokens=1, temperature=0)
    client.completions.create(prompt=prefix + " first", **ask)
    second = client.completions.create(prompt=prefix + " second", **ask)
    assert second.usage.prompt_tokens > 1000
    assert second.usage.prompt_tokens_details.cached_tokens >= 1000


def send(url, path, body):
    """Sends a request and returns the connection, without waiting for the answer."""
    address = urlsplit(url)
    connection = socket.create_connection((address.hostname, address.port))
    payload = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: {address.netloc}\r\ncontent-type: application/json\r\n"
    connection.sendall(f"{head}content-length: {len(payload)}\r\n\r\n".encode() + payload)
    return connection


def test_abandoned_requests_free_everything(url, model):
    body = {"model": model, "prompt": "Once upon a time", "max_tokens": 8000, "ignore_eos": True}
    with contextlib.ExitStack() as connections:
        for number in range(200):
            streams = {"stream": number % 2 == 0}
            connections.enter_context(send(url, "/v1/completions", {**body, **streams}))

        def all_there():
            now = gauges(url)
            return now["vllm:num_requests_running"] + now["vllm:num_requests_waiting"] >= 200

        wait_for(all_there, 60, "200 requests never ran or waited at once")
    started = time.monotonic()
    ask = {"model": model, "prompt": "Hi", "max_tokens": 10, "ignore_eos": True}
    short = httpx.post(f"{url}/v1/completions", json=ask, timeout=30)
    assert short.json()["usage"]["completion_tokens"] == 10
    assert time.monotonic() - started < 5
    wait_for(lambda: not any(gauges(url).values()), 10, f"gauges did not return to zero: {gauges(url)}")


def test_fuzzed_bodies_never_fail_the_server(url, model):
    draw = random.Random(0)
    scalars = [None, True, -1, 0, 1e308, 2**63, "", "\u0000", "😀" * 50, [], {}, [[]], "NaN"]
    keys = ["model", "prompt", "messages", "max_tokens", "n", "temperature", "top_p", "top_k", "stop", "seed",
            "logprobs", "logit_bias", "stream_options", "echo", "min_tokens", "priority", "stop_token_ids"]
    for _ in range(400):
        body = {"model": model, "prompt": "a", "messages": QUESTION, "max_tokens": 1}
        body.update({draw.choice(keys): draw.choice(scalars) for _ in range(draw.randint(1, 3))})
        path = draw.choice(["/v1/completions", "/v1/chat/completions", "/tokenize"])
        if path == "/v1/chat/completions" and body["max_tokens"] is None:
            body["max_tokens"] = 1  # null is the rest of the context: a valid wish, and a minute of this test
        response = httpx.post(url + path, json=body, timeout=60)
        assert response.status_code < 500, (path, body, response.text)
    assert httpx.get(f"{url}/health").status_code == 200


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_gives_the_same_answer(scheduler, url, model):
    body = {"model": model, "messages": CONVERSATION, "temperature": 0, "max_tokens": 24}

    def answer(base):
        reply = httpx.post(f"{base}/v1/chat/completions", json=body, timeout=60)
        return reply.json()["choices"][0]["message"]["content"]

    # A budget under the conversation's length, so that those that chunk have to.
    with serve("--scheduler", scheduler, "--max-num-batched-tokens", "48") as other:
        assert answer(other) == answer(url) != ""
