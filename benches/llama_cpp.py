#!/usr/bin/env python3
"""Compares our CPU speed with llama.cpp's: one model file, as many threads, one run, taking turns.

    cargo build --release
    CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python
    python benches/llama_cpp.py target/release/stallfree SmolLM2-135M-Instruct.Q4_1.gguf

Decode: 128 greedy tokens after a prompt of 128, from the first token to the last. Prefill: a prompt of 512 tokens and one
token, from request to answer. Ours is measured through HTTP, llama.cpp in this process. Each round has a prompt of its own,
so that no prefix cache helps; the best round counts, since other load on the machine only ever slows a round down.
"""

import argparse
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import time

sys.path.pop(0)  # this file's folder: the package is named as this file is

PREFILL_TOKENS = 512
DECODE_PROMPT_TOKENS = 128
DECODE_TOKENS = 128


class Ours:
    """Our server, a process of its own."""

    def __init__(self, binary, model, threads):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process = subprocess.Popen(
            [binary, "serve", model, "--host", "127.0.0.1", "--port", str(self.port)]
            + ["--threads", str(threads), "--served-model-name", "model"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not self.healthy():
            if self.process.poll() is not None:
                raise SystemExit(f"{binary} ended with status {self.process.returncode}")
            time.sleep(0.05)

    def healthy(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def complete(self, prompt, max_tokens):
        """Returns the times of the request and of each streamed chunk with tokens, and how many tokens came."""
        body = {
            "model": "model",
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        start = time.perf_counter()
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise SystemExit(f"/v1/completions: {response.status} {response.read().decode()}")
        times = []
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            choices = json.loads(line[6:])["choices"]
            tokens = choices[0].get("token_ids") if choices else None
            times += [time.perf_counter()] * len(tokens or [])
        connection.close()
        if len(times) != max_tokens:
            raise SystemExit(f"{len(times)} tokens came, {max_tokens} were asked for")
        return start, times

    def prefill(self, prompt):
        start, times = self.complete(prompt, 1)
        return len(prompt) / (times[0] - start)

    def decode(self, prompt):
        _, times = self.complete(prompt, DECODE_TOKENS)
        return (len(times) - 1) / (times[-1] - times[0])

    def close(self):
        self.process.terminate()
        self.process.wait(30)


class LlamaCpp:
    """llama.cpp in this process."""

    def __init__(self, model, threads):
        try:
            import llama_cpp
        except ImportError:
            raise SystemExit("first: CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python") from None
        self.version = llama_cpp.__version__
        self.llm = llama_cpp.Llama(
            model,
            n_ctx=PREFILL_TOKENS + DECODE_TOKENS,
            n_batch=PREFILL_TOKENS,
            n_ubatch=PREFILL_TOKENS,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )

    def prefill(self, prompt):
        self.llm.reset()
        start = time.perf_counter()
        self.llm.eval(prompt)
        self.llm.sample(temp=0.0)
        return len(prompt) / (time.perf_counter() - start)

    def decode(self, prompt):
        self.llm.reset()
        self.llm.eval(prompt)
        token = self.llm.sample(temp=0.0)
        start = time.perf_counter()
        for _ in range(DECODE_TOKENS - 1):
            self.llm.eval([token])
            token = self.llm.sample(temp=0.0)
        return (DECODE_TOKENS - 1) / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", help="our release binary")
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    llama = LlamaCpp(args.model, args.threads)
    ours = Ours(args.binary, args.model, args.threads)
    draw = random.Random(0)
    try:
        best = {}
        for _ in range(args.rounds + 1):  # the first round warms both up
            for what, length in [("prefill", PREFILL_TOKENS), ("decode", DECODE_PROMPT_TOKENS)]:
                prompt = [draw.randrange(100, 30_000) for _ in range(length)]
                for name, engine in [("ours", ours), ("llama.cpp", llama)]:
                    best.setdefault((what, name), []).append(getattr(engine, what)(prompt))
    finally:
        ours.close()
    print(f"{os.path.basename(args.model)}, {args.threads} threads, llama-cpp-python {llama.version}, best of {args.rounds}")
    print(f"{'tokens/s':10}{'ours':>10}{'llama.cpp':>12}{'ratio':>8}")
    for what in ["prefill", "decode"]:
        mine, theirs = (max(best[what, name][1:]) for name in ["ours", "llama.cpp"])
        print(f"{what:10}{mine:10.1f}{theirs:12.1f}{mine / theirs:8.2f}")


if __name__ == "__main__":
    main()
