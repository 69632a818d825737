// Serves a model inside this process: the engine of Python's LLM, for C++.
//
//   runtime::Engine engine({.model = "path/to/model"});
//   const runtime::RequestId id = engine.Submit({.prompt = "def add(a, b):", .max_tokens = 32});
//   while (auto chunk = engine.Next(id)) std::cout << chunk->text << std::flush;
//
// The first engine of a process finds Python, opens its shared library and starts it, unless an
// interpreter runs in the process already; it is never stopped. Python is looked for in
// EngineConfig::python, $RUNTIME_PYTHON, the environment that this library is installed in,
// $VIRTUAL_ENV, $CONDA_PREFIX, and as python3 on $PATH.
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "runtime/error.h"
#include "runtime/export.h"
#include "runtime/scheduler_stats.h"
#include "runtime/types.h"

namespace runtime {

// What an engine is built from.
struct EngineConfig {
  using Value = std::variant<bool, std::int64_t, double, std::string>;

  std::string model = {};  // folder of a checkpoint; empty: the built-in model
  // The further keyword arguments of Python's LLM: {{"device", "cpu"}, {"max_num_seqs", 64}}.
  std::map<std::string, Value> arguments = {};
  std::string python = {};  // interpreter to host, e.g. ".venv/bin/python"; empty: look for one
  // Called, in the thread of callbacks, with what a callback has thrown. Unset: a line on stderr.
  std::function<void(RequestId, std::exception_ptr)> on_callback_error = {};
};

// A text, or token ids.
using Prompt = std::variant<std::string, std::vector<TokenId>>;

// The form of an output, in exactly one way. Names and limits are those of Python's
// StructuredOutputsParams, which checks them; what it refuses is the stream's error.
struct StructuredOutputs {
  std::optional<std::string> json = {};   // a JSON schema, as JSON; properties come in its order
  std::optional<std::string> regex = {};  // matches the whole output
  std::optional<std::vector<std::string>> choice = {};  // the output is one of these texts
  std::optional<std::string> grammar = {};              // in llguidance's variant of Lark
  bool json_object = false;                             // any JSON object
  bool disable_any_whitespace = false;                  // none between the tokens of JSON
};

// One prompt and how to continue it. Bounds are in brackets; they are those of Python's
// SamplingParams, and checked in the same place.
struct Request {
  Prompt prompt = {};
  std::int64_t n = 1;                     // [1, 128] completions
  double temperature = 1.0;               // 0 (greedy) or [0.01, 2]
  double top_p = 1.0;                     // (0, 1]
  std::int64_t top_k = 0;                 // 0 or -1: off
  double min_p = 0.0;                     // [0, 1]
  double presence_penalty = 0.0;          // [-2, 2]
  double frequency_penalty = 0.0;         // [-2, 2]
  double repetition_penalty = 1.0;        // [0.01, 2]
  std::optional<std::int64_t> seed = {};  // none: from the engine's seed and the request's number
  std::vector<std::string> stop = {};     // at most 16 strings that end the output
  std::vector<std::int64_t> stop_token_ids = {};     // at most 62
  bool ignore_eos = false;                           // end-of-sequence tokens do not end the output
  std::optional<std::int64_t> max_tokens = 16;       // none: as many as the model's length allows
  std::int64_t min_tokens = 0;                       // [0, max_tokens]
  std::optional<std::int64_t> logprobs = {};         // [0, 20] top tokens with each token
  std::map<std::int64_t, double> logit_bias = {};    // at most 320 ids, each [-100, 100]
  std::vector<std::int64_t> allowed_token_ids = {};  // empty: all
  std::vector<std::string> bad_words = {};           // at most 128 strings that never come
  std::optional<StructuredOutputs> structured_outputs = {};
  bool detokenize = true;  // false: token ids only
  bool skip_special_tokens = true;
  bool include_stop_str_in_output = false;
  std::int64_t priority = 0;              // higher first, under scheduling_policy="priority"
  std::string tenant = {};                // whose share it is, under scheduling_policy="fair"
  std::optional<double> deadline_s = {};  // ends with DeadlineExceeded after so many seconds
  std::string cache_salt = {};            // cached prefixes are shared under equal salts only
};

// Candidates of one token of output: the sampled one, then the top ones, best first.
struct TokenLogprobs {
  std::vector<TokenId> token_ids;
  std::vector<float> logprobs;  // natural, before temperature and penalties
};

// Times in seconds since the engine took the request, and counts.
struct RequestMetrics {
  double queue_s = 0.0;  // until its first step
  double ttft_s = 0.0;   // until its first token
  double e2e_s = 0.0;
  std::int64_t num_prompt_tokens = 0;
  std::int64_t num_cached_tokens = 0;
  std::int64_t num_output_tokens = 0;
  std::int64_t num_preemptions = 0;
};

// What came since the last chunk of the same completion.
struct Chunk {
  std::int32_t index = 0;  // of the completion, 0..n-1
  std::string text;        // whole UTF-8 characters
  std::vector<TokenId> token_ids;
  std::vector<TokenLogprobs> logprobs;  // one a token, where the request asked for them
  FinishReason finish_reason = FinishReason::kNone;  // of its completion's last chunk: another one
  std::string stop_string;                           // the stop string that ended it, if one did
  TokenId stop_token_id = -1;                        // or the stop token
  std::optional<RequestMetrics> metrics = {};        // with the last chunk of the request
};

// For a request whose chunks are pushed. The functions run in the engine's thread of callbacks,
// one at a time, so they should be quick; they may call Submit, Abort, Release and Stats.
//
// One that throws is reported to EngineConfig::on_callback_error; its request is aborted, and
// nothing more is called for it. Other requests go on.
struct Callbacks {
  std::function<void(RequestId, const Chunk&)> on_chunk = {};
  // Once, after the last chunk. `error` is null when the request has run to its end.
  std::function<void(RequestId, std::exception_ptr error)> on_end = {};
};

// Bytes of one device and what fits into them; the names are those of Python's MemoryPlan.
struct MemoryPlan {
  std::int64_t weights = 0;
  std::int64_t kv_bytes_per_token = 0;
  std::int64_t kv_blocks = 0;
  std::int64_t block_size = 0;
  std::int64_t kv_cache = 0;
  std::int64_t workspace = 0;
  std::int64_t graphs = 0;
  std::int64_t context = 0;  // in use before the engine starts
  std::int64_t total = 0;
  std::int64_t max_model_len = 0;
  std::int64_t max_sequences = 0;
};

// What came of a request.
enum class Poll { kChunk, kNothingYet, kEnded };

// A loaded model and the thread that serves it. Every method may be called from any thread; Submit,
// Next, TryNext, Abort, Release and Drain take no lock of Python's. Calls on an engine that was
// moved from throw InvalidArgument.
//
// A program that runs Python itself must not hold the GIL while it waits here: the constructor,
// Plan, Next, Score and Drain throw InvalidArgument instead of waiting for ever. When it finalizes
// Python, its engines end as if destroyed, and no later one starts.
class RUNTIME_API Engine {
 public:
  // Loads the model, which takes seconds to minutes. Throws PythonNotFound, ConfigError,
  // ModelNotFound, ModelFormatError, CapacityError, PythonError, and EngineDead when the process of
  // another rank is lost meanwhile.
  explicit Engine(const EngineConfig& config = {});
  // Requests that still run end with RequestAborted. Not from a callback.
  ~Engine();
  Engine(Engine&&) noexcept;
  Engine& operator=(Engine&&) noexcept;
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // The memory that an engine would take, without loading it. Throws as the constructor.
  static MemoryPlan Plan(const EngineConfig& config = {});

