// runtime_c.h on top of runtime/engine.h.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <exception>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "runtime/engine.h"
#include "runtime/error.h"
#include "runtime/runtime_c.h"
#include "runtime/version.h"

struct runtime_engine {
  runtime::Engine engine;
};

namespace runtime {
namespace {

// ---- errors

// A runtime_error and what it points to.
struct OwnedError : runtime_error {
  struct {
    std::string code, message, hint;
    InvalidRequest::Refusal refusal;
  } texts;

  void SetView() {
    code = texts.code.c_str();
    message = texts.message.c_str();
    hint = texts.hint.c_str();
    param = texts.refusal.param.c_str();
    value = texts.refusal.value.c_str();
    limit = texts.refusal.limit.c_str();
    suggestion = texts.refusal.suggestion.c_str();
  }
};

void Describe(const std::exception_ptr& error, OwnedError& owned) {
  auto& to = owned.texts;
  try {
    std::rethrow_exception(error);
  } catch (const InvalidRequest& e) {
    to.code = e.code(), to.message = e.what(), to.hint = e.hint();
    to.refusal = {e.param(), e.value(), e.limit(), e.suggestion()};
  } catch (const Error& e) {
    to.code = e.code(), to.message = e.what(), to.hint = e.hint();
  } catch (const std::exception& e) {
    to.code = "error", to.message = e.what();
  } catch (...) {
    to.code = "error", to.message = "an unknown exception";
  }
  owned.SetView();
}

// The result of `call`, or `failed` with the error.
template <typename Result>
Result Guarded(runtime_error** error, Result failed, auto call) noexcept {
  try {
    return call();
  } catch (...) {
    if (error != nullptr) {
      auto* owned = new OwnedError;
      Describe(std::current_exception(), *owned);
      *error = owned;
    }
    return failed;
  }
}

// ---- from C

std::string Text(const char* text) { return text == nullptr ? "" : text; }

template <typename T>
std::vector<T> List(const T* items, std::size_t size) {
  return {items, items + size};
}

template <typename T>
std::optional<T> Optional(const T* value) {
  return value == nullptr ? std::nullopt : std::optional<T>(*value);
}

EngineConfig::Value ToValue(const runtime_argument& argument) {
  switch (argument.kind) {
    case RUNTIME_BOOL:
      return argument.value.boolean;
    case RUNTIME_INTEGER:
      return argument.value.integer;
    case RUNTIME_REAL:
      return argument.value.real;
    case RUNTIME_TEXT:
      return Text(argument.value.text);
  }
  throw InvalidArgument("argument " + Text(argument.name) + " has kind " +
                        std::to_string(argument.kind) + ": must be one of runtime_kind");
}

EngineConfig ToConfig(const runtime_config* from) {
  EngineConfig config;
  if (from == nullptr) return config;
  config.model = Text(from->model);
  config.python = Text(from->python);
  for (const runtime_argument& argument : std::span(from->arguments, from->num_arguments)) {
    config.arguments[Text(argument.name)] = ToValue(argument);
  }
  return config;
}

Prompt ToPrompt(const runtime_prompt& prompt) {
  if (prompt.text != nullptr) return std::string(prompt.text);
  return List(prompt.token_ids, prompt.num_token_ids);
}

StructuredOutputs ToStructure(const runtime_structured_outputs& from) {
  const auto text = [](const char* given) {
    return given == nullptr ? std::nullopt : std::optional<std::string>(given);
  };
  StructuredOutputs to;
  to.json = text(from.json);
  to.regex = text(from.regex);
  to.grammar = text(from.grammar);
  if (from.choice != nullptr) {
    to.choice.emplace();
    for (std::size_t i = 0; i < from.num_choice; ++i) to.choice->push_back(Text(from.choice[i]));
  }
  to.json_object = from.json_object;
  to.disable_any_whitespace = from.disable_any_whitespace;
  return to;
}

Request ToRequest(const runtime_request& from) {
  Request to;
  to.prompt = ToPrompt(from.prompt);
  to.n = from.n;
  to.temperature = from.temperature;
  to.top_p = from.top_p;
  to.top_k = from.top_k;
  to.min_p = from.min_p;
  to.presence_penalty = from.presence_penalty;
  to.frequency_penalty = from.frequency_penalty;
  to.repetition_penalty = from.repetition_penalty;
  to.seed = Optional(from.seed);
  for (std::size_t i = 0; i < from.num_stop; ++i) to.stop.push_back(Text(from.stop[i]));
  to.stop_token_ids = List(from.stop_token_ids, from.num_stop_token_ids);
  to.ignore_eos = from.ignore_eos;
  to.max_tokens = from.max_tokens == -1 ? std::nullopt : std::optional(from.max_tokens);
  to.min_tokens = from.min_tokens;
  to.logprobs = Optional(from.logprobs);
  for (const runtime_bias& bias : std::span(from.logit_bias, from.num_logit_bias)) {
    to.logit_bias[bias.token_id] = bias.bias;
  }
  to.allowed_token_ids = List(from.allowed_token_ids, from.num_allowed_token_ids);
  for (std::size_t i = 0; i < from.num_bad_words; ++i)
    to.bad_words.push_back(Text(from.bad_words[i]));
  to.detokenize = from.detokenize;
  to.skip_special_tokens = from.skip_special_tokens;
  to.include_stop_str_in_output = from.include_stop_str_in_output;
  to.priority = from.priority;
  to.tenant = Text(from.tenant);
  to.deadline_s = Optional(from.deadline_s);
  to.cache_salt = Text(from.cache_salt);
  if (from.structured_outputs != nullptr) {
    to.structured_outputs = ToStructure(*from.structured_outputs);
  }
  return to;
}

// Seconds as a timeout of Engine's; what is longer than a century is one.
std::chrono::nanoseconds Timeout(double seconds) {
  constexpr double kCentury = 3.2e9;
  const std::chrono::duration<double> timeout(std::fmin(seconds, kCentury));
  return std::chrono::duration_cast<std::chrono::nanoseconds>(timeout);
}

// ---- to C

runtime_metrics ToMetrics(const RequestMetrics& m) {
  return {m.queue_s,           m.ttft_s,         m.e2e_s, m.num_prompt_tokens, m.num_cached_tokens,
          m.num_output_tokens, m.num_preemptions};
}

// A runtime_chunk and what it points to.
class OwnedChunk : public runtime_chunk {
 public:
  explicit OwnedChunk(Chunk from) : runtime_chunk(), from_(std::move(from)) {
    for (const TokenLogprobs& token : from_.logprobs) {
      logprobs_.push_back({token.token_ids.data(), token.logprobs.data(), token.token_ids.size()});
    }
    if (from_.metrics) metrics_ = ToMetrics(*from_.metrics);
    SetView();
  }
  OwnedChunk(const OwnedChunk&) = delete;
  OwnedChunk& operator=(const OwnedChunk&) = delete;

