// Copies of blocks between device and host. A request that waits for one keeps its row and its
// blocks, so no block is used while it is copied.
#include <algorithm>
#include <iterator>
#include <utility>

#include "common/check.h"
#include "scheduler/core.h"

namespace runtime {

void Scheduler::Core::StartLoad(Request& request, KvCopy copy) {
  request.is_copying = true;
  request.planned_step = step_ + 1;
  const auto count = static_cast<std::int32_t>(copy.blocks.size());
  num_copying_ += count;
  totals_.num_loaded_blocks += count;
  transfers_.push_back({&request, std::move(copy)});
}

// Copies what the host lacks of a request that gives its blocks up. False: there is nothing to
// copy, computing it again is cheaper, or the blocks of one that ended are needed now.
bool Scheduler::Core::StartStore(Request& request) {
  const bool is_swap = request.state == RequestState::kPreempted;
  if (!is_swap && is_short_) return false;
  auto copy = kv_.Store(request.kv, num_copying_);
  if (!copy) return false;
  request.is_copying = true;
  const auto count = static_cast<std::int32_t>(copy->blocks.size());
  num_copying_ += count;
  totals_.num_stored_blocks += count;
  totals_.num_swaps += is_swap;
  transfers_.push_back({&request, std::move(*copy)});
  return true;
}

// Adds the copies that wait to the step's draft, as many as the plan holds. Whether there are any.
bool Scheduler::Core::DraftCopies() {
  for (Transfer& transfer : transfers_) {
    if (transfer.is_planned) continue;
    if (!writer_.HasRoomForCopies(draft_, transfer.copy.blocks.size())) break;
    transfer.is_planned = true;
    transfer.step = static_cast<std::int32_t>((step_ + 1) & 0x7fffffff);
    const bool is_store = transfer.copy.kind == KvCopy::Kind::kStore;
    for (const auto& [device, host] : transfer.copy.blocks) {
      draft_.copies.push_back(is_store ? PlannedCopy{step_plan::kCopyToHost, device, host}
                                       : PlannedCopy{step_plan::kCopyFromHost, host, device});
    }
  }
  return !draft_.copies.empty();
}

void Scheduler::Core::TransferDone(std::int32_t step) {
  const auto is_other = [&](const Transfer& transfer) {
    return !transfer.is_planned || transfer.step != step;
  };
  Require(!std::ranges::all_of(transfers_, is_other),
          "transfer_done needs a step whose copies are under way");
  const Change change(is_lost_);
  if (recorder_) recorder_->OnTransferDone(step);
  const auto done = std::ranges::stable_partition(transfers_, is_other);
  std::vector<Transfer> finished(std::move_iterator(done.begin()), std::move_iterator(done.end()));
  transfers_.erase(done.begin(), done.end());
  for (Transfer& transfer : finished) FinishTransfer(transfer);
  CheckIfAsked();
}

void Scheduler::Core::FinishTransfer(Transfer& transfer) {
  Request& request = *transfer.request;
  request.is_copying = false;
  num_copying_ -= static_cast<std::int32_t>(transfer.copy.blocks.size());
  if (transfer.copy.kind == KvCopy::Kind::kStore) {
    kv_.FinishStore(request.kv, transfer.copy);
    LetGo(request);
    return;
  }
  request.num_retired = request.num_computed;
  kv_.Publish(request.kv, request.tokens, request.num_retired);
  transfer.copy.ReleaseHost();
  Settle(request);
}

}  // namespace runtime
