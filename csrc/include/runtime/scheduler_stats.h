#pragma once

#include <cstdint>

namespace runtime {

struct SchedulerStats {
  std::int32_t num_waiting = 0;  // preempted ones included
  std::int32_t num_running = 0;
  std::int32_t num_steps_in_flight = 0;
  std::int32_t num_tenants = 0;  // that are remembered
  std::int32_t num_blocks = 0;
  std::int32_t num_free_blocks = 0;  // cached ones that nobody holds included
  std::int32_t num_cached_blocks = 0;
  std::int64_t num_steps = 0;
  std::int32_t num_pinned_blocks = 0;
  std::int32_t num_host_blocks = 0;         // of the CPU tier
  std::int32_t num_cached_host_blocks = 0;  // of those, with content
  std::int32_t num_transfers = 0;           // requests whose blocks are being copied
  std::int64_t num_prompt_tokens = 0;       // of requests that started
  std::int64_t num_cached_tokens = 0;       // of those, found in the prefix cache, or on the host
  std::int64_t num_prefix_queries = 0;      // requests that started
  std::int64_t num_prefix_hits = 0;         // of those, with cached tokens
  std::int64_t num_evictions = 0;           // cached blocks given up on the device,
  std::int64_t num_host_evictions = 0;      // and on the host
  std::int64_t num_stored_blocks = 0;       // copied to the host
  std::int64_t num_loaded_blocks = 0;       // copied from it
  std::int64_t num_swaps = 0;               // preemptions that copied the request's blocks first
  std::int64_t num_output_tokens = 0;
  std::int64_t num_recomputed_tokens = 0;  // computed again after a preemption
  std::int64_t num_preemptions = 0;
  std::int64_t num_finished = 0;
};

}  // namespace runtime
