#include "serving.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "runtime/step_plan.h"

namespace runtime::testing {
namespace {

void CheckUnlessItDoes(const Scheduler& scheduler) {
#ifndef RUNTIME_CHECK_INVARIANTS
  scheduler.Check();
#else
  (void)scheduler;
#endif
}

}  // namespace

PlanBuffers::PlanBuffers(Scheduler& scheduler, std::int32_t num_steps_in_flight)
    : buffers_(num_steps_in_flight + 1) {
  std::vector<PlanBuffer> spans;
  for (auto& buffer : buffers_) {
    buffer.assign(scheduler.plan_capacity(), -77);
    spans.emplace_back(buffer);
  }
  scheduler.AttachPlanBuffers(spans);
}

Serving::Serving(const SchedulerConfig& config, std::int32_t num_blocks)
    : config_(config),
      allocator_(num_blocks),
      scheduler_(config, allocator_),
      device_(config, num_blocks),
      buffers_(scheduler_, config.num_steps_in_flight) {}

void Serving::Submit(RequestId id, std::vector<TokenId> prompt, const RequestNumbers& numbers,
                     SubmitOptions options) {
  scheduler_.Submit(id, prompt, RequestParams(numbers), std::move(options));
  asked_[id] = {std::move(prompt), numbers};
  outcomes_[id] = {};
}

bool Serving::Abort(RequestId id) { return scheduler_.Abort(id); }

bool Serving::Step() {
  while (Plan()) {
  }
  if (in_flight_.empty() && !copying_.empty()) {
    FinishTransfer();
    return true;
  }
  if (in_flight_.empty()) {
    Take(scheduler_.TakeEvents());
    return false;
  }
  Retire();
  return true;
}

bool Serving::Plan() {
  const std::int32_t buffer = scheduler_.Schedule();
  CheckUnlessItDoes(scheduler_);
  if (buffer < 0) return false;
  in_flight_.push_back(buffer);
  const std::span<const std::int32_t> plan = buffers_[buffer];
  device_.StartCopies(plan);
  if (plan[step_plan::kHeaderCopies + 1] > 0) copying_.push_back(plan[step_plan::kHeaderStep]);
  last_buffer_ = buffer;
  return true;
}

void Serving::Retire() {
  const std::span<const std::int32_t> plan = buffers_[in_flight_.front()];
  in_flight_.pop_front();
  const std::vector<TokenId> tokens = device_.Execute(plan);
  Take(scheduler_.Update(plan[step_plan::kHeaderStep], tokens));
  CheckUnlessItDoes(scheduler_);
}

void Serving::FinishTransfer(std::size_t index) {
  const std::int32_t step = copying_.at(index);
  copying_.erase(copying_.begin() + static_cast<std::ptrdiff_t>(index));
  device_.FinishCopies(step);
  scheduler_.TransferDone(step);
  CheckUnlessItDoes(scheduler_);
}

void Serving::Take(const StepResult& result) {
  started_.insert(started_.end(), result.started.begin(), result.started.end());
  for (std::size_t i = 0; i < result.request_ids.size(); ++i) {
    Outcome& outcome = outcomes_.at(result.request_ids[i]);
    if (outcome.num_ends > 0) throw std::logic_error("an entry after the last one");
    if (result.token_ids[i] >= 0) outcome.tokens.push_back(result.token_ids[i]);
    outcome.num_scored_rows += result.token_ids[i] < 0 && result.rows[i] >= 0;
    if (result.finish[i] == FinishReason::kNone) continue;
    ++outcome.num_ends;
    outcome.finish = result.finish[i];
    outcome.stop_id = result.stop_ids[i];
    outcome.num_cached = result.num_cached[i];
    outcome.num_preemptions = result.num_preemptions[i];
  }
}

void Serving::RunUntilDrained(std::int32_t max_steps) {
  for (std::int32_t i = 0; i < max_steps; ++i) {
    if (!Step()) return;
  }
  throw std::logic_error("requests are still alive after max_steps steps");
}

std::vector<TokenId> Serving::Uninterrupted(RequestId id) const {
  const Asked& asked = asked_.at(id);
  const RequestParams params(asked.numbers);
  std::vector<TokenId> context = asked.prompt;
  const auto is_in = [](const auto& ids, TokenId t) { return std::ranges::count(ids, t) > 0; };
  for (std::int32_t i = 1; i <= params.max_tokens().value_or(config_.max_model_len); ++i) {
    const auto salt = SampleSalt(params.seed().value_or(0), params.has_penalties(), context);
    context.push_back(SampleAfter(context, salt, config_.vocab_size));
    const bool ends = (!params.ignore_eos() && is_in(config_.eos_token_ids, context.back())) ||
                      is_in(params.stop_token_ids(), context.back());
    if (ends && i > params.min_tokens()) break;
    if (static_cast<std::int32_t>(context.size()) == config_.max_model_len) break;
  }
  return {context.begin() + static_cast<std::ptrdiff_t>(asked.prompt.size()), context.end()};
}

std::uint64_t Serving::decision_hash() const {
  const auto plan = last_plan();
  return static_cast<std::uint64_t>(plan[step_plan::kHeaderHashHigh]) << 32 |
         static_cast<std::uint32_t>(plan[step_plan::kHeaderHashLow]);
}

}  // namespace runtime::testing
