#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "scheduler/request.h"
#include "scheduler/tenants.h"

namespace runtime {

// Requests that wait or were preempted. One sorted lane for all or, under fair sharing, one for
// each tenant: then the front is that of the tenant with the lowest virtual token counter.
//
// Fair sharing is the VTC of Y. Sheng et al., "Fairness in Serving Large Language Models", OSDI
// 2024: whoever starts to wait is lifted to the lowest counter among those that wait, so that
// nobody saves up turns while idle.
class WaitingQueue {
 public:
  explicit WaitingQueue(bool is_fair) : is_fair_(is_fair) {}

  bool empty() const { return active_.empty(); }
  std::size_t size() const { return size_; }

  void Insert(Request& request);
  void Erase(Request& request);
  // REQUIRES: !empty().
  Request& front() const { return *Next()->requests.front(); }

  // Counters of those that wait are at least this.
  std::int64_t floor() const;
  // The lane that emptied last: its counter is the floor while nobody waits.
  const Lane* last_left() const { return last_left_; }

  // Tokens computed for a tenant, or sampled for it.
  void ChargePrompt(Tenant& tenant, std::int32_t num_tokens) const {
    if (is_fair_) tenant.lane.counter += num_tokens * tenant.prompt_cost;
  }
  void ChargeOutput(Tenant& tenant) const {
    if (is_fair_) tenant.lane.counter += tenant.output_cost;
  }

  // Those with requests.
  std::span<Lane* const> lanes() const { return active_; }
  void Check() const;

 private:
  friend struct SchedulerPeer;

  Lane& LaneOf(Request& request) { return is_fair_ ? request.tenant->lane : all_; }
  const Lane* Next() const;

  const bool is_fair_;
  std::size_t size_ = 0;
  Lane all_;
  std::vector<Lane*> active_;
  const Lane* last_left_ = nullptr;
};

}  // namespace runtime
