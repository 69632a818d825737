#include "runtime/launcher.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "distributed/inherited_memory.h"
#include "distributed/message.h"
#include "distributed/plan_stream.h"
#include "distributed/rank_process.h"
#include "distributed/rendezvous.h"
#include "runtime/error.h"

namespace runtime {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kTickMs = 200;  // how often heartbeats are looked at
constexpr auto kEchoDelay = std::chrono::milliseconds(300);
constexpr double kSendTimeoutS = 10.0, kEndTimeoutS = 0.2, kKillTimeoutS = 5.0;
constexpr const char* kFirstPhase = "while starting";

double SecondsSince(Clock::time_point then) {
  return std::chrono::duration<double>(Clock::now() - then).count();
}

Clock::time_point After(double seconds) {
  return Clock::now() +
         std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

// One rank above 0 as the watch thread knows it.
struct Rank {
  RankProcess process;
  UniqueFd socket;
  MessageBuffer buffer;
  std::string phase = kFirstPhase;  // "" once it runs steps
  std::uint32_t beats = 0;
  Clock::time_point heard = Clock::now();
  bool speaks = true;  // its end of the socket is open
  bool told_failure = false;
};

std::string PhaseText(const Rank& rank, const RankWords& words) {
  if (!rank.phase.empty()) return rank.phase;
  const std::int32_t begun = words.begun_step.load();
  if (begun < 0) return "before the first step";
  return (words.done_step.load() == begun ? "after step " : "in step ") + std::to_string(begun);
}

}  // namespace

class Launcher::Group {
 public:
  explicit Group(LaunchOptions options)
      : options_(Checked(std::move(options))),
        memory_(InheritedMemory::Create(ControlRingBytes(options_.ring_bytes))),
        plans_(MakeRing(memory_, options_.num_ranks)),
        rendezvous_(options_.num_ranks),
        wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (!wake_) ThrowSystemError("watching the ranks", errno);
    StartAll();
    watch_ = std::thread([this] { Watch(); });
  }

  ~Group() { Stop(0.0); }

  // False in a child that this process forked, which has a copy of the object, and no ranks.
  bool is_owner() const { return getpid() == owner_; }

  int num_ranks() const { return options_.num_ranks; }
  PlanWriterStream& plans() { return plans_; }

  void Send(int rank, Message message) {
    const int socket = ranks_.at(static_cast<std::size_t>(rank) - 1).socket.get();
    std::unique_lock lock(send_mutex_);
    const bool sent = SendAll(socket, message, kSendTimeoutS);
    lock.unlock();
    if (!sent) ThrowFailure("rank " + std::to_string(rank) + " takes no message");
  }

  std::vector<std::string> Exchange(std::string_view bytes) {
    auto parts = rendezvous_.Take(std::string(bytes), [this] { return failed_ || stopping_; });
    if (parts.empty()) ThrowFailure("the ranks were stopped");
    for (int rank = 1; rank < num_ranks(); ++rank) Send(rank, {MessageKind::kExchange, parts});
    return parts;
  }

  void Publish(std::span<const std::int32_t> plan, double timeout_s) {
    if (!failed_ && plans_.Write(plan, timeout_s)) return;
    ThrowFailure("a rank read no plan for " + std::to_string(timeout_s) + " s");
  }

  // Throws the group's failure, which may be about to be found; else `otherwise`.
  [[noreturn]] void ThrowFailure(const std::string& otherwise) {
    const auto found = WaitForFailure(1.0);
    if (!found) throw EngineDead(otherwise);
    throw EngineDead(found->what, found->hint);
  }

  std::optional<RankFailure> failure() const {
    const std::lock_guard lock(mutex_);
    return failure_;
  }

  std::optional<RankFailure> WaitForFailure(double timeout_s) const {
    std::unique_lock lock(mutex_);
    changed_.wait_until(lock, After(timeout_s), [this] { return failure_ || stopping_; });
    return failure_;
  }

  // The first failure stays. Wakes whoever waits and kills all ranks.
  void Fail(RankFailure failure) {
    {
      const std::lock_guard lock(mutex_);
      if (failure_ || stopping_) return;
      failure_ = std::move(failure);
      failed_ = true;
      for (Rank& rank : ranks_) rank.process.Kill();
    }
    CloseControlRing(plans_.ring().words());
    changed_.notify_all();
    rendezvous_.Wake();
  }

  std::vector<RankState> States() const {
    const std::lock_guard lock(mutex_);
    std::vector<RankState> states;
    for (std::size_t i = 0; i < ranks_.size(); ++i) {
      const Rank& rank = ranks_[i];
      const RankWords& words = WordsOf(i);
      states.push_back({static_cast<int>(i) + 1, rank.process.pid(), PhaseText(rank, words),
                        words.begun_step.load(), words.done_step.load(), SecondsSince(rank.heard),
                        words.num_calls.load()});
    }
    return states;
  }

