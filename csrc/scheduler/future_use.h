#pragma once

#include <cstdint>
#include <vector>

namespace runtime {

// The most blocks that a set of requests will ever hold at once, when each holds `has` now, takes
// one more in each unit of time and gives all back after `left` units: with requests sorted by
// `left`, descending, the peak is
//
//   max_k(left_k * k + sum_{i <= k} has_i)
//
// (R. Gong et al., "Past-Future Scheduler for LLM Serving under SLA Guarantees", ASPLOS 2025).
// `left` is a number of blocks, so it is sorted by counting: a request costs O(1), a peak one pass
// over the bins.
class FutureUse {
 public:
  static constexpr std::int32_t kMaxBins = 1 << 14;

  // No request has more than `max_left` left. Beyond kMaxBins bins are wider than one block, and
  // what is left is rounded up to them.
  explicit FutureUse(std::int32_t max_left);

  void Clear();
  // REQUIRES: 0 <= left <= max_left.
  void Add(std::int64_t has, std::int32_t left);
  std::int64_t Peak() const;

 private:
  struct Bin {
    std::int64_t count = 0;
    std::int64_t has = 0;
  };

  std::int32_t shift_ = 0;  // log2 of a bin's width
  std::vector<Bin> bins_;
  std::int32_t num_used_ = 0;  // leading bins that may hold something
};

}  // namespace runtime
