// The invariants of the scheduler and of its blocks.
#include "common/check.h"

#include <algorithm>

#include "scheduler/core.h"

namespace runtime {
void Scheduler::Core::Check() const {
  Hold(!is_lost_, "no call ended halfway");
  kv_.Check();
  CheckRequests();
  CheckOwners();
  CheckTransfers();
  CheckRows();
  CheckDrained();
}

void Scheduler::Core::CheckRequests() const {
  Hold(waiting_.size() + running_.size() == requests_.size(), "a request is in exactly one queue");
  Hold(running_.size() <= static_cast<std::size_t>(config_.max_num_seqs),
       "no more than max_num_seqs requests run");
  waiting_.Check();
  Hold(std::ranges::is_sorted(running_, GoesBefore), "the running queue is in order");
  for (const Lane* lane : waiting_.lanes()) {
    for (const Request* request : lane->requests) {
      Hold(request->state == RequestState::kWaiting || request->state == RequestState::kPreempted,
           "a request in the waiting queue waits", request->id);
      CheckRequest(*request);
    }
  }
  for (const Request* request : running_) {
    Hold(request->state == RequestState::kRunning, "a request in the running queue runs",
         request->id);
    CheckRequest(*request);
  }
  for (const auto& request : ended_) {
    Hold(request->state == RequestState::kFinished &&
             (request->num_in_flight > 0 || request->is_copying),
         "an ended request is kept only for steps in flight and copies", request->id);
  }
}

void Scheduler::Core::CheckRequest(const Request& request) const {
  const bool holds_row =
      request.state == RequestState::kRunning || request.num_in_flight > 0 || request.is_copying;
  const auto num_known = static_cast<std::int32_t>(request.tokens.size());
  const auto found = requests_.find(request.id);
  Hold(found != requests_.end() && found->second.get() == &request, "ids are unique", request.id);
  Hold((request.row >= 0) == holds_row, "a request has a row while it runs", request.id);
  Hold(request.kv.table.size() == kv_.BlocksFor(request.num_computed),
       "a table covers exactly the computed and planned tokens", request.id);
  Hold(request.num_unknown <= request.num_in_flight && request.num_in_flight <= num_in_flight_,
       "at most one token per step in flight is unknown", request.id);
  Hold(request.num_retired <= request.num_computed && request.num_retired <= num_known &&
           request.num_computed <= num_known + request.num_unknown &&
           request.num_tokens() <= request.max_len,
       "computed tokens are known, or in flight", request.id);
  auto blocks =
      std::vector<BlockId>(request.kv.table.blocks().begin(), request.kv.table.blocks().end());
  std::ranges::sort(blocks);
  Hold(std::ranges::adjacent_find(blocks) == blocks.end(), "no block stands in a table twice",
       request.id);
  // what is still to be written: every block from the first one that is not final
  for (std::int32_t i = request.num_retired / kv_.block_size(); i < request.kv.table.size(); ++i) {
    Hold(!allocator_.is_cached(request.kv.table[i]) &&
             allocator_.num_owners(request.kv.table[i]) == 1,
         "a block that is still written is not shared", request.id);
  }
}

void Scheduler::Core::CheckOwners() const {
  std::vector<std::int32_t> owners(static_cast<std::size_t>(kv_.num_blocks()) + 1);
  std::int32_t num_reserved = 0;
  const auto count = [&](const KvShare& share) {
    for (const BlockId block : share.table.blocks()) ++owners[static_cast<std::size_t>(block)];
    for (const auto& [index, twin] : share.chain.twins)
      ++owners[static_cast<std::size_t>(twin.id())];
    num_reserved += share.num_reserved;
  };
  for (const auto& [id, request] : requests_) count(request->kv);
  for (const auto& request : ended_) count(request->kv);
  for (const Pinned& pin : pins_) count(*pin.share);
  for (BlockId block = 1; block <= kv_.num_blocks(); ++block) {
    Hold(owners[static_cast<std::size_t>(block)] == allocator_.num_owners(block),
         "a block's count equals its owners");
  }
  Hold(num_reserved == kv_.num_reserved(), "reserved blocks are counted");
}

// A copy owns its blocks on the host, its request those on the device; what is copied in is neither
// shared nor findable, what is copied out is final.
void Scheduler::Core::CheckTransfers() const {
  std::size_t num_copying = 0;
  for (const auto& [id, request] : requests_) num_copying += request->is_copying;
  for (const auto& request : ended_) num_copying += request->is_copying;
  Hold(num_copying == transfers_.size(), "a request that waits for a copy has one");
  if (kv_.host() == nullptr) return;
  const BlockAllocator& host = kv_.host()->allocator();
  std::vector<std::int32_t> owners(static_cast<std::size_t>(host.num_blocks()) + 1);
  std::size_t num_blocks = 0;
  for (const Transfer& transfer : transfers_) {
    const bool is_load = transfer.copy.kind == KvCopy::Kind::kLoad;
    Hold(transfer.request->is_copying && transfer.request->num_in_flight == 0,
         "a request is copied while no step holds it", transfer.request->id);
    for (const BlockRef& block : transfer.copy.host) ++owners[static_cast<std::size_t>(block.id())];
    num_blocks += transfer.copy.blocks.size();
    for (const auto& [device, unused] : transfer.copy.blocks) {
      Hold(allocator_.num_owners(device) > 0 && !(is_load && allocator_.is_cached(device)),
           "a block is owned while it is copied", transfer.request->id);
    }
  }
  Hold(num_blocks == static_cast<std::size_t>(num_copying_), "copied blocks are counted");
  for (BlockId block = 1; block <= host.num_blocks(); ++block) {
    Hold(owners[static_cast<std::size_t>(block)] == host.num_owners(block),
         "a host block is owned by the copies that use it");
  }
}

void Scheduler::Core::CheckRows() const {
  std::vector<std::int32_t> holders(static_cast<std::size_t>(config_.max_num_seqs));
  std::int32_t num_releasing = 0;
  const auto hold = [&](const Request& request) {
    if (request.row >= 0) ++holders[static_cast<std::size_t>(request.row)];
    num_releasing += request.row >= 0 && request.state != RequestState::kRunning;
  };
  for (const auto& [id, request] : requests_) hold(*request);
  for (const auto& request : ended_) hold(*request);
  for (const std::int32_t row : free_rows_) ++holders[static_cast<std::size_t>(row)];
  Hold(std::ranges::all_of(holders, [](std::int32_t n) { return n == 1; }),
       "a row is free or belongs to one request");
  Hold(num_releasing == num_releasing_, "requests that release blocks later are counted");
}

void Scheduler::Core::CheckDrained() const {
  if (!requests_.empty() || !ended_.empty()) return;
  Hold(kv_.num_free() == kv_.num_blocks() || !pins_.empty(), "drained: every block is free");
  Hold(transfers_.empty(), "drained: no copy is under way");
  Hold(free_rows_.size() == static_cast<std::size_t>(config_.max_num_seqs),
       "drained: every row is free");
}

}  // namespace runtime
