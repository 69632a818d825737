#pragma once

#include <cmath>
#include <cstdint>

namespace runtime {

// What it takes to have a KV block back, in nanoseconds; integers, so that decisions are the same
// on every machine.
class KvCosts {
 public:
  // Seconds per recomputed token, and more of them per token of its context; seconds per block
  // copied between device and host.
  KvCosts(std::int32_t block_size, double token_s, double context_s, double transfer_s)
      : base_ns_(Nanoseconds(block_size * (token_s + 0.5 * block_size * context_s))),
        slope_ns_(Nanoseconds(context_s * block_size * block_size)),
        transfer_ns_(Nanoseconds(transfer_s)) {}

  // Of computing block `index` of a request again.
  std::int64_t Recompute(std::int32_t index) const { return base_ns_ + slope_ns_ * index; }
  // Of blocks [first, first + count).
  std::int64_t Recompute(std::int32_t first, std::int32_t count) const {
    const std::int64_t n = count;
    return n * Recompute(first) + slope_ns_ * (n * (n - 1) / 2);
  }
  std::int64_t Transfer(std::int64_t count) const { return count * transfer_ns_; }

 private:
  static std::int64_t Nanoseconds(double seconds) { return std::llround(seconds * 1e9); }

  std::int64_t base_ns_, slope_ns_, transfer_ns_;
};

}  // namespace runtime
