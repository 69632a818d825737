#include "distributed/shm_group.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <string_view>
#include <thread>
#include <utility>

#include "common/check.h"
#include "common/futex.h"
#include "common/text.h"
#include "runtime/error.h"

namespace runtime {
namespace {

constexpr std::chrono::milliseconds kSleep{20};      // the longest between two looks at the peers
constexpr std::chrono::milliseconds kRendezvous{2};  // between two looks for rank 0's memory
constexpr std::size_t kCauseBytes = 512;
constexpr std::size_t kPage = 4096;

std::size_t RoundUp(std::size_t value, std::size_t unit) {
  return (value + unit - 1) / unit * unit;
}

// A short wait is cheaper than a sleep, where every rank has a core of its own.
int NumSpins(int size) { return NumUsableCores() <= size ? 64 : 2000; }

}  // namespace

std::string ShmCall::Text() const {
  constexpr const char* kNames[] = {"barrier",        "all_reduce", "all_gather",
                                    "reduce_scatter", "broadcast",  "exchange"};
  std::string text = kNames[static_cast<int>(kind)];
  if (kind == Kind::kBarrier) return text;
  if (kind == Kind::kExchange) return text + " of " + runtime::Text(count) + " bytes";
  text += " of " + runtime::Text(count) + " " + Name(type);
  return kind == Kind::kBroadcast ? text + " from rank " + runtime::Text(root) : text;
}

// A cache line and more for each rank: one writes it, all read it.
struct alignas(64) ShmGroup::Rank {
  std::atomic<std::uint32_t> arrivals;  // points that it has come to
  std::atomic<std::uint32_t> sleepers;  // ranks that sleep on `arrivals`
  std::atomic<std::int32_t> pid;        // 0 until it joins
  std::atomic<std::uint32_t> has_left;
  ShmCall calls[2];  // its last two, by number; written before the first point of the call
};

struct ShmGroup::Header {
  enum Failure : std::uint32_t { kNone, kBeingWritten, kFailed };

  std::int32_t size;
  std::uint64_t piece_bytes;
  std::atomic<std::uint32_t> failure;
  char cause[kCauseBytes];  // of the first failure, valid from kFailed on
  Rank ranks[kMaxRanks];
};

std::size_t ShmGroup::MemoryBytes(const CommunicatorOptions& options) {
  return RoundUp(sizeof(Header), kPage) +
         2 * static_cast<std::size_t>(options.size) * RoundUp(options.piece_bytes, kPage);
}

void ShmGroup::Format(SharedMemory& memory, const CommunicatorOptions& options) {
  auto& header = *reinterpret_cast<Header*>(memory.data());
  header.size = options.size;
  header.piece_bytes = options.piece_bytes;
}

std::shared_ptr<SharedMemory> ShmGroup::Rendezvous(const CommunicatorOptions& options) {
  const std::string name = options.unique_id.substr(std::string_view("shm:").size());
  if (options.rank == 0) {
    SharedMemory::RemoveStale(kNamePrefix);
    const std::string what = "a group of " + Text(options.size) + " ranks";
    auto memory =
        std::make_shared<SharedMemory>(SharedMemory::Create(name, MemoryBytes(options), what));
    Format(*memory, options);
    memory->Publish();
    return memory;
  }
  const auto deadline = Clock::now() + std::chrono::duration<double>(options.timeout_s);
  while (Clock::now() < deadline) {
    if (auto memory = SharedMemory::Open(name)) {
      return std::make_shared<SharedMemory>(std::move(*memory));
    }
    std::this_thread::sleep_for(kRendezvous);
  }
  throw CommunicatorError("rank " + Text(options.rank) + " has waited " + Text(options.timeout_s) +
                          " s for rank 0 to open the group");
}

ShmGroup::ShmGroup(const CommunicatorOptions& options) : ShmGroup(Rendezvous(options), options) {}

ShmGroup::ShmGroup(std::shared_ptr<SharedMemory> memory, const CommunicatorOptions& options)
    : memory_(std::move(memory)),
      header_(*reinterpret_cast<Header*>(memory_->data())),
      rank_(options.rank),
      size_(options.size),
      piece_bytes_(options.piece_bytes),
      timeout_(options.timeout_s),
      num_spins_(NumSpins(options.size)),
      pidfds_(static_cast<std::size_t>(options.size)) {
  CheckGeometry(options);
  header_.ranks[rank_].pid.store(getpid(), std::memory_order_release);
  Begin({});
  Meet();
  memory_->Unlink();
}

void ShmGroup::CheckGeometry(const CommunicatorOptions& options) const {
  if (header_.size == options.size && header_.piece_bytes == options.piece_bytes) return;
  throw ConfigError("rank " + Text(rank_) + " was told " + Text(options.size) + " ranks and " +
                    Text(options.piece_bytes) + " bytes a piece, rank 0 " + Text(header_.size) +
                    " and " + Text(header_.piece_bytes) + ": all ranks need the same");
}

ShmGroup::~ShmGroup() {
  Rank& own = header_.ranks[rank_];
  own.has_left.store(1, std::memory_order_release);
  FutexWakeAll(own.arrivals);
}

std::byte* ShmGroup::buffer(int rank) const {
  const std::size_t index = 2 * static_cast<std::size_t>(rank) + num_pieces_ % 2;
  return memory_->data() + RoundUp(sizeof(Header), kPage) + index * RoundUp(piece_bytes_, kPage);
}

void ShmGroup::Begin(const ShmCall& call) {
  call_ = call;
  compared_ = false;
  header_.ranks[rank_].calls[++num_calls_ % 2] = call;
}

void ShmGroup::Meet() {
  const std::uint32_t point = ++num_arrivals_;
  Arrive(point);
  const auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(timeout_);
  for (int i = 1; i < size_; ++i) WaitFor((rank_ + i) % size_, point, deadline);
  // A rank that gave up has arrived too.
  ThrowIfFailed();
  if (!compared_) CompareCalls();
}

void ShmGroup::Arrive(std::uint32_t point) {
  Rank& own = header_.ranks[rank_];
  // Sequentially consistent, as in WaitFor: either this sees the sleeper or the sleeper sees this.
  own.arrivals.store(point);
  if (own.sleepers.load() != 0) FutexWakeAll(own.arrivals);
}

bool ShmGroup::HasArrived(int rank, std::uint32_t point) const {
  // As a difference: the numbers go round.
  return static_cast<std::int32_t>(header_.ranks[rank].arrivals.load() - point) >= 0;
}

bool ShmGroup::HaveAllArrived(std::uint32_t point) const {
  for (int rank = 0; rank < size_; ++rank) {
    if (!HasArrived(rank, point)) return false;
  }
  return true;
}

void ShmGroup::WaitFor(int rank, std::uint32_t point, Clock::time_point deadline) {
  for (int i = 0; i < num_spins_; ++i) {
    if (HasArrived(rank, point)) return;
    CpuRelax();
  }
  Rank& awaited = header_.ranks[rank];
  while (!HasArrived(rank, point)) {
    awaited.sleepers.fetch_add(1);
    const std::uint32_t seen = awaited.arrivals.load();
    if (static_cast<std::int32_t>(seen - point) < 0) FutexWait(awaited.arrivals, seen, kSleep);
    awaited.sleepers.fetch_sub(1);
    if (HasArrived(rank, point)) return;
    CheckPeers(point);
    if (Clock::now() >= deadline) {
      Fail(MissingRanks(point) + " not arrived within " + Text(timeout_.count()) + " s");
    }
  }
}

void ShmGroup::CheckPeers(std::uint32_t point) {
  ThrowIfFailed();
  for (int rank = 0; rank < size_; ++rank) {
    const Rank& peer = header_.ranks[rank];
    const bool has_left = peer.has_left.load(std::memory_order_acquire) != 0;
    const bool is_dead = !has_left && IsDead(rank);
    // It may go once it is past the point, and then all have arrived; looked at last for that.
    if ((has_left || is_dead) && !HaveAllArrived(point)) {
      FailFor(rank, is_dead ? "died" : "left the group");
    }
  }
}

void ShmGroup::FailFor(int rank, const char* what, const char* relation) {
  const std::int32_t pid = header_.ranks[rank].pid.load(std::memory_order_acquire);
  Fail("rank " + Text(rank) + " (process " + Text(pid) + ") " + what, relation);
}

void ShmGroup::Poll() {
  ThrowIfFailed();
  if (Clock::now() - last_look_ < kSleep) return;
  last_look_ = Clock::now();
  for (int rank = 0; rank < size_; ++rank) {
    if (header_.ranks[rank].has_left.load(std::memory_order_acquire) == 0 && IsDead(rank)) {
      FailFor(rank, "died", "after");
    }
  }
}

bool ShmGroup::IsDead(int rank) {
  const std::int32_t pid = header_.ranks[rank].pid.load(std::memory_order_acquire);
  if (rank == rank_ || pid == 0) return false;
  UniqueFd& pidfd = pidfds_[static_cast<std::size_t>(rank)];
  if (!pidfd) pidfd = UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd) return errno == ESRCH;
  pollfd exited{pidfd.get(), POLLIN, 0};
  return poll(&exited, 1, 0) > 0;
}

