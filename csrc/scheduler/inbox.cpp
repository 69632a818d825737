#include "scheduler/inbox.h"

#include <chrono>
#include <string>
#include <utility>

#include "runtime/error.h"

namespace runtime {

void Inbox::Submit(std::unique_ptr<Request> request) {
  const std::lock_guard lock(mutex_);
  const RequestId id = request->id;
  if (alive_.contains(id)) {
    throw InvalidRequest("request_id", std::to_string(id), "different from every live request's");
  }
  if (max_queued_ >= 0 && num_queued_ >= max_queued_) {
    throw CapacityError(
        std::to_string(num_queued_) +
            " requests wait already, max_queued_requests=" + std::to_string(max_queued_),
        "retry later, or raise max_queued_requests");
  }
  // room first: a failed push would leave an id alive that nobody submitted
  if (events_.size() == events_.capacity()) events_.reserve(2 * events_.size() + 16);
  alive_[id] = {};
  ++num_queued_;
  Push({InboxEvent::Kind::kSubmit, id, 0, std::move(request)});
}

bool Inbox::Abort(RequestId id) {
  const std::lock_guard lock(mutex_);
  const auto life = alive_.find(id);
  if (life == alive_.end() || life->second.ending) return false;
  Push({InboxEvent::Kind::kAbort, id, 0, nullptr});
  life->second.ending = true;
  return true;
}

void Inbox::Stop(RequestId id, std::int32_t num_kept) {
  const std::lock_guard lock(mutex_);
  const auto life = alive_.find(id);
  if (life == alive_.end() || life->second.ending) return;
  Push({InboxEvent::Kind::kStop, id, num_kept, nullptr});
  life->second.ending = true;
}

void Inbox::ResetPrefixCache() {
  const std::lock_guard lock(mutex_);
  Push({InboxEvent::Kind::kResetPrefixCache, 0, 0, nullptr});
}

void Inbox::Push(InboxEvent event) {
  events_.push_back(std::move(event));
  has_events_.store(true, std::memory_order_release);
  arrived_.notify_one();
}

void Inbox::Drain(std::vector<InboxEvent>& events) {
  if (!has_events_.load(std::memory_order_acquire)) return;
  const std::lock_guard lock(mutex_);
  std::swap(events, events_);
  has_events_.store(false, std::memory_order_release);
}

void Inbox::OnStarted() {
  const std::lock_guard lock(mutex_);
  --num_queued_;
}

void Inbox::OnFinished(RequestId id, bool was_queued) {
  const std::lock_guard lock(mutex_);
  alive_.erase(id);
  if (was_queued) --num_queued_;
}

bool Inbox::Wait(double timeout_s, bool has_work) {
  std::unique_lock lock(mutex_);
  const auto something = [&] { return has_work || !events_.empty(); };
  arrived_.wait_for(lock, std::chrono::duration<double>(timeout_s),
                    [&] { return woken_ || something(); });
  woken_ = false;
  return something();
}

void Inbox::Wake() {
  const std::lock_guard lock(mutex_);
  woken_ = true;
  arrived_.notify_all();
}

}  // namespace runtime
