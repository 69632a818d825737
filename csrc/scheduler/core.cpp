#include "scheduler/core.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "runtime/error.h"

namespace runtime {
namespace {

KvPool::Options PoolOptions(const SchedulerConfig& config) {
  KvPool::Options options;
  options.block_size = config.block_size;
  options.watermark = config.watermark;
  options.enable_prefix_caching = config.enable_prefix_caching;
  options.hash_seed = static_cast<std::uint64_t>(config.seed);
  options.constant_hash = config.constant_block_hash;
  options.eviction = config.eviction;
  options.costs = KvCosts(config.block_size, config.recompute_token_s, config.recompute_context_s,
                          config.transfer_block_s);
  options.num_host_blocks = config.num_host_blocks;
  return options;
}

void Clear(StepResult& result) {
  result.request_ids.clear();
  result.token_ids.clear();
  result.finish.clear();
  result.rows.clear();
  result.stop_ids.clear();
  result.num_cached.clear();
  result.num_preemptions.clear();
  result.started.clear();
}

void Reserve(StepResult& result, std::size_t count) {
  result.request_ids.reserve(count);
  result.token_ids.reserve(count);
  result.finish.reserve(count);
  result.rows.reserve(count);
  result.stop_ids.reserve(count);
  result.num_cached.reserve(count);
  result.num_preemptions.reserve(count);
  result.started.reserve(count);
}

}  // namespace

Scheduler::Core::Core(const SchedulerConfig& config, BlockAllocator& allocator)
    : config_((config.Validate(), config)),
      allocator_(allocator),
      kv_(allocator, PoolOptions(config)),
      writer_(config),
      inbox_(config.max_queued_requests),
      order_(MakeOrder(config)),
      victim_(MakeVictim(config)),
      admission_(MakeAdmission(config, allocator)),
      chunk_size_(config),
      tenants_(config_),
      waiting_(config.policy == SchedulingPolicy::kFair) {
  const auto num_rows = static_cast<std::size_t>(config.max_num_seqs);
  for (std::int32_t row = config.max_num_seqs; row-- > 0;) free_rows_.push_back(row);
  running_.reserve(num_rows);
  masked_rows_.reserve(num_rows);
  draft_.decode_rows.reserve(num_rows);
  draft_.prefill_rows.reserve(num_rows);
  draft_.new_blocks.reserve(num_rows);
  draft_.new_rows.reserve(num_rows);
  draft_.freed_rows.reserve(num_rows);
  draft_.started.reserve(num_rows);
  for (InFlightStep& step : steps_) {
    step.rows.reserve(num_rows);
    step.started.reserve(num_rows);
  }
  Reserve(events_, num_rows);
  Reserve(result_, num_rows);
}

Scheduler::Core::~Core() {
  // requests give their blocks back before the allocator can be destroyed
  while (DropOldestPin()) {
  }
  for (auto& [id, request] : requests_) kv_.Release(request->kv);
  for (auto& request : ended_) kv_.Release(request->kv);
}

void Scheduler::Core::AttachPlanBuffers(std::span<const PlanBuffer> buffers) {
  Require(num_in_flight_ == 0, "plan buffers are attached while no step is in flight");
  Require(buffers.size() == static_cast<std::size_t>(config_.num_steps_in_flight) + 1,
          "num_steps_in_flight + 1 plan buffers are needed");
  for (const PlanBuffer& buffer : buffers) {
    Require(
        static_cast<std::int64_t>(buffer.size()) >= writer_.capacity() && buffer.data() != nullptr,
        "a plan buffer needs plan_capacity words");
  }
  buffers_.assign(buffers.begin(), buffers.end());
  next_buffer_ = 0;
}

void Scheduler::Core::SetTime(std::int64_t now_us) {
  Require(now_us >= now_us_, "time never goes back");
  now_us_ = now_us;
  if (recorder_) recorder_->OnTime(now_us);
}

void Scheduler::Core::Record(const std::string& path) {
  Require(recorder_ == nullptr && num_arrived_ == 0 && step_ == 0,
          "recording begins before the first request, and once");
  recorder_ = std::make_unique<Recorder>(path, config_, allocator_.num_blocks());
  recorder_->OnTime(now_us_);
}

void Scheduler::Core::DrainInbox() {
  inbox_.Drain(drained_);
  for (InboxEvent& event : drained_) Handle(event);
  drained_.clear();
}

void Scheduler::Core::Handle(InboxEvent& event) {
  switch (event.kind) {
    case InboxEvent::Kind::kSubmit:
      return Enter(event);
    case InboxEvent::Kind::kAbort:
    case InboxEvent::Kind::kStop:
      return EndEarly(event);
    case InboxEvent::Kind::kResetPrefixCache:
      return ForgetPrefixes();
  }
}

void Scheduler::Core::Enter(InboxEvent& event) {
  Request& request = *event.request;
  requests_.emplace(event.id, std::move(event.request));
  request.arrival = num_arrived_++;
  request.submitted_us = now_us_;
  request.rank = order_->Rank(request);
  request.tenant = &tenants_.Enter(request.tenant_name, waiting_.floor(), waiting_.last_left());
  waiting_.Insert(request);
  if (recorder_) recorder_->OnSubmit(request);
}

void Scheduler::Core::EndEarly(const InboxEvent& event) {
  const auto found = requests_.find(event.id);
  if (found == requests_.end()) return;  // it ended by itself meanwhile
  Request& request = *found->second;
  const bool is_stop = event.kind == InboxEvent::Kind::kStop;
  if (recorder_) {
    is_stop ? recorder_->OnStop(request, event.num_kept) : recorder_->OnAbort(request);
  }
  if (is_stop) totals_.num_output_tokens -= std::max(request.num_outputs() - event.num_kept, 0);
  Finish(request, is_stop ? FinishReason::kStop : FinishReason::kAbort, -1, -1, -1);
  Settle(request);
}

void Scheduler::Core::ForgetPrefixes() {
  if (recorder_) recorder_->OnResetPrefixCache();
  while (DropOldestPin()) {
  }
  for (auto& [id, request] : requests_) request->kv.chain.Detach();
  for (auto& request : ended_) request->kv.chain.Detach();
  kv_.ClearPrefixes();
}

void Scheduler::Core::InsertRunning(Request& request) {
  running_.insert(std::ranges::upper_bound(running_, &request, GoesBefore), &request);
}

void Scheduler::Core::Preempt(Request& request) {
  std::erase(running_, &request);
  ++num_releasing_;
  request.state = RequestState::kPreempted;
  ++request.num_preemptions;
  ++totals_.num_preemptions;
  waiting_.Insert(request);
  Settle(request);
}

// Tells its end. The request lives on until it is settled.
void Scheduler::Core::Finish(Request& request, FinishReason reason, TokenId token, std::int32_t row,
                             TokenId stop_id) {
  Emit(request, reason, token, row, stop_id);
  if (reason == FinishReason::kStop || reason == FinishReason::kLength) {
    admission_->OnFinished(request);
  }
  inbox_.OnFinished(request.id, request.num_cached < 0);
  if (request.state == RequestState::kRunning) {
    std::erase(running_, &request);
    ++num_releasing_;
  } else {
    waiting_.Erase(request);
  }
  TenantTable::Leave(*request.tenant);
  request.state = RequestState::kFinished;
  ++totals_.num_finished;
  ended_.push_back(std::move(requests_.extract(request.id).mapped()));
}

// Gives back what a request that does not run holds, once no step in flight and no copy touches it:
// after a copy to the host, if that pays.
void Scheduler::Core::Settle(Request& request) {
  if (request.num_in_flight > 0 || request.is_copying) return;
  if (request.state == RequestState::kRunning) return;
  if (request.row < 0 || !StartStore(request)) LetGo(request);
}

void Scheduler::Core::LetGo(Request& request) {
  if (request.row >= 0) Release(request);
  if (request.state != RequestState::kFinished) return;
  std::erase_if(ended_, [&](const auto& ended) { return ended.get() == &request; });
}

void Scheduler::Core::Release(Request& request) {
  kv_.Release(request.kv);
  const bool is_known = request.num_blocks_sent > 0;  // a plan has carried the row
  if (is_known) draft_.freed_rows.push_back(request.row);
  request.num_computed = request.num_retired = request.num_blocks_sent = 0;
  free_rows_.push_back(request.row);
  request.row = -1;
  --num_releasing_;
}

void Scheduler::Core::Emit(const Request& request, FinishReason reason, TokenId token,
                           std::int32_t row, TokenId stop_id) {
  const bool is_last = reason != FinishReason::kNone;
  events_.request_ids.push_back(request.id);
  events_.token_ids.push_back(token);
  events_.finish.push_back(reason);
  events_.rows.push_back(row);
  events_.stop_ids.push_back(stop_id);
  events_.num_cached.push_back(is_last ? std::max(request.num_cached, 0) : 0);
  events_.num_preemptions.push_back(is_last ? request.num_preemptions : 0);
}

const StepResult& Scheduler::Core::TakeEvents() {
  const Change change(is_lost_);
  DrainInbox();
  std::swap(events_, result_);
  Clear(events_);
  CheckIfAsked();
  return result_;
}

SchedulerStats Scheduler::Core::stats() const {
  SchedulerStats stats = totals_;
  stats.num_waiting = static_cast<std::int32_t>(waiting_.size());
  stats.num_running = static_cast<std::int32_t>(running_.size());
  stats.num_steps_in_flight = num_in_flight_;
  stats.num_tenants = static_cast<std::int32_t>(tenants_.size());
  stats.num_blocks = kv_.num_blocks();
  stats.num_free_blocks = kv_.num_free();
  stats.num_cached_blocks = kv_.num_cached();
  stats.num_steps = step_;
  stats.num_pinned_blocks = NumPinned();
  stats.num_transfers = static_cast<std::int32_t>(transfers_.size());
  stats.num_evictions = kv_.num_evicted();
  if (const Tier* host = kv_.host()) {
    stats.num_host_blocks = host->allocator().num_blocks();
    stats.num_cached_host_blocks = host->num_resident();
    stats.num_host_evictions = host->num_evicted();
  }
  return stats;
}

void Scheduler::Core::CheckIfAsked() const {
#ifdef RUNTIME_CHECK_INVARIANTS
  Check();
#endif
}

}  // namespace runtime
