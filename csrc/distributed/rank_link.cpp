#include "runtime/rank_link.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "distributed/inherited_memory.h"
#include "distributed/message.h"
#include "distributed/plan_stream.h"
#include "distributed/rank_process.h"
#include "runtime/error.h"

namespace runtime {
namespace {

constexpr int kBeatMs = 100;
constexpr int kHelloTimeoutMs = 10'000;
constexpr double kSendTimeoutS = 10.0;
constexpr int kOrphanExitCode = 70;

UniqueFd Adopt(int fd) {
  int type = 0;
  socklen_t size = sizeof(type);
  if (fd == kRankSocketFd && getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) != 0) {
    throw ConfigError("this process was not started by a launcher",
                      "tensor_parallel_size starts the ranks");
  }
  fcntl(fd, F_SETFD, FD_CLOEXEC);
  return UniqueFd(fd);
}

}  // namespace

class RankLink::End {
 public:
  End()
      : socket_(Adopt(kRankSocketFd)),
        memory_(InheritedMemory::Map(Adopt(kRankMemoryFd))),
        plans_(Introduce()) {
    watch_ = std::thread([this] { Watch(); });
  }

  ~End() {
    ends_ = true;
    watch_.join();
  }

  int rank() const { return rank_; }
  int num_ranks() const { return num_ranks_; }
  PlanReaderStream& plans() { return plans_; }

  void Send(MessageKind kind, std::vector<std::string> fields) {
    const std::lock_guard lock(send_mutex_);
    SendAll(socket_.get(), {kind, std::move(fields)}, kSendTimeoutS);  // if not, rank 0 is gone
  }

  Message Receive(MessageKind kind) {
    std::unique_lock lock(mutex_);
    for (;;) {
      for (auto it = inbox_.begin(); it != inbox_.end(); ++it) {
        if (it->kind != kind) continue;
        Message message = std::move(*it);
        inbox_.erase(it);
        return message;
      }
      arrived_.wait(lock);
    }
  }

 private:
  // Reads the hello, on which the rest is built.
  PlanReaderStream Introduce() {
    pollfd readable{socket_.get(), POLLIN, 0};
    std::optional<Message> hello;
    while (!(hello = buffer_.Next())) {
      if (poll(&readable, 1, kHelloTimeoutMs) <= 0 ||
          ReceiveInto(socket_.get(), buffer_) == Received::kEnd) {
        _exit(kOrphanExitCode);
      }
    }
    if (hello->kind != MessageKind::kHello || hello->fields.size() != 3) {
      throw EngineDead("rank 0 did not say hello");
    }
    rank_ = std::stoi(hello->fields[0]);
    num_ranks_ = std::stoi(hello->fields[1]);
    parent_ = std::stoi(hello->fields[2]);
    return {RingReader({memory_.data(), memory_.num_bytes()}, rank_), rank_};
  }

  void Watch() {
    RankWords& own = RingReader({memory_.data(), memory_.num_bytes()}, rank_).own();
    while (!ends_) {
      own.beats.fetch_add(1);
      TakeMessages();
      pollfd readable{socket_.get(), POLLIN, 0};
      if (poll(&readable, 1, kBeatMs) > 0 &&
          ReceiveInto(socket_.get(), buffer_) == Received::kEnd) {
        _exit(kOrphanExitCode);
      }
      // a process that rank 0 forked may hold the other end open
      if (getppid() != parent_) _exit(kOrphanExitCode);
    }
  }

  void TakeMessages() {
    const std::lock_guard lock(mutex_);
    while (auto message = buffer_.Next()) inbox_.push_back(std::move(*message));
    arrived_.notify_all();
  }

  UniqueFd socket_;
  InheritedMemory memory_;
  MessageBuffer buffer_;  // of the watch thread, once it runs
  int rank_ = 0, num_ranks_ = 0;
  pid_t parent_ = 0;
  PlanReaderStream plans_;
  std::mutex send_mutex_;
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<Message> inbox_;
  std::atomic<bool> ends_ = false;
  std::thread watch_;
};

RankLink::RankLink() : end_(std::make_unique<End>()) {}
RankLink::~RankLink() = default;

int RankLink::rank() const { return end_->rank(); }
int RankLink::num_ranks() const { return end_->num_ranks(); }

std::string RankLink::Receive() {
  return std::move(end_->Receive(MessageKind::kBytes).fields.at(0));
}

void RankLink::SetPhase(std::string_view phase) {
  end_->Send(MessageKind::kPhase, {std::string(phase)});
}

std::vector<std::string> RankLink::Exchange(std::string_view bytes) {
  end_->Send(MessageKind::kExchange, {std::string(bytes)});
  return std::move(end_->Receive(MessageKind::kExchange).fields);
}

void RankLink::Fail(std::string_view type, std::string_view cause, std::string_view hint,
                    bool is_echo) {
  end_->Send(MessageKind::kFailed,
             {std::string(type), std::string(cause), std::string(hint), is_echo ? "1" : ""});
}

std::optional<std::int32_t> RankLink::ReadPlan(std::span<std::int32_t> buffer) {
  return end_->plans().Read(buffer);
}

void RankLink::FinishStep(std::int32_t step) { end_->plans().FinishStep(step); }

void RankLink::ShowCalls(std::uint32_t num_calls) { end_->plans().ShowCalls(num_calls); }

}  // namespace runtime