  // Queues a request and returns at once. Throws InvalidRequest for a number out of bounds and
  // RequestAborted after Drain. What only the model or its tokenizer can tell (prompt too long,
  // token not in the vocabulary, grammar refused, queue full) is the stream's error.
  RequestId Submit(Request request);
  RequestId Submit(Request request, Callbacks callbacks);

  // Waits for the next chunk of a request; nothing once it has ended. Throws the error that ended
  // it, and InvalidArgument for an id that does not exist, was read to its end, or has callbacks.
  std::optional<Chunk> Next(RequestId id);
  // The same with a limit, and without waiting. `chunk` is written when there is one.
  Poll Next(RequestId id, Chunk& chunk, std::chrono::nanoseconds timeout);
  Poll TryNext(RequestId id, Chunk& chunk);

  // Ends a request; its stream still has what it has so far, the last chunk with kAbort.
  // Idempotent.
  void Abort(RequestId id);
  // For a request that nobody reads any more: aborts it and forgets its stream. Idempotent.
  void Release(RequestId id);

  // The logprob of each token of `continuation`, as if it had been the output after `prompt`.
  std::vector<double> Score(Prompt prompt, Prompt continuation);

  // Counts as of the engine's last step. Waits for the end of a step, and for the GIL.
  SchedulerStats Stats();

  // Takes no more requests, and waits until those that were submitted have ended; their chunks can
  // still be read. Throws DeadlineExceeded when they have not by then. Submit and Score throw
  // RequestAborted from now on.
  void Drain();
  void Drain(std::chrono::nanoseconds timeout);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;

  Impl& impl() const;
};

}  // namespace runtime
