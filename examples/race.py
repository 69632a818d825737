"""Two ways to ask run at once; the first answer ends the other request.

python examples/race.py [MODEL]
"""

import sys
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

from runtime import LLM, SamplingParams

PROMPTS = ["12+35=", "Q: What is 12 + 35?\nA:"]


def main(model: str | None = None) -> None:
    params = SamplingParams(temperature=0, max_tokens=64)
    with LLM(model) as llm, ThreadPoolExecutor() as pool:
        requests = {pool.submit(handle.result): handle for handle in [llm.submit(prompt, params) for prompt in PROMPTS]}
        finished, _ = wait(requests, return_when=FIRST_COMPLETED)
        for handle in requests.values():
            handle.abort()  # no effect on one that has finished
        winner = next(iter(finished)).result()
        print(f"{winner.prompt!r} was first: {winner.outputs[0].text!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
