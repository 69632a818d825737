#pragma once

#include <cstdint>
#include <vector>

#include "runtime/types.h"

namespace runtime {

struct SchedulerConfig {
  std::int32_t max_num_seqs = 256;             // requests in one step
  std::int32_t max_num_batched_tokens = 8192;  // tokens in one step, decodes and prefill chunks
  std::int32_t block_size = 16;                // tokens of a KV block; a power of two
  std::int32_t max_model_len = 4096;           // prompt and output tokens of one request
  std::int32_t vocab_size = 32000;
  std::vector<TokenId> eos_token_ids;
  bool enable_prefix_caching = true;
  std::int32_t num_steps_in_flight = 1;   // 1 or 2
  double watermark = 0.01;                // share of the blocks that only running decodes may take
  std::int32_t preempt_every = 0;         // for tests: preempt a request every so many steps; 0 off
  std::int32_t max_queued_requests = -1;  // requests that wait; -1: no limit
  std::int64_t seed = 0;                  // seeds of requests that give none derive from it
  bool constant_block_hash = false;       // for tests: all prefix cache keys collide

  std::int32_t max_num_blocks_per_seq() const {
    return (max_model_len + block_size - 1) / block_size;
  }

  // Throws ConfigError that says what was given, the limit and the setting's name.
  void Validate() const;
};

}  // namespace runtime
