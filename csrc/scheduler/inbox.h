#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "scheduler/request.h"

namespace runtime {

struct InboxEvent {
  enum class Kind : std::uint8_t { kSubmit, kAbort, kStop, kResetPrefixCache };
  Kind kind;
  RequestId id = 0;
  std::int32_t num_kept = 0;
  std::unique_ptr<Request> request;
};

// Events from any thread on their way to the scheduler's thread, in one order. It also knows which
// request ids are alive, so that an answer needs no visit to the scheduler. Thread-safe.
class Inbox {
 public:
  explicit Inbox(std::int32_t max_queued) : max_queued_(max_queued) {}

  // Throws InvalidRequest when the id is alive, CapacityError when the queue is full.
  void Submit(std::unique_ptr<Request> request);
  bool Abort(RequestId id);
  void Stop(RequestId id, std::int32_t num_kept);
  void ResetPrefixCache();

  // The scheduler's side. Drain swaps the events into `events`, which must be empty.
  void Drain(std::vector<InboxEvent>& events);
  void OnStarted();
  void OnFinished(RequestId id, bool was_queued);

  bool Wait(double timeout_s, bool has_work);
  void Wake();

 private:
  struct Life {
    bool ending = false;
  };

  void Push(InboxEvent event);

  const std::int32_t max_queued_;
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<InboxEvent> events_;
  std::atomic<bool> has_events_ = false;
  std::unordered_map<RequestId, Life> alive_;
  std::int32_t num_queued_ = 0;  // alive and never started
  bool woken_ = false;
};

}  // namespace runtime
