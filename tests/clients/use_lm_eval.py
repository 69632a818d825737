"""lm-eval: `local-completions` with the server's own tokenizer, beside `hf`, transformers on the same weights.

Args: the server's address, the model's folder. The tasks are made from the built-in model's own questions.
"""

import json
import os
import sys
import tempfile
from functools import cache
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import lm_eval
from checks import API_KEY, MODEL, check, main
from lm_eval.tasks import TaskManager

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools" / "builtin_model"))
import questions

os.environ["OPENAI_API_KEY"] = API_KEY
NUM_QUESTIONS = 40  # of each skill
SKILLS = ("add", "subtract", "reverse", "sort")
MAX_DIFFERENCE = 1e-3  # of a loglikelihood
CHOICE, TEXT = "builtin_choice", "builtin_text"
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
{rest}
"""
CHOICE_TASK = """
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc}]
"""
TEXT_TASK = """
output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], do_sample: false, max_gen_toks: 16}
metric_list: [{metric: exact_match}]
"""


def rows():
    """Questions with their answer, and with wrong ones beside it. <bos> begins every prompt that the model knows."""
    for skill in SKILLS:
        drawn = questions.held_out(skill, NUM_QUESTIONS)
        for i, question in enumerate(drawn):
            prompt, answer = question.completions[0]
            wrong = [drawn[(i + k) % len(drawn)].completions[0][1] for k in (1, 2, 3)]
            choices = list(dict.fromkeys([*wrong, answer]))
            yield {"question": f"<bos>{prompt}", "answer": answer, "choices": choices, "label": choices.index(answer)}


def write_tasks(folder):
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    for name, rest in ((CHOICE, CHOICE_TASK), (TEXT, TEXT_TASK)):
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=data, rest=rest))


@cache
def evaluate(kind, /, **arguments):
    """(accuracies by task, answers by task and question): an answer is the loglikelihoods of all choices, or a text."""
    with tempfile.TemporaryDirectory() as folder:
        write_tasks(Path(folder))
        manager = TaskManager(include_path=folder, include_defaults=False)
        options = {"tasks": [CHOICE, TEXT], "task_manager": manager, "bootstrap_iters": 0, "log_samples": True}
        found = lm_eval.simple_evaluate(model=kind, model_args=dict(arguments), **options)
    accuracies = {CHOICE: found["results"][CHOICE]["acc,none"], TEXT: found["results"][TEXT]["exact_match,none"]}
    answers = {
        name: {sample["doc_id"]: sample["filtered_resps"] for sample in found["samples"][name]}
        for name in (CHOICE, TEXT)
    }
    return accuracies, answers


def served(url):
    own = {"model": MODEL, "base_url": f"{url}/completions", "auth_token": API_KEY, "max_length": 1024}
    return evaluate("local-completions", tokenizer_backend="remote", num_concurrent=8, max_retries=1, **own)


def reference():
    return evaluate("hf", pretrained=sys.argv[2], dtype="float32", device="cpu", batch_size=16)


@check
def accuracy(url):
    ours, theirs = served(url)[0], reference()[0]
    print(f"accuracy: server {ours}, transformers {theirs}", file=sys.stderr)
    assert ours == theirs and min(ours.values()) >= 0.98


@check
def loglikelihoods(url):
    ours, theirs = served(url)[1][CHOICE], reference()[1][CHOICE]
    assert ours.keys() == theirs.keys() and len(ours) == NUM_QUESTIONS * len(SKILLS)
    pairs = [(a, b) for i in ours for a, b in zip(ours[i], theirs[i], strict=True)]
    difference = max(abs(a[0] - b[0]) for a, b in pairs)
    print(f"loglikelihoods: {len(pairs)}, largest difference {difference:.1e}", file=sys.stderr)
    assert difference <= MAX_DIFFERENCE and all(a[1] == b[1] for a, b in pairs)


@check
def generations(url):
    assert served(url)[1][TEXT] == reference()[1][TEXT]


if __name__ == "__main__":
    main()
