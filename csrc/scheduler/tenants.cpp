#include "scheduler/tenants.h"

#include <algorithm>
#include <cmath>

namespace runtime {

Tenant& TenantTable::Enter(const std::string& name, std::int64_t floor, const Lane* kept) {
  auto found = tenants_.find(name);
  if (found == tenants_.end()) {
    if (tenants_.size() >= forget_at_) Forget(floor, kept);
    found = tenants_.emplace(name, Make(name)).first;
  }
  ++found->second->num_alive;
  return *found->second;
}

std::unique_ptr<Tenant> TenantTable::Make(const std::string& name) const {
  const auto given = config_.tenant_weights.find(name);
  const double weight = given == config_.tenant_weights.end() ? 1.0 : given->second;
  auto tenant = std::make_unique<Tenant>();
  tenant->prompt_cost = std::llround(config_.prompt_token_weight * kVirtualToken / weight);
  tenant->output_cost = std::llround(config_.output_token_weight * kVirtualToken / weight);
  return tenant;
}

void TenantTable::Forget(std::int64_t floor, const Lane* kept) {
  std::erase_if(tenants_, [&](const auto& entry) {
    const Tenant& tenant = *entry.second;
    return tenant.num_alive == 0 && tenant.lane.counter <= floor && &tenant.lane != kept;
  });
  forget_at_ = std::max<std::size_t>(1024, 2 * tenants_.size());
}

}  // namespace runtime
