#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "kv_cache/kv_pool.h"
#include "runtime/scheduler.h"
#include "scheduler/admission.h"
#include "scheduler/change.h"
#include "scheduler/chunk_size.h"
#include "scheduler/inbox.h"
#include "scheduler/order.h"
#include "scheduler/plan_writer.h"
#include "scheduler/recorder.h"
#include "scheduler/request.h"
#include "scheduler/tenants.h"
#include "scheduler/victim.h"
#include "scheduler/waiting_queue.h"

namespace runtime {

// A planned row whose result is awaited. It holds for the request's (row, epoch) of that step only.
struct InFlightRow {
  Request* request;
  std::int32_t epoch;
  std::int32_t num_scheduled;
  std::int32_t flags;
};

struct InFlightStep {
  std::int32_t step = 0;
  std::vector<InFlightRow> rows;  // in the plan's order
  std::vector<RequestId> started;
};

// A request's blocks on their way between device and host: the copy waits for a plan to carry it,
// then for that step's TransferDone.
struct Transfer {
  Request* request;
  KvCopy copy;
  bool is_planned = false;
  std::int32_t step = 0;
};

// A prefix that is kept, owned as a request owns its blocks.
struct Pinned {
  std::int64_t id;
  std::unique_ptr<KvShare> share;
};

// The scheduler's state and its transitions. A request is in exactly one place: `waiting_` (waiting
// or preempted), `running_`, or `ended_` (finished, but a step in flight still holds a row of it,
// or a copy its blocks). Its blocks and its row are given back once it is off `running_` and
// neither holds it. A request that waits for a copy from the host is in `running_`, but no step
// plans it.
class Scheduler::Core {
 public:
  Core(const SchedulerConfig& config, BlockAllocator& allocator);
  ~Core();

  const SchedulerConfig& config() const { return config_; }
  BlockAllocator& allocator() { return allocator_; }
  Inbox& inbox() { return inbox_; }
  const PlanWriter& writer() const { return writer_; }

  void AttachPlanBuffers(std::span<const PlanBuffer> buffers);
  void Record(const std::string& path);
  void StopRecording() { recorder_.reset(); }
  void SetTime(std::int64_t now_us);
  std::int32_t Schedule();
  const std::vector<MaskedRow>& MaskedRows() const { return masked_rows_; }
  const StepResult& Update(std::int32_t step, std::span<const TokenId> token_ids);
  void TransferDone(std::int32_t step);
  PinnedPrefix Pin(std::span<const TokenId> tokens, const std::string& salt);
  bool Unpin(std::int64_t id);
  const StepResult& TakeEvents();
  bool HasWork() const { return !requests_.empty() || !events_.request_ids.empty(); }
  SchedulerStats stats() const;
  SchedulerSnapshot Snapshot() const;
  void Check() const;

 private:
  friend struct SchedulerPeer;

  // core.cpp: events and the life of a request
  void DrainInbox();
  void Handle(InboxEvent& event);
  void Enter(InboxEvent& event);
  void EndEarly(const InboxEvent& event);
  void ForgetPrefixes();
  void Start(Request& request);
  void Preempt(Request& request);
  void Finish(Request& request, FinishReason reason, TokenId token, std::int32_t row,
              TokenId stop_id);
  void Settle(Request& request);
  void LetGo(Request& request);
  void Release(Request& request);
  void Emit(const Request& request, FinishReason reason, TokenId token, std::int32_t row,
            TokenId stop_id);
  void InsertRunning(Request& request);
  void CheckIfAsked() const;

  // planner.cpp: one step
  void PlanStep();
  void ForcePreemption();
  void PlanDecodes();
  void PlanPrefills();
  void Admit();
  bool AdmitFront(std::int32_t& num_committed);
  void TakeBlocks(Request& request, const KvPool::Hit& hit, std::int32_t num_blocks,
                  std::int32_t num_reserved);
  bool MakeRoom(std::size_t index, std::int32_t num_scheduled, std::int32_t floor);
  void AddRow(Request& request, std::int32_t num_scheduled);
  void AddNewRow(Request& request);
  bool HasRoomForRow(const Request& request, std::int32_t num_more) const;
  std::int32_t Budget() const { return config_.max_num_batched_tokens - draft_.num_tokens; }
  std::int32_t NumCommitted() const;
  std::int32_t OutstandingPrompt(const Request& request) const;
  void Launch();

  // transfers.cpp: copies between device and host
  void StartLoad(Request& request, KvCopy copy);
  bool StartStore(Request& request);
  bool DraftCopies();
  void FinishTransfer(Transfer& transfer);
  bool is_transferring() const { return !transfers_.empty(); }

  // pins.cpp
  std::int32_t NumPinned() const;
  bool DropPin(std::int64_t id);
  bool DropOldestPin();

  // retire.cpp: its results
  void RetireRow(const InFlightRow& row, std::int32_t index, TokenId token);
  void TakeToken(Request& request, std::int32_t index, TokenId token);
  void TakeScores(Request& request, std::int32_t index);

  // check.cpp
  void CheckRequests() const;
  void CheckRequest(const Request& request) const;
  void CheckOwners() const;
  void CheckTransfers() const;
  void CheckRows() const;
  void CheckDrained() const;

  const SchedulerConfig config_;
  BlockAllocator& allocator_;
  KvPool kv_;
  PlanWriter writer_;
  Inbox inbox_;
  const std::unique_ptr<OrderPolicy> order_;
  const std::unique_ptr<VictimPolicy> victim_;
  const std::unique_ptr<AdmissionPolicy> admission_;
  ChunkSize chunk_size_;

  TenantTable tenants_;
  std::unordered_map<RequestId, std::unique_ptr<Request>> requests_;  // not finished
  std::vector<std::unique_ptr<Request>> ended_;
  WaitingQueue waiting_;
  std::vector<Request*> running_;  // in order
  std::vector<std::int32_t> free_rows_;
  std::int32_t num_releasing_ = 0;  // requests whose blocks come back when steps in flight retire

  std::vector<Transfer> transfers_;  // in the order of their start
  std::int32_t num_copying_ = 0;     // blocks of those
  std::vector<Pinned> pins_;         // oldest first
  std::int64_t num_pins_made_ = 0;

  std::vector<PlanBuffer> buffers_;
  std::int32_t next_buffer_ = 0;
  std::int64_t step_ = 0;  // steps planned so far
  std::array<InFlightStep, 2> steps_;
  std::vector<MaskedRow> masked_rows_;  // of the newest plan in flight
  std::int32_t oldest_ = 0;
  std::int32_t num_in_flight_ = 0;
  StepDraft draft_;
  bool is_short_ = false;      // blocks ran out while the step was planned
  bool has_prefills_ = false;  // some running request was not done with its prompt before the step
  std::int64_t forced_step_ = 0;
  std::int64_t num_arrived_ = 0;
  std::int64_t now_us_ = 0;

  std::unique_ptr<Recorder> recorder_;  // nullptr: nothing is recorded

  std::vector<InboxEvent> drained_;
  StepResult events_;  // since the last result
  StepResult result_;
  SchedulerStats totals_;
  bool is_lost_ = false;  // a call ended halfway
};

}  // namespace runtime
