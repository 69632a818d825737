#include "distributed/control_ring.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>

#include "common/futex.h"

namespace runtime {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kRingAt = (sizeof(RingWords) + kPage - 1) / kPage * kPage;
constexpr std::chrono::milliseconds kSleep{500};  // a wake-up that is lost costs no more than this
// looks of some ten nanoseconds each; where ranks share cores, spinning keeps the writer from them
constexpr int kMaxSpins = 1024, kMaxSpinsCrowded = 8, kManyCores = 8;

RingWords* Words(std::span<std::byte> memory) {
  return std::launder(reinterpret_cast<RingWords*>(memory.data()));
}

// Copies between a flat range and the ring from byte `at` of the stream on.
template <typename Copy>
void InPieces(std::span<std::byte> ring, std::uint64_t at, std::size_t num_bytes, Copy copy) {
  const std::size_t begin = at % ring.size();
  const std::size_t first = std::min(num_bytes, ring.size() - begin);
  copy(ring.data() + begin, 0, first);
  copy(ring.data(), first, num_bytes - first);
}

}  // namespace

std::size_t ControlRingBytes(std::size_t ring_bytes) { return kRingAt + ring_bytes; }

void InitControlRing(std::span<std::byte> memory) {
  auto* words = new (memory.data()) RingWords{};
  for (RankWords& rank : words->ranks) {
    rank.begun_step.store(-1, std::memory_order_relaxed);
    rank.done_step.store(-1, std::memory_order_relaxed);
  }
}

void CloseControlRing(RingWords& words) {
  words.closed.store(1);
  words.written.fetch_add(1);
  words.read.fetch_add(1);
  FutexWakeAll(words.written);
  FutexWakeAll(words.read);
}

// ---- writer ---------------------------------------------------------------------------

RingWriter::RingWriter(std::span<std::byte> memory, int num_ranks)
    : words_(Words(memory)), ring_(memory.subspan(kRingAt)), num_ranks_(num_ranks) {}

std::size_t RingWriter::Room() const {
  const std::uint64_t produced = words_->produced.load(std::memory_order_relaxed);
  std::uint64_t slowest = produced;
  for (int rank = 1; rank < num_ranks_; ++rank) {
    slowest = std::min(slowest, words_->ranks[rank].consumed.load(std::memory_order_acquire));
  }
  return ring_.size() - static_cast<std::size_t>(produced - slowest);
}

bool RingWriter::Write(std::span<const std::byte> bytes, double timeout_s) {
  while (!bytes.empty()) {
    if (words_->closed.load() != 0 || !WaitForRoom(timeout_s)) return false;
    const std::uint64_t produced = words_->produced.load(std::memory_order_relaxed);
    const auto piece = bytes.first(std::min(bytes.size(), Room()));
    InPieces(ring_, produced, piece.size(), [&](std::byte* at, std::size_t offset, std::size_t n) {
      std::memcpy(at, piece.data() + offset, n);
    });
    words_->produced.store(produced + piece.size());
    // After this, a reader either sees a new `written` and does not sleep, or was counted before.
    words_->written.fetch_add(1);
    if (words_->num_sleepers.load() != 0) FutexWakeAll(words_->written);
    bytes = bytes.subspan(piece.size());
  }
  return true;
}

bool RingWriter::WaitForRoom(double timeout_s) {
  if (Room() > 0) return true;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(timeout_s);
  bool has_room = false;
  words_->writer_sleeps.store(1);
  while (words_->closed.load() == 0 && std::chrono::steady_clock::now() < deadline) {
    const std::uint32_t seen = words_->read.load();
    if ((has_room = Room() > 0)) break;
    FutexWait(words_->read, seen, kSleep);
  }
  words_->writer_sleeps.store(0);
  return has_room;
}

// ---- reader ---------------------------------------------------------------------------

RingReader::RingReader(std::span<std::byte> memory, int rank)
    : words_(Words(memory)), ring_(memory.subspan(kRingAt)), rank_(rank) {
  const bool crowded = NumUsableCores() < kManyCores;
  spins_ = max_spins_ = crowded ? kMaxSpinsCrowded : kMaxSpins;
}

std::size_t RingReader::Available() const {
  return static_cast<std::size_t>(words_->produced.load() -
                                  own().consumed.load(std::memory_order_relaxed));
}

bool RingReader::Read(std::span<std::byte> bytes) {
  while (!bytes.empty()) {
    if (Available() == 0 && !WaitForBytes()) return false;
    const std::uint64_t consumed = own().consumed.load(std::memory_order_relaxed);
    const auto piece = bytes.first(std::min(bytes.size(), Available()));
    InPieces(ring_, consumed, piece.size(), [&](std::byte* at, std::size_t offset, std::size_t n) {
      std::memcpy(piece.data() + offset, at, n);
    });
    own().consumed.store(consumed + piece.size());
    words_->read.fetch_add(1);
    if (words_->writer_sleeps.load() != 0) FutexWakeAll(words_->read);
    bytes = bytes.subspan(piece.size());
  }
  return true;
}

bool RingReader::WaitForBytes() {
  if (Spin()) return true;
  for (;;) {
    words_->num_sleepers.fetch_add(1);
    const std::uint32_t seen = words_->written.load();
    const bool waits = Available() == 0 && words_->closed.load() == 0;
    if (waits) FutexWait(words_->written, seen, kSleep);
    words_->num_sleepers.fetch_sub(1);
    if (Available() > 0) return true;
    if (words_->closed.load() != 0) return false;
  }
}

bool RingReader::Spin() {
  for (int i = 0; i < spins_; ++i) {
    if (Available() > 0) {
      spins_ = std::min(2 * spins_, max_spins_);
      return true;
    }
    CpuRelax();
  }
  spins_ = std::max(spins_ / 2, 1);
  return false;
}

}  // namespace runtime
