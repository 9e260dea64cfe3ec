"""Get the best of n answers from the gateway of `ledom serve`, with OpenAI's own client.

    ledom serve &
    python examples/gateway_openai.py

With `ledom serve --upstream URL --upstream-model NAME`, another server writes the candidates.
"""

from __future__ import annotations

import argparse
import os

import openai

QUESTION = (
    "A pizza has 24 pieces. If Ava can eat 4 pieces a day while Noah can eat 2 times as much, "
    "how many days will the pizza last?"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--samples", type=int, default=8)
    options = parser.parse_args()

    key = os.environ.get("LEDOM_TOKEN", "none")
    client = openai.OpenAI(base_url=options.url, api_key=key)
    answer = client.chat.completions.create(
        model=f"ledom/auto,n={options.samples}",
        messages=[{"role": "user", "content": options.question}],
        max_tokens=128,
        temperature=0.8,
        seed=0,
    )
    print(answer.choices[0].message.content)
    assert answer.usage is not None
    details = answer.model_extra["ledom"] if answer.model_extra else {}
    count = len(details["candidates"])
    print(f"\nchosen by {details['strategy']!r} among {count} candidates, ", end="")
    print(f"{answer.usage.completion_tokens} tokens in all")


if __name__ == "__main__":
    main()
