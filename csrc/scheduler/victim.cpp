#include "scheduler/victim.h"

#include <limits>

namespace runtime {

bool VictimPolicy::MayChoose(const Request& request, std::int64_t step) {
  return request.planned_step != step && request.can_advance() &&
         request.num_preemptions < kMaxPreemptions;
}

Request* LastComeVictim::Choose(std::span<Request* const> running, const KvPool&,
                                std::int64_t step) const {
  for (std::size_t i = running.size(); i-- > 0;) {
    if (MayChoose(*running[i], step)) return running[i];
  }
  return nullptr;
}

Request* LeastRecomputeVictim::Choose(std::span<Request* const> running, const KvPool& kv,
                                      std::int64_t step) const {
  Request* chosen = nullptr;
  std::int32_t least = std::numeric_limits<std::int32_t>::max();
  for (std::size_t i = running.size(); i-- > 0;) {
    if (!MayChoose(*running[i], step)) continue;
    const KvShare& share = running[i]->kv;
    const std::int32_t cost = share.table.size() - kv.NumShared(share);
    if (cost >= least) continue;
    chosen = running[i];
    least = cost;
  }
  return chosen;
}

std::unique_ptr<VictimPolicy> MakeVictim(const SchedulerConfig& config) {
  if (config.admission == AdmissionMode::kNone) return std::make_unique<LastComeVictim>();
  return std::make_unique<LeastRecomputeVictim>();
}

}  // namespace runtime
