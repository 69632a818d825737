#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "runtime/step_time.h"
#include "runtime/types.h"

namespace runtime {

// Who goes first: by arrival; by priority, then arrival; or tenants in turn, by what each was
// served.
enum class SchedulingPolicy : std::uint8_t { kFcfs, kPriority, kFair };

// Who may start: whatever fits now; what fits if every output is as long as its max_tokens; what
// fits at the predicted peak, from the lengths of outputs before or, in a simulation, the true
// ones.
enum class AdmissionMode : std::uint8_t { kNone, kMaxTokens, kPastFuture, kOracle };

// Which cached block is given up first: the least recently used, or the one that is worth least
// (time to compute it again x uses). Leaves always go before their prefixes.
enum class EvictionPolicy : std::uint8_t { kLru, kCost };

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

  SchedulingPolicy policy = SchedulingPolicy::kFcfs;
  double priority_ageing_s = 10.0;  // waiting that is worth one level of priority; 0: nobody ages
  std::map<std::string, double> tenant_weights;  // under kFair; those not named have weight 1
  double prompt_token_weight = 1.0;              // under kFair, what a computed prompt token counts
  double output_token_weight = 2.0;              // ... and a sampled one

  AdmissionMode admission = AdmissionMode::kPastFuture;
  double admission_reserve = 0.03;    // share of the blocks that a predicted peak leaves free
  std::int32_t length_window = 1024;  // finished outputs that predictions look at, for each tenant

  // Prompt chunks are cut so that a step which also decodes takes no longer, as `step_time` sees
  // it.
  double target_itl_ms = 0.0;  // 0: off
  StepTimeModel step_time;     // needed with a target

  EvictionPolicy eviction = EvictionPolicy::kLru;
  double max_pinned_share = 0.5;     // of the blocks, that pinned prefixes may hold
  std::int32_t num_host_blocks = 0;  // of the CPU tier; 0: there is none
  // What decides between copying KV and computing it again. The defaults are those of an 8B model
  // in 16 bits with blocks of 16 tokens on a GPU of 400 TFLOP/s behind a link of 42 GB/s.
  double recompute_token_s = 40e-6;   // seconds to compute a token's KV,
  double recompute_context_s = 1e-9;  // and more of them for each token of its context
  double transfer_block_s = 50e-6;    // seconds to copy a block to the host or back

  std::int32_t max_num_blocks_per_seq() const {
    return (max_model_len + block_size - 1) / block_size;
  }

  // Throws ConfigError that says what was given, the limit and the setting's name.
  void Validate() const;
};

}  // namespace runtime