  void Stop(double grace_s) {
    if (!is_owner()) return;
    const std::lock_guard only_one(stop_mutex_);
    if (!watch_.joinable()) return;
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    rendezvous_.Wake();
    if (!failed_) plans_.WriteEnd(kEndTimeoutS);
    CloseControlRing(plans_.ring().words());
    WaitForEnds(failed_ ? 0.0 : grace_s);
    KillAll();
    WaitForEnds(kKillTimeoutS);
    done_ = true;
    Interrupt();
    watch_.join();
  }

 private:
  static LaunchOptions Checked(LaunchOptions options) {
    if (options.num_ranks < 2 || options.num_ranks > kMaxRanks) {
      throw ConfigError("num_ranks=" + std::to_string(options.num_ranks) +
                        ": must be between 2 and " + std::to_string(kMaxRanks));
    }
    if (options.argv.empty()) throw ConfigError("argv names the program of a rank: it is empty");
    return options;
  }

  static PlanWriterStream MakeRing(InheritedMemory& memory, int num_ranks) {
    const std::span<std::byte> bytes(memory.data(), memory.num_bytes());
    InitControlRing(bytes);
    return PlanWriterStream(RingWriter(bytes, num_ranks));
  }

  const RankWords& WordsOf(std::size_t index) const {
    return const_cast<PlanWriterStream&>(plans_).ring().words().ranks[index + 1];
  }

  void StartAll() {
    const RankCommand command{options_.argv, EnvironmentWith(options_.environment)};
    try {
      for (int rank = 1; rank < num_ranks(); ++rank) StartOne(command, rank);
    } catch (...) {
      KillAll();
      for (Rank& rank : ranks_) {
        pollfd end{rank.process.pidfd(), POLLIN, 0};
        poll(&end, 1, static_cast<int>(kKillTimeoutS * 1000));
        rank.process.Reap();
      }
      throw;
    }
  }

