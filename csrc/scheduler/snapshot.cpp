#include "scheduler/core.h"

namespace runtime {
namespace {

RequestPhase PhaseOf(const Request& request) {
  if (request.state == RequestState::kRunning) return RequestPhase::kRunning;
  return request.state == RequestState::kWaiting ? RequestPhase::kWaiting
                                                 : RequestPhase::kPreempted;
}

void Append(SchedulerSnapshot& snapshot, const Request& request) {
  snapshot.request_ids.push_back(request.id);
  snapshot.phases.push_back(PhaseOf(request));
  snapshot.prompt_lens.push_back(request.prompt_len);
  snapshot.output_lens.push_back(request.num_outputs());
  snapshot.num_computed.push_back(request.num_computed);
  const auto blocks = request.kv.table.blocks();
  snapshot.table_lens.push_back(static_cast<std::int32_t>(blocks.size()));
  snapshot.blocks.insert(snapshot.blocks.end(), blocks.begin(), blocks.end());
}

}  // namespace

SchedulerSnapshot Scheduler::Core::Snapshot() const {
  SchedulerSnapshot snapshot;
  for (const Request* request : running_) Append(snapshot, *request);
  for (const Lane* lane : waiting_.lanes()) {
    for (const Request* request : lane->requests) Append(snapshot, *request);
  }
  snapshot.num_owners.push_back(0);
  snapshot.is_cached.push_back(0);
  for (BlockId block = 1; block <= kv_.num_blocks(); ++block) {
    snapshot.num_owners.push_back(allocator_.num_owners(block));
    snapshot.is_cached.push_back(allocator_.is_cached(block) ? 1 : 0);
  }
  return snapshot;
}

}  // namespace runtime
