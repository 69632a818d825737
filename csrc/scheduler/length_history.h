#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace runtime {

// The lengths of the last outputs that finished, as a distribution.
//
// The window starts with `num_unknown` entries that are longer than anything; the first lengths
// that come take their places. So trust in a history grows with it: of those that started together
// the short ones finish first.
class LengthHistory {
 public:
  static constexpr std::int32_t kUnknown = std::numeric_limits<std::int32_t>::max();

  // REQUIRES: 1 <= num_unknown <= window.
  LengthHistory(std::int32_t window, std::int32_t num_unknown);

  // Takes no memory after the constructor.
  void Add(std::int32_t length);

  bool is_known() const { return sorted_.back() != kUnknown; }

  // The quantile u / 2^32 of the lengths above `produced`; kUnknown where none is. `rank` is where
  // the search starts and then where it ended: tokens come one by one, so the caller's last rank is
  // the next one or nearly so.
  std::int32_t Quantile(std::int32_t produced, std::uint32_t u, std::int32_t& rank) const;

 private:
  const std::size_t window_;
  std::vector<std::int32_t> recent_;  // a ring
  std::vector<std::int32_t> sorted_;  // the same entries
  std::size_t next_ = 0;              // of `recent_`: the oldest, or the first free one
};

}  // namespace runtime
