#include "scheduler/waiting_queue.h"

#include <algorithm>

#include "common/check.h"

namespace runtime {
namespace {

// The lowest counter goes first, ties go by the order of the fronts.
bool GoesFirst(const Lane* a, const Lane* b) {
  if (a->counter != b->counter) return a->counter < b->counter;
  return GoesBefore(a->requests.front(), b->requests.front());
}

}  // namespace

void WaitingQueue::Insert(Request& request) {
  Lane& lane = LaneOf(request);
  lane.requests.insert(std::ranges::upper_bound(lane.requests, &request, GoesBefore), &request);
  ++size_;
  if (lane.requests.size() > 1) return;
  const bool is_new = request.state == RequestState::kWaiting;
  if (is_fair_ && is_new) lane.counter = std::max(lane.counter, floor());
  active_.push_back(&lane);
}

void WaitingQueue::Erase(Request& request) {
  Lane& lane = LaneOf(request);
  const auto found = std::ranges::lower_bound(lane.requests, &request, GoesBefore);
  Ensure(found != lane.requests.end() && *found == &request, "a waiting request is in its lane");
  lane.requests.erase(found);
  --size_;
  if (!lane.requests.empty()) return;
  std::erase(active_, &lane);
  last_left_ = &lane;
}

std::int64_t WaitingQueue::floor() const {
  if (!active_.empty()) return std::ranges::min(active_, {}, &Lane::counter)->counter;
  return last_left_ == nullptr ? 0 : last_left_->counter;
}

const Lane* WaitingQueue::Next() const {
  return active_.size() == 1 ? active_[0] : *std::ranges::min_element(active_, GoesFirst);
}

void WaitingQueue::Check() const {
  std::size_t count = 0;
  for (const Lane* lane : active_) {
    count += lane->requests.size();
    Hold(!lane->requests.empty(), "a lane that waits has requests");
    Hold(std::ranges::is_sorted(lane->requests, GoesBefore), "the waiting queue is in order");
  }
  Hold(count == size_, "waiting requests are counted");
}

}  // namespace runtime
