#include "common/nearest.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

namespace runtime {
namespace {

constexpr std::size_t kMaxShown = 3;

// Letters to insert, delete or replace (V. Levenshtein, 1966), one row of the table at a time.
std::size_t Distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, diagonal + 1});
    }
  }
  return row.back();
}

}  // namespace

std::string DidYouMean(std::string_view name, std::span<const std::string_view> known) {
  std::vector<std::pair<std::size_t, std::string_view>> near;
  for (const std::string_view other : known) {
    const std::size_t longest = std::max({name.size(), other.size(), std::size_t{1}});
    if (longest > 64) continue;  // nobody's slip
    const std::size_t distance = Distance(name, other);
    if (2 * distance <= longest) near.emplace_back(distance, other);
  }
  std::ranges::stable_sort(near, {}, &std::pair<std::size_t, std::string_view>::first);
  std::string text;
  for (std::size_t i = 0; i < std::min(near.size(), kMaxShown); ++i) {
    text += (i == 0 ? "; did you mean '" : " or '") + std::string(near[i].second) + "'";
  }
  return text.empty() ? text : text + "?";
}

}  // namespace runtime
