// The results of a step: tokens, ends, and blocks that become cached or free.
#include <algorithm>
#include <utility>

#include "common/check.h"
#include "scheduler/core.h"

namespace runtime {

const StepResult& Scheduler::Core::Update(std::int32_t step, std::span<const TokenId> token_ids) {
  InFlightStep& flight = steps_[static_cast<std::size_t>(oldest_)];
  Require(num_in_flight_ > 0, "update needs a step in flight");
  Require(step == flight.step, "steps are updated in the order of their plans");
  Require(token_ids.size() == flight.rows.size(),
          "update needs one token for each row of its plan");
  const Change change(is_lost_);
  DrainInbox();
  for (std::size_t i = 0; i < token_ids.size(); ++i) {
    RetireRow(flight.rows[i], static_cast<std::int32_t>(i), token_ids[i]);
  }
  oldest_ = (oldest_ + 1) % 2;
  --num_in_flight_;
  if (num_in_flight_ == 0) masked_rows_.clear();
  events_.started.assign(flight.started.begin(), flight.started.end());
  if (recorder_) recorder_->OnUpdate();
  return TakeEvents();
}

void Scheduler::Core::RetireRow(const InFlightRow& row, std::int32_t index, TokenId token) {
  Request& request = *row.request;
  Ensure(row.epoch == request.epoch, "a request changes its row only when no step holds it");
  --request.num_in_flight;
  if (request.state != RequestState::kFinished) {
    request.num_retired += row.num_scheduled;
    if ((row.flags & step_plan::kRowSample) != 0) {
      TakeToken(request, index, token);
    } else {
      kv_.Publish(request.kv, request.tokens, request.num_retired);
      if (request.is_scoring()) TakeScores(request, index);
    }
  }
  Settle(request);
}

void Scheduler::Core::TakeToken(Request& request, std::int32_t index, TokenId token) {
  --request.num_unknown;
  if (token < 0 || token >= config_.vocab_size) {
    if (recorder_) recorder_->OnEnd(index, /*is_error=*/true);
    Finish(request, FinishReason::kError, -1, index, -1);
    return;
  }
  request.tokens.push_back(token);
  if (recorder_) recorder_->OnToken(request);
  ++totals_.num_output_tokens;
  waiting_.ChargeOutput(*request.tenant);
  kv_.Publish(request.kv, request.tokens, request.num_retired);
  const bool may_stop = request.num_outputs() > request.params.min_tokens();
  const auto& stop_ids = request.params.stop_token_ids();
  const bool is_eos =
      !request.params.ignore_eos() &&
      std::ranges::find(config_.eos_token_ids, token) != config_.eos_token_ids.end();
  const bool is_stop = !is_eos && std::ranges::binary_search(stop_ids, token);
  if (may_stop && (is_eos || is_stop)) {
    if (recorder_) recorder_->OnEnd(index, /*is_error=*/false);
    Finish(request, FinishReason::kStop, token, index, is_stop ? token : -1);
  } else if (static_cast<std::int32_t>(request.tokens.size()) == request.max_len) {
    Finish(request, FinishReason::kLength, token, index, -1);
  } else {
    Emit(request, FinishReason::kNone, token, index, -1);
  }
}

void Scheduler::Core::TakeScores(Request& request, std::int32_t index) {
  if (request.num_retired == request.prompt_len) {
    Finish(request, FinishReason::kLength, -1, index, -1);
  } else {
    Emit(request, FinishReason::kNone, -1, index, -1);
  }
}

}  // namespace runtime