void ShmGroup::CompareCalls() {
  compared_ = true;
  for (int rank = 0; rank < size_; ++rank) {
    const ShmCall& other = header_.ranks[rank].calls[num_calls_ % 2];
    if (other == call_) continue;
    Fail("rank " + Text(rank) + " calls " + other.Text() + " where rank " + Text(rank_) +
         " calls " + call_.Text());
  }
}

// "ranks 1, 3 have", by what has arrived so far.
std::string ShmGroup::MissingRanks(std::uint32_t point) const {
  std::string missing;
  int num_missing = 0;
  for (int rank = 0; rank < size_; ++rank) {
    if (HasArrived(rank, point)) continue;
    missing += (num_missing++ == 0 ? "" : ", ") + Text(rank);
  }
  return num_missing == 1 ? "rank " + missing + " has" : "ranks " + missing + " have";
}

std::string ShmGroup::CallText(const char* relation) const {
  if (num_calls_ == 1) return "as the group was opened";
  return relation + (" collective " + Text(num_calls_ - 1)) + ", " + call_.Text();
}

void ShmGroup::Fail(const std::string& cause, const char* relation) {
  const std::string text = cause + ", " + CallText(relation);
  Abort(text + ", as rank " + Text(rank_) + " saw");
  ThrowIfFailed();
  // The first failure's cause is being written by a rank that may be dead: this one's will do.
  throw CommunicatorError(text);
}

void ShmGroup::Abort(const std::string& cause) noexcept {
  std::uint32_t expected = Header::kNone;
  if (header_.failure.compare_exchange_strong(expected, Header::kBeingWritten)) {
    const std::size_t length = std::min(cause.size(), kCauseBytes - 1);
    std::memcpy(header_.cause, cause.data(), length);
    header_.cause[length] = '\0';
    header_.failure.store(Header::kFailed, std::memory_order_release);
  }
  for (int rank = 0; rank < size_; ++rank) FutexWakeAll(header_.ranks[rank].arrivals);
}

void ShmGroup::ThrowIfFailed() const {
  if (header_.failure.load(std::memory_order_acquire) == Header::kFailed) {
    throw CommunicatorError(header_.cause);
  }
}

}  // namespace runtime
