"""Starts the release binary with the default model, once for each scheduler that a test asks for."""

import contextlib
import os
import socket
import subprocess
import time

import httpx
import pytest
from openai import OpenAI

BINARY = os.environ["STALLFREE_BINARY"]
START_LIMIT_S = 300  # the first start downloads the model


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serve(*flags):
    """Runs a server until the block ends; yields its base URL."""
    port = free_port()
    command = [BINARY, "serve", "--host", "127.0.0.1", "--port", str(port), *flags]
    with subprocess.Popen(command) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + START_LIMIT_S
            while True:
                assert process.poll() is None, f"the server ended with {process.returncode}"
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{url}/health").status_code == 200:
                        break
                assert time.monotonic() < deadline, "the server did not become ready"
                time.sleep(0.1)
            yield url
            assert process.poll() is None, f"the server died with {process.returncode}"
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture(scope="session")
def url():
    with serve("--scheduler", "sarathi") as base:
        yield base


@pytest.fixture(scope="session")
def client(url):
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, _strict_response_validation=True)


@pytest.fixture(scope="session")
def model(client):
    return client.models.list().data[0].id
