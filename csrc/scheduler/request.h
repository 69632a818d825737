#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "common/siphash.h"
#include "kv_cache/kv_pool.h"
#include "runtime/request_params.h"
#include "runtime/types.h"

namespace runtime {

struct Tenant;

// How far an event log has followed a request's tokens, see Recorder.
struct BlockTrail {
  Hash128 tail;           // of its last recorded block and all before it
  std::size_t count = 0;  // recorded blocks
};

enum class RequestState : std::uint8_t { kWaiting, kRunning, kPreempted, kFinished };

// One request inside the scheduler.
//
// Its tokens, and who knows what:
//   [0, num_retired)      KV computed by steps that have retired
//   [num_retired, num_computed)  KV computed by steps in flight, or copied in from the host
//   [0, tokens.size())    ids the host knows: the prompt, then what was sampled
//   num_unknown           sampled by steps in flight, ids known to the device only
// It prefills until num_computed reaches prefill_len, the ids known when it got its row; from then
// on it decodes, one token a step, and the newest token's KV is the next to compute.
struct Request {
  Request(RequestId request_id, RequestParams numbers, std::vector<TokenId> prompt,
          BlockAllocator& allocator)
      : id(request_id),
        params(std::move(numbers)),
        tokens(std::move(prompt)),
        prompt_len(static_cast<std::int32_t>(tokens.size())),
        kv(allocator) {}

  RequestId id;
  RequestParams params;
  std::vector<TokenId> tokens;
  std::int32_t prompt_len;
  std::int32_t max_len = 0;       // tokens at which it finishes by length
  std::int32_t score_start = -1;  // >= 0: nothing is sampled, tokens from here on are scored
  std::int64_t seed = 0;
  std::int32_t sample_flags = 0;    // step_plan::kSample...
  std::vector<TokenId> masked_ids;  // not sampled before min_tokens
  std::int64_t submitted_us = 0;    // the scheduler's time then
  std::int32_t priority = 0;        // higher first, under that policy
  std::int64_t rank = 0;            // place among others: lowest first, then by arrival
  std::string tenant_name;
  std::int64_t arrival = 0;              // place in the order of submission
  Tenant* tenant = nullptr;              // from its arrival to its end
  std::int32_t true_output_len = 0;      // 0: not known, as is usual
  bool is_masked = false;                // see SubmitOptions
  mutable std::int32_t length_rank = 0;  // see LengthHistory::Quantile

  RequestState state = RequestState::kWaiting;
  std::int32_t row = -1;   // in the device's row state; -1: none
  std::int32_t epoch = 0;  // counts the rows it got
  std::int32_t prefill_len = 0;
  std::int32_t num_computed = 0;
  std::int32_t num_retired = 0;
  std::int32_t num_unknown = 0;
  std::int32_t num_in_flight = 0;    // steps in flight that hold a row of it
  bool is_copying = false;           // its blocks are on their way to the host, or from it
  std::int32_t num_blocks_sent = 0;  // leading entries of its table that plans have carried
  std::int64_t planned_step = 0;     // the last step that holds a row of it
  std::int32_t num_cached = -1;      // prefix hit, in tokens, of its first admission; -1: none yet
  std::int32_t num_preemptions = 0;
  KvShare kv;
  BlockTrail trail;

  std::int32_t num_tokens() const { return static_cast<std::int32_t>(tokens.size()) + num_unknown; }
  std::int32_t num_outputs() const { return static_cast<std::int32_t>(tokens.size()) - prompt_len; }
  bool is_scoring() const { return score_start >= 0; }
  bool is_prefilling() const { return num_computed < prefill_len; }
  // False while its end, by length, only waits for steps in flight.
  bool can_advance() const { return is_prefilling() || (!is_scoring() && num_tokens() < max_len); }
  // The last token needs no KV unless it is scored for its own sake.
  std::int32_t max_computed() const { return is_scoring() ? prompt_len : max_len - 1; }
  // Prefix hits may cover so many tokens: what must be computed is the last one, or what is scored.
  std::int32_t max_hit_len() const {
    return is_scoring() ? std::max(score_start - 1, 0)
                        : static_cast<std::int32_t>(tokens.size()) - 1;
  }
};

inline bool GoesBefore(const Request* a, const Request* b) {
  return a->rank != b->rank ? a->rank < b->rank : a->arrival < b->arrival;
}

}  // namespace runtime
