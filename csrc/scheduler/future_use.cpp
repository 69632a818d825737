#include "scheduler/future_use.h"

#include <algorithm>

namespace runtime {

FutureUse::FutureUse(std::int32_t max_left) {
  while ((max_left >> shift_) >= kMaxBins) ++shift_;
  bins_.resize(static_cast<std::size_t>(max_left >> shift_) + 2);
}

void FutureUse::Clear() {
  std::fill_n(bins_.begin(), num_used_, Bin{});
  num_used_ = 0;
}

void FutureUse::Add(std::int64_t has, std::int32_t left) {
  const std::int32_t index = (left + (1 << shift_) - 1) >> shift_;
  Bin& bin = bins_[static_cast<std::size_t>(index)];
  ++bin.count;
  bin.has += has;
  num_used_ = std::max(num_used_, index + 1);
}

std::int64_t FutureUse::Peak() const {
  std::int64_t peak = 0, count = 0, has = 0;
  for (std::int32_t index = num_used_; index-- > 0;) {
    const Bin& bin = bins_[static_cast<std::size_t>(index)];
    count += bin.count;
    has += bin.has;
    peak = std::max(peak, (std::int64_t{index} << shift_) * count + has);
  }
  return peak;
}

}  // namespace runtime
