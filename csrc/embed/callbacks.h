#pragma once

#include <functional>
#include <memory>
#include <thread>

#include "embed/mailbox.h"

namespace runtime::embed {

// The thread "runtime-calls", which gives news of a mailbox to the callbacks of its requests. Ends
// when the mailbox is closed; destruction waits for that.
class CallbackThread {
 public:
  using OnError = std::function<void(RequestId, std::exception_ptr)>;

  CallbackThread(std::shared_ptr<Mailbox> mailbox, OnError on_error);
  ~CallbackThread();
  CallbackThread(const CallbackThread&) = delete;
  CallbackThread& operator=(const CallbackThread&) = delete;

 private:
  void Run();
  void Deliver(const Mailbox::News& news);
  void Report(RequestId id, std::exception_ptr error);

  std::shared_ptr<Mailbox> mailbox_;
  OnError on_error_;
  std::thread thread_;
};

}  // namespace runtime::embed