  void StartOne(const RankCommand& command, int rank) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
      ThrowSystemError("a socket pair for rank " + std::to_string(rank), errno);
    }
    UniqueFd own(ends[0]);
    const UniqueFd theirs(ends[1]);
    RankProcess process(command, theirs.get(), memory_.fd());
    ranks_.push_back({std::move(process), std::move(own), {}});
    Send(rank, {MessageKind::kHello,
                {std::to_string(rank), std::to_string(num_ranks()), std::to_string(getpid())}});
  }

  void KillAll() {
    const std::lock_guard lock(mutex_);
    for (Rank& rank : ranks_) rank.process.Kill();
  }

  void WaitForEnds(double timeout_s) {
    std::unique_lock lock(mutex_);
    changed_.wait_until(lock, After(timeout_s), [this] {
      return std::all_of(ranks_.begin(), ranks_.end(),
                         [](const Rank& rank) { return rank.process.ended(); });
    });
  }

  void Interrupt() {
    const std::uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = write(wake_.get(), &one, sizeof(one));
  }

  // ---- the watch thread -----------------------------------------------------------------

  void Watch() {
    while (!done_) {
      Poll();
      for (std::size_t i = 0; i < ranks_.size(); ++i) {
        Hear(i);
        LookAfter(i);
        LookAtBeats(i);
      }
      if (echo_ && Clock::now() > echo_until_) Fail(std::move(*std::exchange(echo_, {})));
    }
  }

  void Poll() {
    std::vector<pollfd> files{{wake_.get(), POLLIN, 0}};
    for (const Rank& rank : ranks_) {
      if (rank.speaks) files.push_back({rank.socket.get(), POLLIN, 0});
      if (!rank.process.ended()) files.push_back({rank.process.pidfd(), POLLIN, 0});
    }
    poll(files.data(), files.size(), echo_ ? kTickMs / 10 : kTickMs);
  }

  // Takes what the rank said.
  void Hear(std::size_t index) {
    Rank& rank = ranks_[index];
    if (!rank.speaks) return;
    const Received received = ReceiveInto(rank.socket.get(), rank.buffer);
    try {
      while (auto message = rank.buffer.Next()) Take(index, std::move(*message));
    } catch (const Error& error) {
      Fail({static_cast<int>(index) + 1, Name(index) + ": " + error.what(), "", "", "", ""});
    }
    rank.speaks = received != Received::kEnd;
  }

  void Take(std::size_t index, Message message) {
    auto& fields = message.fields;
    if (message.kind == MessageKind::kPhase && fields.size() == 1) {
      const std::lock_guard lock(mutex_);
      ranks_[index].phase = std::move(fields[0]);
    } else if (message.kind == MessageKind::kExchange && fields.size() == 1) {
      rendezvous_.Add(static_cast<int>(index) + 1, std::move(fields[0]));
    } else if (message.kind == MessageKind::kFailed && fields.size() == 4) {
      TakeFailure(index, fields);
    }
  }

  void TakeFailure(std::size_t index, std::vector<std::string>& fields) {
    const std::string phase = Phase(index);
    ranks_[index].told_failure = true;
    RankFailure failure{static_cast<int>(index) + 1,
                        "rank " + std::to_string(index + 1) + " failed " + phase + ": " +
                            (fields[0].empty() ? "" : fields[0] + ": ") + fields[1],
                        fields[0],
                        fields[1],
                        fields[2],
                        phase};
    if (fields[3].empty()) {
      Fail(std::move(failure));
    } else if (!echo_) {
      echo_ = std::move(failure);
      echo_until_ = Clock::now() + kEchoDelay;
    }
  }

  // Whether the process has ended.
  void LookAfter(std::size_t index) {
    Rank& rank = ranks_[index];
    if (rank.process.ended()) return;
    std::string how;
    {
      const std::lock_guard lock(mutex_);
      how = rank.process.Reap();
    }
    if (how.empty()) return;
    changed_.notify_all();
    Hear(index);  // its last words come before its end
    if (rank.told_failure) return;
    const std::string phase = Phase(index);
    Fail({static_cast<int>(index) + 1, Name(index) + " " + how + " " + phase, "", "", "", phase});
  }

  void LookAtBeats(std::size_t index) {
    const std::uint32_t beats = WordsOf(index).beats.load();
    Rank& rank = ranks_[index];
    {
      const std::lock_guard lock(mutex_);
      if (beats != rank.beats) rank.heard = Clock::now();
      rank.beats = beats;
      if (rank.phase.empty() || SecondsSince(rank.heard) < options_.start_silence_s) return;
    }
    const std::string phase = Phase(index);
    Fail({static_cast<int>(index) + 1, Name(index) + " does not respond " + phase, "", "",
          "is the process stopped?", phase});
  }

  std::string Name(std::size_t index) const {
    return "rank " + std::to_string(index + 1) + " (process " +
           std::to_string(ranks_[index].process.pid()) + ")";
  }

  std::string Phase(std::size_t index) const {
    const std::lock_guard lock(mutex_);
    return PhaseText(ranks_[index], WordsOf(index));
  }

  const LaunchOptions options_;
  const pid_t owner_ = getpid();
  InheritedMemory memory_;
  PlanWriterStream plans_;
  Rendezvous rendezvous_;
  UniqueFd wake_;
  // The list itself never changes once the watch thread runs. Processes, phases and times are
  // guarded by mutex_; the watch thread alone reads from sockets.
  std::vector<Rank> ranks_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::optional<RankFailure> failure_;
  std::atomic<bool> failed_ = false, stopping_ = false, done_ = false;
  std::optional<RankFailure> echo_;  // told by a rank about another one, of whom nothing is known
  Clock::time_point echo_until_;
  std::mutex send_mutex_, stop_mutex_;
  std::thread watch_;
};

Launcher::Launcher(LaunchOptions options) : group_(std::make_unique<Group>(std::move(options))) {}
Launcher::~Launcher() {
  // threads that do not exist in a forked child wait for what would be destroyed
  if (!group_->is_owner()) static_cast<void>(group_.release());
}

int Launcher::num_ranks() const { return group_->num_ranks(); }

void Launcher::Send(int rank, std::string_view bytes) {
  group_->Send(rank, {MessageKind::kBytes, {std::string(bytes)}});
}

std::vector<std::string> Launcher::Exchange(std::string_view bytes) {
  return group_->Exchange(bytes);
}

bool Launcher::HasRoom(std::span<const std::int32_t> plan) const {
  return group_->plans().HasRoom(plan);
}

void Launcher::Publish(std::span<const std::int32_t> plan, double timeout_s) {
  group_->Publish(plan, timeout_s);
}

std::optional<RankFailure> Launcher::failure() const { return group_->failure(); }

std::optional<RankFailure> Launcher::WaitForFailure(double timeout_s) const {
  return group_->WaitForFailure(timeout_s);
}

void Launcher::Fail(RankFailure failure) { group_->Fail(std::move(failure)); }

std::vector<RankState> Launcher::ranks() const { return group_->States(); }

void Launcher::Stop(double grace_s) { group_->Stop(grace_s); }

}  // namespace runtime
