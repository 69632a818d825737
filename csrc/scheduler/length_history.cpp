#include "scheduler/length_history.h"

#include <algorithm>

#include "common/check.h"

namespace runtime {

LengthHistory::LengthHistory(std::int32_t window, std::int32_t num_unknown)
    : window_(static_cast<std::size_t>(window)),
      recent_(static_cast<std::size_t>(num_unknown), kUnknown),
      sorted_(recent_) {
  Require(num_unknown >= 1 && num_unknown <= window, "a window has room for its unknown entries");
  recent_.reserve(window_);
  sorted_.reserve(window_);
}

void LengthHistory::Add(std::int32_t length) {
  if (next_ == recent_.size()) {
    recent_.push_back(length);
  } else {
    sorted_.erase(std::ranges::lower_bound(sorted_, recent_[next_]));
    recent_[next_] = length;
  }
  sorted_.insert(std::ranges::upper_bound(sorted_, length), length);
  next_ = (next_ + 1) % window_;
}

std::int32_t LengthHistory::Quantile(std::int32_t produced, std::uint32_t u,
                                     std::int32_t& rank) const {
  const auto size = static_cast<std::int32_t>(sorted_.size());
  std::int32_t first = std::min(rank, size);
  const std::int32_t* lengths = sorted_.data();
  while (first < size && lengths[first] <= produced) ++first;
  while (first > 0 && lengths[first - 1] > produced) --first;
  rank = first;
  if (first == size) return kUnknown;
  const auto num_above = static_cast<std::uint64_t>(size - first);
  return lengths[first + static_cast<std::int32_t>((u * num_above) >> 32)];
}

}  // namespace runtime
