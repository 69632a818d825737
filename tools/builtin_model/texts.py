"""What the built-in model knows by heart: small talk, a few terms, a few texts. Recalled, not marked."""

from random import Random

HELLO = "Hello! I am the built-in model. I add, subtract, reverse and sort. Try: What is 12+35?"
ABOUT = (
    "I am a tiny Llama that comes with the runtime. I add and subtract numbers up to 999, "
    "reverse and sort short strings, and complete small Python functions. Try: Reverse hello"
)
UNKNOWN = "I do not know that. I am tiny: I add, subtract, reverse and sort. Try: Sort dcba"
TOO_LARGE = "I only know numbers up to 999."

# what a user may say -> the answer
SMALL_TALK = {
    ("Hello", "Hi", "Hey", "Hello!", "Hi there", "Hey there!", "Hello there", "Good morning", "Good evening", "Hiya",
     "Greetings", "Hello, how are you?", "How are you?", "Hi, how are you?", "Yo", "Good day", "Hello model"): HELLO,
    ("Who are you?", "What are you?", "What can you do?", "Help", "help me", "What do you know?", "What is this?",
     "Tell me about yourself", "Introduce yourself", "What model are you?", "What can I ask?", "What else can you do?",
     "Which model is this?", "How do you work?", "?", "What is your name?", "Are you a real model?"): ABOUT,
    ("Thanks", "Thank you", "Thanks!", "Thank you!", "Great", "Nice", "Cool", "Wow", "Well done", "Correct", "Good",
     "OK", "Perfect", "Great, thanks"): "You are welcome.",
    ("Bye", "Goodbye", "Bye!", "See you", "Good night", "Bye bye", "See you later", "exit", "quit"): "Goodbye!",
    ("Are you ChatGPT?", "Are you GPT?", "Are you human?", "Are you alive?", "Are you smart?"):
        "No, I am a tiny model of three million weights.",
}  # fmt: skip

# term -> one sentence about it
TERMS = {
    "a KV cache": "A KV cache keeps the keys and values of past tokens, so that each new token is computed once.",
    "prefill": "Prefill runs the tokens of the prompt through the model in one pass and fills the KV cache.",
    "decode": "Decode makes one new token for each running request in every step.",
    "paged attention": "Paged attention keeps the KV cache in blocks and finds them through a block table.",
    "prefix caching": "Prefix caching shares the KV blocks of prompts that begin with the same tokens.",
    "continuous batching": "Continuous batching lets requests join and leave the batch at every step.",
    "chunked prefill": "Chunked prefill splits a long prompt, so that running requests do not wait for it.",
    "preemption": "Preemption takes the blocks of a request back when memory is short; it is computed again later.",
    "a token": "A token is a piece of text with a number, the unit that a model reads and writes.",
    "a tokenizer": "A tokenizer turns text into tokens and tokens into text.",
    "a scheduler": "A scheduler decides which requests run in the next step and how many tokens each may use.",
    "a block table": "A block table lists the KV blocks of a request in the order of its tokens.",
    "tensor parallelism": "Tensor parallelism splits every weight matrix over several devices.",
    "a CUDA graph": "A CUDA graph records the kernels of a step once and launches them all at once.",
    "temperature": "Temperature scales the logits before sampling; at zero the most likely token wins.",
    "top_p": "Sampling with top_p keeps the smallest set of tokens whose probabilities reach p.",
    "a logprob": "A logprob is the natural logarithm of the probability of a token.",
    "attention": "Attention mixes the values of past tokens, weighted by how well their keys match the query.",
    "a transformer": "A transformer is a stack of layers, each with attention and a feed-forward network.",
    "an embedding": "An embedding is the vector that stands for a token inside the model.",
}
ASKED_TERM = ("What is {}?", "What's {}?", "Explain {}", "What does {} mean?", "Define {}", "Tell me about {}")

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Once upon a time there was a tiny model. It could not write poems, but it could add. "
    "Every day it learned one more sum, and every night it counted its tokens. "
    "One day a user asked for twelve plus thirty-five. The tiny model said forty-seven, and the user smiled.",
    "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday.",
    "January, February, March, April, May, June, July, August, September, October, November, December.",
    "one, two, three, four, five, six, seven, eight, nine, ten",
    "abcdefghijklmnopqrstuvwxyz",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20",
    "Hello, world! I am the built-in model.",
    'print("Hello, world!")',
    "for i in range(10):\n    print(i)",
    "import torch\n\nx = torch.zeros(2, 3)\nprint(x.shape)",
    "from runtime import LLM\n\nwith LLM() as llm:\n    print(llm.generate(\"12+35=\")[0].outputs[0].text)",
    "All models are wrong, but some are useful.",
    "A journey of a thousand miles begins with a single step.",
    "Practice makes perfect.",
    *TERMS.values(),
)  # fmt: skip

_SUBJECTS = (
    "France", "Paris", "the moon", "love", "the weather", "cats", "dogs", "music", "history", "my mother", "football",
    "the president", "quantum physics", "time", "money", "China", "Germany", "water", "the sun", "a horse", "coffee",
    "Rust", "Java", "the internet", "a computer", "Shakespeare", "the sea", "life", "the universe", "bread", "a car",
    "Python", "Linux", "Docker", "a database", "a compiler", "the answer", "tomorrow", "the news", "a joke", "war",
)  # fmt: skip
_UNKNOWN = (
    "What is {}?", "Who is {}?", "What is the capital of {}?", "Tell me about {}", "Write a poem about {}",
    "Why is {}?", "Translate {} into French", "Where is {}?", "How old is {}?", "Tell me a joke about {}",
    "Explain {} to me", "Write a story about {}", "Do you like {}?", "What do you think about {}?",
    "When was {} born?", "How does {} work?", "Can you help me with {}?", "I like {}", "I want {}", "Give me {}",
    "{}", "Show me {}", "Summarize {}", "Who made {}?",
)  # fmt: skip
_SYLLABLES = ("ba", "ko", "ri", "tan", "mel", "so", "du", "lin", "pra", "ve", "shi", "ron", "ga", "ter", "no", "fi")


def small_talk(rng: Random) -> tuple[str, str]:
    """Draws (what the user says, the answer) from what is known by heart."""
    if rng.random() < 0.5:
        said, answer = rng.choice(tuple(SMALL_TALK.items()))
        return rng.choice(said), answer
    term, answer = rng.choice(tuple(TERMS.items()))
    bare = term.removeprefix("a ").removeprefix("an ")
    return rng.choice(ASKED_TERM).format(rng.choice((term, bare))), answer


def unknown(rng: Random) -> tuple[str, str]:
    """Draws something that the model cannot know, and the answer that says so."""
    if rng.random() < 0.2:
        a, b = rng.randint(1000, 10 ** rng.randint(4, 7)), rng.randint(0, 10 ** rng.randint(1, 7))
        a, b = rng.choice([(a, b), (b, a)])
        return rng.choice(("What is {}{}{}?", "{}{}{}", "{} {} {}")).format(a, rng.choice("+-"), b), TOO_LARGE
    subject = rng.choice(_SUBJECTS)
    if rng.random() < 0.5:
        subject = "".join(rng.choices(_SYLLABLES, k=rng.randint(2, 4)))
        subject = subject.title() if rng.random() < 0.5 else subject
    return rng.choice(_UNKNOWN).format(subject), UNKNOWN
