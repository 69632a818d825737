/* The engine of runtime/engine.h for C, and for languages that call C. What a function does, and on
 * which threads it may be called, is said there.
 *
 * A function that can fail takes `runtime_error** error`, which may be null; when it fails it
 * writes an error there, to be given to runtime_error_free. Texts are UTF-8 and end with a zero; a
 * null pointer stands for "none". What a struct points to belongs to whoever made the struct. */
#ifndef RUNTIME_RUNTIME_C_H_
#define RUNTIME_RUNTIME_C_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/export.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct runtime_engine runtime_engine;

/* `code` is stable: config_error, device_not_found, model_not_found, model_format_error,
 * invalid_request, capacity_exceeded, engine_dead, communicator_failed, request_aborted,
 * deadline_exceeded, python_not_found, python_error, invalid_argument. The last four fields are of
 * invalid_request, else empty. None is null. */
typedef struct runtime_error {
  const char* code;
  const char* message;
  const char* hint;
  const char* param;
  const char* value;
  const char* limit;
  const char* suggestion;
} runtime_error;

RUNTIME_API void runtime_error_free(runtime_error* error);

/* The version of the library, e.g. "0.1.0". */
RUNTIME_API const char* runtime_version(void);

/* ---- engines */

typedef enum runtime_kind {
  RUNTIME_BOOL,
  RUNTIME_INTEGER,
  RUNTIME_REAL,
  RUNTIME_TEXT
} runtime_kind;

/* A keyword argument of Python's LLM. */
typedef struct runtime_argument {
  const char* name;
  runtime_kind kind;
  union {
    bool boolean;
    int64_t integer;
    double real;
    const char* text;
  } value;
} runtime_argument;

/* Zero-initialised: the built-in model, as on the command line. */
typedef struct runtime_config {
  const char* model;
  const runtime_argument* arguments;
  size_t num_arguments;
  const char* python;
} runtime_config;

/* Null when it fails. */
RUNTIME_API runtime_engine* runtime_engine_create(const runtime_config* config,
                                                  runtime_error** error);
RUNTIME_API void runtime_engine_destroy(runtime_engine* engine);

/* ---- requests */

typedef struct runtime_prompt {
  const char* text; /* null: token_ids */
  const int32_t* token_ids;
  size_t num_token_ids;
} runtime_prompt;

typedef struct runtime_bias {
  int64_t token_id;
  double bias;
} runtime_bias;

/* The form of an output: exactly one of the first four and json_object. */
typedef struct runtime_structured_outputs {
  const char* json; /* a JSON schema */
  const char* regex;
  const char* grammar;
  const char* const* choice;
  size_t num_choice;
  bool json_object, disable_any_whitespace;
} runtime_structured_outputs;

/* To be filled by runtime_request_init first. */
typedef struct runtime_request {
  runtime_prompt prompt;
  int64_t n;
  double temperature, top_p;
  int64_t top_k;
  double min_p, presence_penalty, frequency_penalty, repetition_penalty;
  const int64_t* seed;
  const char* const* stop;
  size_t num_stop;
  const int64_t* stop_token_ids;
  size_t num_stop_token_ids;
  bool ignore_eos;
  int64_t max_tokens; /* -1: as many as the model's length allows */
  int64_t min_tokens;
  const int64_t* logprobs;
  const runtime_bias* logit_bias;
  size_t num_logit_bias;
  const int64_t* allowed_token_ids;
  size_t num_allowed_token_ids;
  const char* const* bad_words;
  size_t num_bad_words;
  bool detokenize, skip_special_tokens, include_stop_str_in_output;
  int64_t priority;
  const char* tenant;
  const double* deadline_s;
  const char* cache_salt;
  const runtime_structured_outputs* structured_outputs;
} runtime_request;

RUNTIME_API void runtime_request_init(runtime_request* request);

typedef enum runtime_finish {
  RUNTIME_RUNNING = 0,
  RUNTIME_STOP = 1,
  RUNTIME_LENGTH = 2,
  RUNTIME_ABORT = 3,
  RUNTIME_ERROR = 4
} runtime_finish;

