#include "distributed/rendezvous.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace runtime {

void Rendezvous::Add(int rank, std::string bytes) {
  {
    const std::lock_guard lock(mutex_);
    given_[static_cast<std::size_t>(rank)].push_back(std::move(bytes));
  }
  changed_.notify_all();
}

std::vector<std::string> Rendezvous::Take(std::string own, const std::function<bool()>& gives_up) {
  std::unique_lock lock(mutex_);
  given_[0].push_back(std::move(own));
  while (!IsComplete()) {
    if (gives_up()) return {};
    changed_.wait_for(lock, std::chrono::milliseconds(100));
  }
  std::vector<std::string> taken;
  for (auto& parts : given_) {
    taken.push_back(std::move(parts.front()));
    parts.pop_front();
  }
  return taken;
}

bool Rendezvous::IsComplete() const {
  return std::all_of(given_.begin(), given_.end(),
                     [](const auto& parts) { return !parts.empty(); });
}

}  // namespace runtime
