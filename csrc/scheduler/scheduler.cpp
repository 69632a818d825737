#include "runtime/scheduler.h"

#include <utility>

#include "scheduler/core.h"
#include "scheduler/request_factory.h"

namespace runtime {

Scheduler::Scheduler(const SchedulerConfig& config, BlockAllocator& allocator)
    : core_(std::make_unique<Core>(config, allocator)) {}

Scheduler::~Scheduler() = default;

std::int64_t Scheduler::plan_capacity() const { return core_->writer().capacity(); }

void Scheduler::AttachPlanBuffers(std::span<const PlanBuffer> buffers) {
  core_->AttachPlanBuffers(buffers);
}

void Scheduler::Submit(RequestId id, std::vector<TokenId> prompt_ids, const RequestParams& params,
                       SubmitOptions options) {
  core_->inbox().Submit(MakeRequest(core_->config(), core_->allocator(), id, std::move(prompt_ids),
                                    params, std::move(options)));
}

void Scheduler::Validate(std::vector<TokenId> prompt_ids, const RequestParams& params) const {
  MakeRequest(core_->config(), core_->allocator(), 0, std::move(prompt_ids), params, {});
}

bool Scheduler::Abort(RequestId id) { return core_->inbox().Abort(id); }

void Scheduler::Stop(RequestId id, std::int32_t num_kept) { core_->inbox().Stop(id, num_kept); }

void Scheduler::ResetPrefixCache() { core_->inbox().ResetPrefixCache(); }

void Scheduler::Record(const std::string& path) { core_->Record(path); }

void Scheduler::StopRecording() { core_->StopRecording(); }

void Scheduler::SetTime(std::int64_t now_us) { core_->SetTime(now_us); }

std::int32_t Scheduler::Schedule() { return core_->Schedule(); }

const std::vector<MaskedRow>& Scheduler::MaskedRows() const { return core_->MaskedRows(); }

const StepResult& Scheduler::Update(std::int32_t step, std::span<const TokenId> token_ids) {
  return core_->Update(step, token_ids);
}

void Scheduler::TransferDone(std::int32_t step) { core_->TransferDone(step); }

PinnedPrefix Scheduler::Pin(std::span<const TokenId> tokens, const std::string& salt) {
  return core_->Pin(tokens, salt);
}

bool Scheduler::Unpin(std::int64_t id) { return core_->Unpin(id); }

const StepResult& Scheduler::TakeEvents() { return core_->TakeEvents(); }

bool Scheduler::Wait(double timeout_s) { return core_->inbox().Wait(timeout_s, core_->HasWork()); }

void Scheduler::Wake() { core_->inbox().Wake(); }

SchedulerStats Scheduler::stats() const { return core_->stats(); }

SchedulerSnapshot Scheduler::Snapshot() const { return core_->Snapshot(); }

void Scheduler::Check() const { core_->Check(); }

}  // namespace runtime