 private:
  void SetView() {
    index = from_.index;
    text = from_.text.c_str();
    text_size = from_.text.size();
    token_ids = from_.token_ids.data();
    num_token_ids = from_.token_ids.size();
    logprobs = logprobs_.data();
    num_logprobs = logprobs_.size();
    finish = static_cast<runtime_finish>(from_.finish_reason);
    stop_string = from_.stop_string.empty() ? nullptr : from_.stop_string.c_str();
    stop_token_id = from_.stop_token_id;
    metrics = from_.metrics ? &metrics_ : nullptr;
  }

  Chunk from_;
  std::vector<runtime_token_logprobs> logprobs_;
  runtime_metrics metrics_{};
};

Callbacks ToCallbacks(const runtime_callbacks* from) {
  Callbacks to;
  if (from == nullptr) return to;
  if (from->on_chunk != nullptr) {
    to.on_chunk = [c = *from](RequestId id, const Chunk& chunk) {
      const OwnedChunk owned(chunk);
      c.on_chunk(c.context, id, &owned);
    };
  }
  if (from->on_end != nullptr) {
    to.on_end = [c = *from](RequestId id, std::exception_ptr error) {
      OwnedError owned;
      if (error != nullptr) Describe(error, owned);
      c.on_end(c.context, id, error == nullptr ? nullptr : &owned);
    };
  }
  return to;
}

Poll Next(Engine& engine, RequestId id, double timeout_s, Chunk& chunk) {
  if (timeout_s == 0.0) return engine.TryNext(id, chunk);
  if (timeout_s > 0.0) return engine.Next(id, chunk, Timeout(timeout_s));
  std::optional<Chunk> found = engine.Next(id);
  if (!found) return Poll::kEnded;
  chunk = *std::move(found);
  return Poll::kChunk;
}

runtime_stats ToStats(const SchedulerStats& s) {
  runtime_stats to{};
  to.num_waiting = s.num_waiting;
  to.num_running = s.num_running;
  to.num_steps_in_flight = s.num_steps_in_flight;
  to.num_tenants = s.num_tenants;
  to.num_blocks = s.num_blocks;
  to.num_free_blocks = s.num_free_blocks;
  to.num_cached_blocks = s.num_cached_blocks;
  to.num_pinned_blocks = s.num_pinned_blocks;
  to.num_host_blocks = s.num_host_blocks;
  to.num_cached_host_blocks = s.num_cached_host_blocks;
  to.num_transfers = s.num_transfers;
  to.num_steps = s.num_steps;
  to.num_prompt_tokens = s.num_prompt_tokens;
  to.num_cached_tokens = s.num_cached_tokens;
  to.num_prefix_queries = s.num_prefix_queries;
  to.num_prefix_hits = s.num_prefix_hits;
  to.num_evictions = s.num_evictions;
  to.num_host_evictions = s.num_host_evictions;
  to.num_stored_blocks = s.num_stored_blocks;
  to.num_loaded_blocks = s.num_loaded_blocks;
  to.num_swaps = s.num_swaps;
  to.num_output_tokens = s.num_output_tokens;
  to.num_recomputed_tokens = s.num_recomputed_tokens;
  to.num_preemptions = s.num_preemptions;
  to.num_finished = s.num_finished;
  return to;
}

runtime_memory_plan ToPlan(const MemoryPlan& p) {
  return {p.weights,  p.kv_bytes_per_token, p.kv_blocks,    p.block_size,
          p.kv_cache, p.workspace,          p.graphs,       p.context,
          p.total,    p.max_model_len,      p.max_sequences};
}

}  // namespace
}  // namespace runtime

