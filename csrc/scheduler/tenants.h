#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>

#include "runtime/scheduler_config.h"
#include "scheduler/length_history.h"

namespace runtime {

struct Request;

// Requests that wait for the same turn, in order. Under fair sharing each tenant has its own.
struct Lane {
  std::deque<Request*> requests;
  // Virtual tokens that its tenant was served: prompt and output tokens, times their weights, over
  // the tenant's. Fixed point, see kVirtualToken.
  std::int64_t counter = 0;
};

// Who requests belong to, and what is known of it.
struct Tenant {
  Lane lane;
  std::int64_t prompt_cost = 0;            // added to the counter for each prompt token computed
  std::int64_t output_cost = 0;            // ... and for each token sampled
  std::int32_t num_alive = 0;              // requests that have not ended
  std::unique_ptr<LengthHistory> lengths;  // of its outputs; none before the first has finished
};

// Finds tenants by name. One without requests is forgotten, some time, if its counter would be
// lifted anyway on its return. References stay valid while a tenant has requests.
class TenantTable {
 public:
  static constexpr std::int64_t kVirtualToken = 1 << 12;

  explicit TenantTable(const SchedulerConfig& config) : config_(config) {}

  // A request of `name` arrives. Idle tenants below `floor` may be forgotten, but `kept`.
  Tenant& Enter(const std::string& name, std::int64_t floor, const Lane* kept);
  static void Leave(Tenant& tenant) { --tenant.num_alive; }

  std::size_t size() const { return tenants_.size(); }

 private:
  std::unique_ptr<Tenant> Make(const std::string& name) const;
  void Forget(std::int64_t floor, const Lane* kept);

  const SchedulerConfig& config_;
  std::unordered_map<std::string, std::unique_ptr<Tenant>> tenants_;
  std::size_t forget_at_ = 1024;
};

}  // namespace runtime