typedef struct runtime_token_logprobs {
  const int32_t* token_ids;
  const float* logprobs;
  size_t size;
} runtime_token_logprobs;

typedef struct runtime_metrics {
  double queue_s, ttft_s, e2e_s;
  int64_t num_prompt_tokens, num_cached_tokens, num_output_tokens, num_preemptions;
} runtime_metrics;

typedef struct runtime_chunk {
  int32_t index;
  const char* text;
  size_t text_size; /* in bytes; the text may hold zeros */
  const int32_t* token_ids;
  size_t num_token_ids;
  const runtime_token_logprobs* logprobs;
  size_t num_logprobs;
  runtime_finish finish;
  const char* stop_string;
  int32_t stop_token_id;          /* -1: none */
  const runtime_metrics* metrics; /* null before the last chunk of the request */
} runtime_chunk;

RUNTIME_API void runtime_chunk_free(runtime_chunk* chunk);

/* Called in the engine's thread of callbacks; either may be null. The pointers are valid during the
 * call. `error` is null when the request has run to its end. */
typedef struct runtime_callbacks {
  void* context;
  void (*on_chunk)(void* context, int64_t id, const runtime_chunk* chunk);
  void (*on_end)(void* context, int64_t id, const runtime_error* error);
} runtime_callbacks;

/* The request's id, or -1. `callbacks` may be null: somebody calls runtime_next. */
RUNTIME_API int64_t runtime_submit(runtime_engine* engine, const runtime_request* request,
                                   const runtime_callbacks* callbacks, runtime_error** error);

typedef enum runtime_poll {
  RUNTIME_FAILED = -1,
  RUNTIME_ENDED = 0,
  RUNTIME_CHUNK = 1,
  RUNTIME_NOTHING_YET = 2
} runtime_poll;

/* Waits at most `timeout_s` seconds, below 0 without limit; 0 does not wait. The chunk is to be
 * given to runtime_chunk_free. */
RUNTIME_API runtime_poll runtime_next(runtime_engine* engine, int64_t id, double timeout_s,
                                      runtime_chunk** chunk, runtime_error** error);
RUNTIME_API void runtime_abort(runtime_engine* engine, int64_t id);
RUNTIME_API void runtime_release(runtime_engine* engine, int64_t id);

/* Writes the first `capacity` logprobs and returns how many there are, or -1. */
RUNTIME_API int64_t runtime_score(runtime_engine* engine, const runtime_prompt* prompt,
                                  const runtime_prompt* continuation, double* scores,
                                  size_t capacity, runtime_error** error);

/* Whether all requests have ended; timeout as in runtime_next. */
RUNTIME_API bool runtime_drain(runtime_engine* engine, double timeout_s, runtime_error** error);

/* ---- what an engine says of itself; the names are those of the C++ and Python sides */

typedef struct runtime_stats {
  int64_t num_waiting, num_running, num_steps_in_flight, num_tenants;
  int64_t num_blocks, num_free_blocks, num_cached_blocks, num_pinned_blocks;
  int64_t num_host_blocks, num_cached_host_blocks, num_transfers;
  int64_t num_steps, num_prompt_tokens, num_cached_tokens, num_prefix_queries, num_prefix_hits;
  int64_t num_evictions, num_host_evictions, num_stored_blocks, num_loaded_blocks, num_swaps;
  int64_t num_output_tokens, num_recomputed_tokens, num_preemptions, num_finished;
} runtime_stats;

RUNTIME_API bool runtime_engine_stats(runtime_engine* engine, runtime_stats* stats,
                                      runtime_error** error);

typedef struct runtime_memory_plan {
  int64_t weights, kv_bytes_per_token, kv_blocks, block_size, kv_cache, workspace, graphs, context,
      total, max_model_len, max_sequences;
} runtime_memory_plan;

RUNTIME_API bool runtime_plan(const runtime_config* config, runtime_memory_plan* plan,
                              runtime_error** error);

#ifdef __cplusplus
}
#endif

#endif /* RUNTIME_RUNTIME_C_H_ */
