#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/block_allocator.h"
#include "runtime/request_params.h"
#include "runtime/scheduler_config.h"
#include "runtime/scheduler_stats.h"
#include "runtime/types.h"

namespace runtime {

// What a step brought, one entry for each sampled token, each scored row and each request that
// ended without one. Parallel arrays.
struct StepResult {
  std::vector<RequestId> request_ids;
  std::vector<TokenId> token_ids;             // -1: none
  std::vector<FinishReason> finish;           // exactly one entry of a request is not kNone
  std::vector<std::int32_t> rows;             // row index in the step's plan; -1: none
  std::vector<TokenId> stop_ids;              // the stop token that ended it; -1: eos, or none did
  std::vector<std::int32_t> num_cached;       // prefix hit in tokens; on the last entry, else 0
  std::vector<std::int32_t> num_preemptions;  // likewise
  std::vector<RequestId> started;             // requests that this step's plan took from the queue
};

enum class RequestPhase : std::int8_t { kWaiting = 0, kRunning = 1, kPreempted = 2 };

// Who runs, who waits, and whose the blocks are: for people to look at. Parallel arrays, those that
// run first, in their order, then those that wait in theirs.
struct SchedulerSnapshot {
  std::vector<RequestId> request_ids;
  std::vector<RequestPhase> phases;
  std::vector<std::int32_t> prompt_lens;
  std::vector<std::int32_t> output_lens;
  std::vector<std::int32_t> num_computed;
  std::vector<std::int32_t> table_lens;  // blocks of each request
  std::vector<BlockId> blocks;           // of all tables, one after the other
  // By block id, 0 included:
  std::vector<std::int32_t> num_owners;
  std::vector<std::int8_t> is_cached;  // findable in the prefix cache
};

// Memory for one StepPlan, owned by the caller; int32 words.
using PlanBuffer = std::span<std::int32_t>;

struct SubmitOptions {
  std::string cache_salt = {};       // requests share cached prefixes only under equal salts
  std::int32_t score_start = -1;     // >= 0: sample nothing, score prompt ids from this index on
  std::int32_t priority = 0;         // higher first, under that policy
  std::string tenant = {};           // whose share it counts against; empty: one common tenant
  std::int32_t true_output_len = 0;  // what only a simulation knows, for AdmissionMode::kOracle
  // What may be sampled depends on the tokens before: whoever runs a plan writes the row's allowed
  // ids before it samples.
  bool is_masked = false;
};

// A row whose token is sampled in a step, of a request with is_masked.
struct MaskedRow {
  std::int32_t index;  // in the plan
  RequestId request_id;
};

// Cached blocks that are kept. `id` is -1 and `num_tokens` 0 when nothing of the prompt is cached.
struct PinnedPrefix {
  std::int64_t id = -1;
  std::int32_t num_tokens = 0;
};

// Decides, step by step, which requests advance by how many tokens, and keeps the KV blocks.
//
// Continuous batching under one token budget per step: decodes first, then prefill chunks, then new
// requests in the order of the configured policy. When blocks run out a running request is
// preempted; what the prefix cache or the CPU tier still has of it later is not computed again. Its
// state is a function of its configuration and of the calls made to it.
//
// With a CPU tier (num_host_blocks) plans carry copies of blocks. They wait for no step, no step
// waits for them, and each plan that has any is answered by one TransferDone.
//
// When memory runs out, Submit, Abort, Stop and ResetPrefixCache throw std::bad_alloc and have done
// nothing. After Schedule, Update or TakeEvents threw it, or an InvariantError, the scheduler can
// only be destroyed: these calls and Check() throw.
//
// Submit, Validate, Abort, Stop, ResetPrefixCache and Wake may be called from any thread;
// everything else from one thread at a time.
class Scheduler {
 public:
  // Throws ConfigError. The allocator must outlive the scheduler, which is its only caller from
  // now.
  Scheduler(const SchedulerConfig& config, BlockAllocator& allocator);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Words that the largest plan needs.
  std::int64_t plan_capacity() const;
  // num_steps_in_flight + 1 buffers of at least plan_capacity() words, written in turn. They must
  // outlive the scheduler or the next call.
  void AttachPlanBuffers(std::span<const PlanBuffer> buffers);

  // Throws InvalidRequest, or CapacityError when max_queued_requests wait already.
  void Submit(RequestId id, std::vector<TokenId> prompt_ids, const RequestParams& params,
              SubmitOptions options = {});
  // Throws the InvalidRequest that Submit of these would.
  void Validate(std::vector<TokenId> prompt_ids, const RequestParams& params) const;
  // True if this call ends the request; its last entry follows in a StepResult.
  bool Abort(RequestId id);
  // A stop string ended it after `num_kept` output tokens. No effect on a request that has ended.
  void Stop(RequestId id, std::int32_t num_kept);
  // Forgets cached prefixes before the next step; requests that run keep their blocks.
  void ResetPrefixCache();

  // Keeps the cached blocks of the longest prefix of `tokens` under `salt` until Unpin,
  // ResetPrefixCache, or a request that could never run beside them. Blocks on the host are not
  // pinned. Throws CapacityError when pinned prefixes would hold more than max_pinned_share of the
  // blocks, each of its blocks counted, or blocks that a request was promised.
  PinnedPrefix Pin(std::span<const TokenId> tokens, const std::string& salt = "");
  // Whether it was still pinned.
  bool Unpin(std::int64_t id);

  // Writes an event log to `path` from now on, which runtime::Replay (runtime/event_log.h) takes:
  // lengths and hashes, neither token ids nor request ids. Before the first request. Throws
  // ConfigError when it cannot be written.
  void Record(const std::string& path);
  // Ends it; destruction does as well. Until then up to a second of events may not be in the file.
  void StopRecording();

  // The time, in microseconds from any origin; never goes back. Called before Schedule, by its
  // thread; nothing else tells the scheduler the time.
  void SetTime(std::int64_t now_us);
  // Plans the next step. Returns the index of the buffer that now holds it, or -1 when nothing can
  // run or num_steps_in_flight steps are unretired.
  std::int32_t Schedule();
  // Of the newest plan, until the next call. A plan that has any has kStepMasked.
  const std::vector<MaskedRow>& MaskedRows() const;
  // Retires the oldest step in flight: `step` as in its plan, one token per row of its plan
  // (ignored for rows without the SAMPLE flag; an id outside the vocabulary ends its request with
  // kError). The result is valid until the next call of Update or TakeEvents.
  const StepResult& Update(std::int32_t step, std::span<const TokenId> token_ids);
  // The copies in the plan of `step` are done. Any time after that plan, in any order.
  void TransferDone(std::int32_t step);
  // What no step in flight will bring: requests that ended while they waited.
  const StepResult& TakeEvents();

  // Blocks until there is a request or an event to handle, or until Wake or the timeout. Returns
  // whether there is.
  bool Wait(double timeout_s);
  void Wake();

  SchedulerStats stats() const;
  SchedulerSnapshot Snapshot() const;
  // Throws InvariantError that names the first broken invariant.
  void Check() const;

 private:
  friend struct SchedulerPeer;
  class Core;
  std::unique_ptr<Core> core_;
};

}  // namespace runtime
