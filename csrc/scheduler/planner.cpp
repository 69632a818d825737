// One step: who advances, by how many tokens, with which blocks.
#include <algorithm>
#include <utility>

#include "common/check.h"
#include "scheduler/core.h"

namespace runtime {

std::int32_t Scheduler::Core::Schedule() {
  Require(!buffers_.empty(), "plan buffers are attached before the first step");
  const Change change(is_lost_);
  DrainInbox();
  if (num_in_flight_ == config_.num_steps_in_flight) return -1;
  PlanStep();
  if (!DraftCopies() && !draft_.has_rows()) {
    Ensure(num_in_flight_ > 0 || is_transferring() || requests_.empty(),
           "something advances while requests are alive");
    if (recorder_) recorder_->OnNoPlan();
    CheckIfAsked();
    return -1;
  }
  Launch();
  if (recorder_) recorder_->OnPlan(buffers_[static_cast<std::size_t>(next_buffer_)]);
  CheckIfAsked();
  return std::exchange(next_buffer_, (next_buffer_ + 1) % static_cast<int>(buffers_.size()));
}

void Scheduler::Core::PlanStep() {
  draft_.Reset();
  is_short_ = false;
  ForcePreemption();
  PlanDecodes();
  chunk_size_.BeginStep(draft_.decode_rows);
  PlanPrefills();
  // a shortage is over for those that run before others may take blocks
  if (!is_short_ || (!draft_.has_rows() && num_in_flight_ == 0)) Admit();
}

void Scheduler::Core::ForcePreemption() {
  const std::int64_t step = step_ + 1;
  if (config_.preempt_every == 0 || step % config_.preempt_every != 0 || forced_step_ == step)
    return;
  Request* victim = victim_->Choose(running_, kv_, step);
  if (victim == nullptr) return;
  forced_step_ = step;
  Preempt(*victim);
}

void Scheduler::Core::PlanDecodes() {
  has_prefills_ = false;
  for (std::size_t i = 0; i < running_.size() && Budget() > 0; ++i) {
    Request& request = *running_[i];
    if (request.is_prefilling()) {
      has_prefills_ = true;
    } else if (request.can_advance() && MakeRoom(i, 1, 0)) {
      AddRow(request, 1);
    }
  }
}

void Scheduler::Core::PlanPrefills() {
  if (!has_prefills_) return;
  for (std::size_t i = 0; i < running_.size() && Budget() > 0; ++i) {
    Request& request = *running_[i];
    if (!request.is_prefilling() || request.is_copying) continue;
    const std::int32_t wanted = std::min(Budget(), request.prefill_len - request.num_computed);
    const std::int32_t chunk = chunk_size_.Of(request.num_computed, wanted);
    if (chunk == 0) return;
    if (request.num_blocks_sent == 0 && !HasRoomForRow(request, chunk)) continue;
    if (MakeRoom(i, chunk, kv_.watermark())) AddRow(request, chunk);
  }
}

// Takes the blocks for a running request's next tokens, preempting requests behind it if need be.
// False: it sits this step out.
bool Scheduler::Core::MakeRoom(std::size_t index, std::int32_t num_scheduled, std::int32_t floor) {
  Request& request = *running_[index];
  const std::int32_t count =
      kv_.BlocksFor(request.num_computed + num_scheduled) - request.kv.table.size();
  if (count == 0) return true;
  while (!kv_.CanExtend(request.kv, count, running_.size() == 1 ? 0 : floor)) {
    is_short_ = true;
    if (num_releasing_ > 0) return false;  // blocks come back when steps retire or copies are done
    const auto behind = std::span<Request* const>(running_).subspan(index + 1);
    Request* victim = victim_->Choose(behind, kv_, step_ + 1);
    if (victim == nullptr) {
      if (running_.size() > 1) return false;
      // alone and still short: pins are given up, then what it holds twice (its twins)
      if (DropOldestPin()) continue;
      Preempt(request);
      return false;
    }
    Preempt(*victim);
  }
  kv_.Extend(request.kv, count);
  return true;
}

void Scheduler::Core::AddRow(Request& request, std::int32_t num_scheduled) {
  const bool is_prefill = request.is_prefilling();
  const bool samples =
      !request.is_scoring() && request.num_computed + num_scheduled == request.num_tokens();
  const std::int32_t flags = (samples ? step_plan::kRowSample : 0) |
                             (is_prefill ? step_plan::kRowHostTokens : 0) |
                             (request.is_scoring() ? step_plan::kRowScore : 0);
  if (is_prefill) chunk_size_.Add(request.num_computed, num_scheduled);
  auto& rows = is_prefill ? draft_.prefill_rows : draft_.decode_rows;
  rows.push_back({&request, request.num_computed, num_scheduled, flags});
  if (request.num_blocks_sent == 0) AddNewRow(request);
  for (std::int32_t i = request.num_blocks_sent; i < request.kv.table.size(); ++i) {
    draft_.new_blocks.push_back({request.row, i, request.kv.table[i]});
  }
  request.num_blocks_sent = request.kv.table.size();
  request.num_computed += num_scheduled;
  request.num_unknown += samples;
  request.planned_step = step_ + 1;
  ++request.num_in_flight;
  draft_.num_tokens += num_scheduled;
}

void Scheduler::Core::AddNewRow(Request& request) {
  std::erase(draft_.freed_rows, request.row);  // a new row replaces the old one whole
  draft_.new_rows.push_back(&request);
  draft_.num_list_words += writer_.NumListWords(request);
}

// Whether a request with those tokens and more fits the plan as a new row.
bool Scheduler::Core::HasRoomForRow(const Request& request, std::int32_t num_more) const {
  return writer_.HasRoom(draft_, kv_.BlocksFor(request.num_computed + num_more),
                         writer_.NumListWords(request));
}

void Scheduler::Core::Admit() {
  if (waiting_.empty()) return;
  admission_->BeginStep();
  std::int32_t num_committed = NumCommitted();
  while (!waiting_.empty() && !free_rows_.empty() && Budget() > 0) {
    if (AdmitFront(num_committed)) continue;
    // pins yield to what could never start beside them
    const bool is_stuck = running_.empty() && num_releasing_ == 0;
    if (!is_stuck || !DropOldestPin()) return;
  }
}

// Blocks that a running request's known tokens still need, beyond its table and its reserve.
std::int32_t Scheduler::Core::OutstandingPrompt(const Request& request) const {
  if (!request.is_prefilling() || request.kv.num_reserved > 0) return 0;
  return kv_.BlocksFor(request.prefill_len) - request.kv.table.size();
}

std::int32_t Scheduler::Core::NumCommitted() const {
  std::int32_t total = 0;
  if (!has_prefills_) return total;
  for (const Request* request : running_) total += OutstandingPrompt(*request);
  return total;
}

bool Scheduler::Core::AdmitFront(std::int32_t& num_committed) {
  Request& request = waiting_.front();
  if (request.row >= 0) return false;  // a step in flight or a copy still holds what it had
  const auto num_known = static_cast<std::int32_t>(request.tokens.size());
  const KvPool::Hit hit = kv_.Match(request.kv, request.tokens, request.max_hit_len());
  if (hit.is_awaited) return false;
  const std::int32_t num_hits = hit.num_blocks();
  const std::int32_t num_cached = (num_hits + hit.num_host_blocks()) * kv_.block_size();
  // one that may not be preempted again starts only with every block it can ever need
  const bool is_protected = request.num_preemptions >= VictimPolicy::kMaxPreemptions;
  const std::int32_t num_needed =
      kv_.BlocksFor(is_protected ? request.max_computed() : num_known) - num_hits;
  const AdmissionView view{request,       running_,    kv_, num_needed + hit.num_free,
                           num_committed, is_protected};
  // what comes from the host is there in a later step, and the rest is computed then
  const bool is_load = !hit.host.empty();
  const std::int32_t chunk =
      is_load ? 0 : chunk_size_.Of(num_cached, std::min(Budget(), num_known - num_cached));
  const std::int32_t num_blocks = kv_.BlocksFor(num_cached + chunk);
  if ((chunk == 0 && !is_load) || !AdmissionPolicy::FitsNow(view) ||
      !writer_.HasRoom(draft_, num_blocks, writer_.NumListWords(request)) ||
      !admission_->Admits(view)) {
    return false;
  }
  TakeBlocks(request, hit, num_blocks, is_protected ? num_needed : 0);
  request.num_computed = num_cached;
  Start(request);
  if (is_load) {
    StartLoad(request, kv_.Load(request.kv, hit));
  } else {
    AddRow(request, chunk);
  }
  num_committed += OutstandingPrompt(request);
  return true;
}

// The blocks of a request that starts: those that it found on the device, new ones up to
// `num_blocks`, and `num_reserved` that are set aside for the new ones and for its growth.
void Scheduler::Core::TakeBlocks(Request& request, const KvPool::Hit& hit, std::int32_t num_blocks,
                                 std::int32_t num_reserved) {
  kv_.Adopt(request.kv, hit);
  kv_.Reserve(request.kv, num_reserved);
  kv_.Extend(request.kv, num_blocks - hit.num_blocks());
  Ensure(running_.empty() || kv_.num_available() >= kv_.watermark(),
         "admission keeps the watermark");
  request.num_retired = hit.num_blocks() * kv_.block_size();
}

// From waiting to running, in a row of its own.
void Scheduler::Core::Start(Request& request) {
  waiting_.Erase(request);
  InsertRunning(request);
  request.state = RequestState::kRunning;
  request.prefill_len = static_cast<std::int32_t>(request.tokens.size());
  request.row = free_rows_.back();
  free_rows_.pop_back();
  ++request.epoch;
  // decoding takes no memory from here on
  request.tokens.reserve(static_cast<std::size_t>(request.max_len));
  request.kv.table.Reserve(kv_.BlocksFor(request.max_computed()));
  request.kv.chain.hashes.reserve(static_cast<std::size_t>(kv_.BlocksFor(request.max_len)));
  if (request.num_cached >= 0) {
    totals_.num_recomputed_tokens += request.prefill_len - request.num_computed;
    return;
  }
  request.num_cached = request.num_computed;
  waiting_.ChargePrompt(*request.tenant, request.prompt_len - request.num_cached);
  draft_.started.push_back(request.id);
  inbox_.OnStarted();
  totals_.num_prompt_tokens += request.prompt_len;
  totals_.num_cached_tokens += request.num_cached;
  totals_.num_prefix_queries += config_.enable_prefix_caching;
  totals_.num_prefix_hits += request.num_cached > 0;
}

// Writes the draft down and counts it as in flight.
void Scheduler::Core::Launch() {
  ++step_;
  const auto step = static_cast<std::int32_t>(step_ & 0x7fffffff);
  draft_.num_repeated_tokens = kv_.num_repeated_tokens();
  writer_.Write(step, draft_, buffers_[static_cast<std::size_t>(next_buffer_)]);
  if (draft_.has_rows()) draft_.freed_rows.clear();
  InFlightStep& flight = steps_[static_cast<std::size_t>((oldest_ + num_in_flight_) % 2)];
  flight.step = step;
  flight.rows.clear();
  masked_rows_.clear();
  for (const auto* rows : {&draft_.decode_rows, &draft_.prefill_rows}) {
    for (const PlannedRow& row : *rows) {
      const auto index = static_cast<std::int32_t>(flight.rows.size());
      if (NeedsMask(*row.request, row.flags)) masked_rows_.push_back({index, row.request->id});
      flight.rows.push_back({row.request, row.request->epoch, row.num_scheduled, row.flags});
    }
  }
  flight.started.assign(draft_.started.begin(), draft_.started.end());
  ++num_in_flight_;
}

}  // namespace runtime
