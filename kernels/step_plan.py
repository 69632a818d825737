"""The words of a StepPlan that the kernels read; `csrc/include/runtime/step_plan.h` is the layout's home.

A plan is one contiguous int32 buffer: a header, then sections that the header points to with (offset, count) pairs.
Offsets are words from the buffer's start; a section's count is in entries, a list's in words (pairs for the bias).
"""

VERSION = 1
HEADER_WORDS = 24

# header words
STEP = 1
NUM_ROWS = 4
NUM_DECODE_ROWS = 5
NUM_TOKENS = 6
MAX_LEN = 7
ROWS = 8  # (offset, count), as the five below
TOKENS = 10
NEW_BLOCKS = 12
NEW_ROWS = 14
COPIES = 16
FREED_ROWS = 18
NUM_WORDS = 20
STEP_FLAGS = 21

# words of one entry, by section
ROW_WORDS = 4
NEW_BLOCK_WORDS = 3
NEW_ROW_WORDS = 32
COPY_WORDS = 3

STEP_GREEDY_ONLY = 1
STEP_MASKED = 2

# kinds of an entry of `copies`
COPY_TO_HOST = 1
COPY_FROM_HOST = 2

# flags of an entry of `rows`
ROW_SAMPLE = 1
ROW_HOST_TOKENS = 2
ROW_SCORE = 4

# words of a new_rows record
REC_ROW = 0
REC_EPOCH = 1
REC_FLAGS = 2
REC_TEMPERATURE = 3
REC_TOP_P = 4
REC_TOP_K = 5
REC_MIN_P = 6
REC_PRESENCE_PENALTY = 7
REC_FREQUENCY_PENALTY = 8
REC_REPETITION_PENALTY = 9
REC_SEED = 10  # low word, then high word
REC_PROMPT_LEN = 12
REC_MIN_TOKENS = 13
REC_NUM_LOGPROBS = 14
REC_SCORE_START = 15
REC_KNOWN_IDS = 16  # (offset, count), as the three below
REC_LOGIT_BIAS = 18
REC_ALLOWED_IDS = 20
REC_MASKED_IDS = 22

# flags of a new_rows record, kept in RowState.flags
GREEDY = 1
PENALTIES = 2
FILTER = 4
LOGPROBS = 8
LOGIT_BIAS = 16
ALLOWED = 32
MIN_TOKENS = 64
SCORE = 128

# sizes of RowState and StepOutputs
MAX_BIAS = 320
MAX_MASKED = 64
MAX_LOGPROBS = 20
