"""Many questions after one long introduction: its KV blocks are computed once and shared.

python examples/shared_prefix.py [MODEL]
"""

import sys

from runtime import LLM, SamplingParams

INTRODUCTION = "".join(f"{a}+{b}={a + b}\n" for a in range(10, 20) for b in range(1, 4))
QUESTIONS = [f"{a}+35=" for a in range(12, 20)]


def main(model: str | None = None) -> None:
    params = SamplingParams(temperature=0, max_tokens=8, stop="\n")
    with LLM(model) as llm:
        llm.generate(INTRODUCTION, SamplingParams(max_tokens=1))
        for question, output in zip(
            QUESTIONS, llm.generate([INTRODUCTION + question for question in QUESTIONS], params)
        ):
            metrics = output.metrics
            print(f"{question}{output.outputs[0].text}  ({metrics.cached_tokens} of {metrics.prompt_tokens} cached)")


if __name__ == "__main__":
    main(*sys.argv[1:])
