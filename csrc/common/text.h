// Numbers inside error sentences.
#pragma once

#include <charconv>
#include <cmath>
#include <concepts>
#include <string>

#include "runtime/error.h"

namespace runtime {

inline std::string Text(std::integral auto value) { return std::to_string(value); }

inline std::string Text(double value) {
  char digits[32];
  return {digits, std::to_chars(digits, digits + sizeof(digits), value).ptr};
}

inline const std::string& Text(const std::string& value) { return value; }

// Throws ConfigError unless `holds`: "name=value: must be limit".
template <typename T>
void RequireSetting(bool holds, const char* name, const T& value, const std::string& limit) {
  if (!holds) throw ConfigError(std::string(name) + "=" + Text(value) + ": must be " + limit);
}

}  // namespace runtime