using namespace runtime;  // the functions below are C's, outside of any namespace

void runtime_error_free(runtime_error* error) { delete static_cast<OwnedError*>(error); }

const char* runtime_version() { return Version(); }

runtime_engine* runtime_engine_create(const runtime_config* config, runtime_error** error) {
  return Guarded<runtime_engine*>(error, nullptr,
                                  [&] { return new runtime_engine{Engine(ToConfig(config))}; });
}

void runtime_engine_destroy(runtime_engine* engine) { delete engine; }

void runtime_request_init(runtime_request* request) {
  const Request defaults;
  *request = {};
  request->n = defaults.n;
  request->temperature = defaults.temperature;
  request->top_p = defaults.top_p;
  request->repetition_penalty = defaults.repetition_penalty;
  request->max_tokens = defaults.max_tokens.value();
  request->detokenize = defaults.detokenize;
  request->skip_special_tokens = defaults.skip_special_tokens;
}

int64_t runtime_submit(runtime_engine* engine, const runtime_request* request,
                       const runtime_callbacks* callbacks, runtime_error** error) {
  return Guarded<int64_t>(error, -1, [&] {
    return engine->engine.Submit(ToRequest(*request), ToCallbacks(callbacks));
  });
}

runtime_poll runtime_next(runtime_engine* engine, int64_t id, double timeout_s,
                          runtime_chunk** chunk, runtime_error** error) {
  return Guarded(error, RUNTIME_FAILED, [&] {
    Chunk found;
    switch (Next(engine->engine, id, timeout_s, found)) {
      case Poll::kChunk:
        *chunk = new OwnedChunk(std::move(found));
        return RUNTIME_CHUNK;
      case Poll::kNothingYet:
        return RUNTIME_NOTHING_YET;
      case Poll::kEnded:
        break;
    }
    return RUNTIME_ENDED;
  });
}

void runtime_chunk_free(runtime_chunk* chunk) { delete static_cast<OwnedChunk*>(chunk); }

void runtime_abort(runtime_engine* engine, int64_t id) { engine->engine.Abort(id); }

void runtime_release(runtime_engine* engine, int64_t id) { engine->engine.Release(id); }

int64_t runtime_score(runtime_engine* engine, const runtime_prompt* prompt,
                      const runtime_prompt* continuation, double* scores, size_t capacity,
                      runtime_error** error) {
  return Guarded<int64_t>(error, -1, [&] {
    const auto found = engine->engine.Score(ToPrompt(*prompt), ToPrompt(*continuation));
    std::copy_n(found.begin(), std::min(capacity, found.size()), scores);
    return static_cast<int64_t>(found.size());
  });
}

bool runtime_drain(runtime_engine* engine, double timeout_s, runtime_error** error) {
  return Guarded(error, false, [&] {
    timeout_s < 0.0 ? engine->engine.Drain() : engine->engine.Drain(Timeout(timeout_s));
    return true;
  });
}

bool runtime_engine_stats(runtime_engine* engine, runtime_stats* stats, runtime_error** error) {
  return Guarded(error, false, [&] {
    *stats = ToStats(engine->engine.Stats());
    return true;
  });
}

bool runtime_plan(const runtime_config* config, runtime_memory_plan* plan, runtime_error** error) {
  return Guarded(error, false, [&] {
    *plan = ToPlan(Engine::Plan(ToConfig(config)));
    return true;
  });
}
