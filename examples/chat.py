#!/usr/bin/env python3
"""Asks a running server something and prints the answer as it comes: pip install openai; python examples/chat.py [QUESTION]"""

import os
import sys

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"), api_key="unused")
model = client.models.list().data[0].id
question = " ".join(sys.argv[1:]) or "What is a scheduler? Answer in one sentence."
stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": question}],
    max_completion_tokens=200,
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content, end="", flush=True)
print()
