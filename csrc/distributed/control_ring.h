// What rank 0 tells all ranks of its host: a ring of bytes in shared memory that one process writes
// and every other rank reads in full, each with its own cursor, and a few words of each rank's own
// state. A message longer than the ring passes through it piece by piece.
//
// Nobody spins for long: a waiter looks a few times, fewer if that was in vain before, and sleeps
// on a futex.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

namespace runtime {

inline constexpr int kMaxRanks = 64;

// Written by the rank itself.
struct alignas(64) RankWords {
  std::atomic<std::uint64_t> consumed;   // bytes of the ring
  std::atomic<std::uint32_t> beats;      // grows while the process runs
  std::atomic<std::int32_t> begun_step;  // the last one that it read, -1: none
  std::atomic<std::int32_t> done_step;   // the last one that it ended, -1: none
  std::atomic<std::uint32_t> num_calls;  // of collectives, in all steps that it began
};

// The beginning of the shared memory; the ring's bytes follow on the next page.
struct RingWords {
  alignas(64) std::atomic<std::uint64_t> produced;  // bytes
  alignas(64) std::atomic<std::uint32_t> written;   // futex of the readers
  std::atomic<std::uint32_t> num_sleepers;
  alignas(64) std::atomic<std::uint32_t> read;  // futex of the writer
  std::atomic<std::uint32_t> writer_sleeps;
  alignas(64) std::atomic<std::uint32_t> closed;
  RankWords ranks[kMaxRanks];  // entry 0, the writer's, is unused
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

// Bytes of shared memory for a ring of `ring_bytes`.
std::size_t ControlRingBytes(std::size_t ring_bytes);

// Prepares zeroed memory for the two classes below.
void InitControlRing(std::span<std::byte> memory);

// Nobody waits any more: reads and writes that would, fail. Any process, any thread.
void CloseControlRing(RingWords& words);

class RingWriter {
 public:
  // The ranks that read are 1..num_ranks - 1. The memory must outlive the writer.
  RingWriter(std::span<std::byte> memory, int num_ranks);

  RingWords& words() const { return *words_; }

  // Whether so many bytes can be written without waiting.
  bool HasRoom(std::size_t num_bytes) const { return Room() >= num_bytes; }

  // Waits while the slowest reader leaves no room; false once the ring is closed or `timeout_s`
  // has passed: then only a part was written, and the ring is of no more use.
  bool Write(std::span<const std::byte> bytes, double timeout_s);

 private:
  std::size_t Room() const;
  bool WaitForRoom(double timeout_s);

  RingWords* words_;
  std::span<std::byte> ring_;
  int num_ranks_;
};

class RingReader {
 public:
  RingReader(std::span<std::byte> memory, int rank);

  RankWords& own() const { return words_->ranks[rank_]; }

  // Fills `bytes`; false once the ring is closed and they have not come.
  bool Read(std::span<std::byte> bytes);

 private:
  std::size_t Available() const;
  bool WaitForBytes();
  bool Spin();

  RingWords* words_;
  std::span<std::byte> ring_;
  int rank_;
  int max_spins_, spins_;
};

}  // namespace runtime
