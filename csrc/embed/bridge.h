// What libruntime.so and runtime._core say to each other. The two may come from different
// compilers, and one of them knows no Python, so it is C: two tables of functions. Nothing throws
// through it. Both sides are of one version, which the first thing libruntime does is to compare.
#pragma once

#include <cstddef>
#include <cstdint>

namespace runtime::embed {

extern "C" {

// UTF-8; `data` is null for "none".
struct BridgeText {
  const char* data;
  std::size_t size;
};

enum BridgeKind : std::int32_t {
  kBridgeNone,
  kBridgeBool,      // integer
  kBridgeInteger,   // integer
  kBridgeReal,      // real
  kBridgeText,      // data: char[size]
  kBridgeTokenIds,  // data: int32[size]
  kBridgeIntegers,  // data: int64[size]
  kBridgeTexts,     // data: BridgeText[size]
  kBridgeBiases,    // data: BridgeBias[size]
  kBridgeFields,    // data: BridgeField[size], a dict of them
};

struct BridgeBias {
  std::int64_t token_id;
  double bias;
};

// A keyword argument of Python.
struct BridgeField {
  const char* name;
  BridgeKind kind;
  std::int64_t integer;
  double real;
  const void* data;
  std::size_t size;
};

// An error with the fields of runtime/error.h; those that it does not have are empty, none is null.
struct BridgeError {
  const char* code;
  const char* message;
  const char* hint;
  const char* param;
  const char* value;
  const char* limit;
  const char* suggestion;
};

// Where a function of BridgeEngine puts the error that it failed with.
struct BridgeErrorSink {
  void* context;
  void (*set)(void* context, const BridgeError* error);
};

enum BridgeItemKind : std::int32_t { kBridgeSubmit, kBridgeScore, kBridgeAbort, kBridgeMore };

// From a caller to the engine.
struct BridgeItem {
  BridgeItemKind kind;
  std::int64_t id;
  const BridgeField* fields;
  std::size_t num_fields;
};

struct BridgeMetrics {
  double queue_s, ttft_s, e2e_s;
  std::int64_t num_prompt_tokens, num_cached_tokens, num_output_tokens, num_preemptions;
};

struct BridgeLogprobs {
  const std::int32_t* token_ids;
  const float* logprobs;
  std::size_t size;
};

// From the engine to a caller.
struct BridgeChunk {
  std::int32_t index;
  BridgeText text;
  const std::int32_t* token_ids;
  std::size_t num_tokens;
  const BridgeLogprobs* logprobs;  // num_logprobs of them, one a token
  std::size_t num_logprobs;
  std::int32_t finish;  // FinishReason
  BridgeText stop_string;
  std::int32_t stop_token_id;
  const BridgeMetrics* metrics;  // with the last chunk; else null
};

// libruntime's side. `self` is one reference to a mailbox, which `release` gives up.
struct BridgeMailbox {
  void* self;
  void (*release)(void* self);
  // Waits, which needs no GIL, until there are items; 0 once the mailbox is closed.
  int (*wait)(void* self, double timeout_s);
  // Calls `each` for every item.
  void (*take)(void* self, void* context, void (*each)(void* context, const BridgeItem* item));
  // 0: what was pushed has not been read; an item kBridgeMore says when it has.
  int (*wants_news)(void* self, std::int64_t id);
  void (*push)(void* self, std::int64_t id, const BridgeChunk* chunk);
  void (*end)(void* self, std::int64_t id);
  void (*fail)(void* self, std::int64_t id, const BridgeError* error);
  // Ends all streams and waits.
  void (*close)(void* self);
};

struct BridgePlan {
  std::int64_t weights, kv_bytes_per_token, kv_blocks, block_size, kv_cache, workspace, graphs,
      context, total, max_model_len, max_sequences;
};

// runtime._core's side. All take the GIL. Functions that return int return 0, or 1 with the error
// in the sink.
struct BridgeEngine {
  std::size_t size;     // kBridgeSize
  const char* version;  // of the package
  // Loads a model; takes the mailbox's reference in any case.
  int (*open)(const BridgeField* arguments, std::size_t num_arguments, BridgeMailbox mailbox,
              void** engine, BridgeErrorSink sink);
  int (*plan)(const BridgeField* arguments, std::size_t num_arguments, BridgePlan* plan,
              BridgeErrorSink sink);
  int (*stats)(void* engine, void* scheduler_stats, BridgeErrorSink sink);
  // Ends what still runs, and the engine.
  void (*close)(void* engine);
};

}  // extern "C"

// Differs between builds whose tables do.
inline constexpr std::size_t kBridgeSize =
    sizeof(BridgeEngine) + sizeof(BridgeMailbox) + sizeof(BridgeItem) + sizeof(BridgeField) +
    sizeof(BridgeChunk) + sizeof(BridgeMetrics) + sizeof(BridgePlan) + sizeof(BridgeError);

// Name of the capsule, an attribute of the module runtime._core.
inline constexpr char kBridgeAttribute[] = "_bridge";
inline constexpr char kBridgeName[] = "runtime._core._bridge";

}  // namespace runtime::embed
