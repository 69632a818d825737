#include "scheduler/policies.h"

namespace runtime {

Request* LastComeVictim::Choose(std::span<Request* const> running, std::int64_t step) const {
  for (std::size_t i = running.size(); i-- > 0;) {
    Request* request = running[i];
    if (request->planned_step != step && request->can_advance() &&
        request->num_preemptions < kMaxPreemptions) {
      return request;
    }
  }
  return nullptr;
}

bool AdmitWhenItFits::Admits(const AdmissionView& view) const {
  const std::int32_t kept_free = view.is_idle ? 0 : view.num_committed + view.watermark;
  return view.num_needed + kept_free <= view.num_available;
}

}  // namespace runtime
