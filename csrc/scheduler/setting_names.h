// Names of settings' values, as command lines and Python have them.
#pragma once

#include <array>
#include <string>
#include <string_view>

#include "runtime/error.h"
#include "runtime/scheduler_config.h"

namespace runtime {

// By the values of the enum.
inline constexpr std::array<std::string_view, 3> kPolicies{"fcfs", "priority", "fair"};
inline constexpr std::array<std::string_view, 4> kAdmissions{"none", "max_tokens", "past_future",
                                                             "oracle"};
inline constexpr std::array<std::string_view, 2> kEvictions{"lru", "cost"};
inline constexpr std::array<std::string_view, 3> kRouters{"round_robin", "least_work",
                                                          "prefix_aware"};

// The value that `name` stands for, by its place in `names`. Throws ConfigError.
template <typename Enum, std::size_t N>
Enum FromName(const char* setting, const std::string& name,
              const std::array<std::string_view, N>& names) {
  std::string all;
  for (std::size_t i = 0; i < N; ++i) {
    if (names[i] == name) return static_cast<Enum>(i);
    all += (i == 0 ? "" : ", ") + std::string(names[i]);
  }
  throw ConfigError(std::string(setting) + "='" + name + "': must be one of " + all);
}

}  // namespace runtime
