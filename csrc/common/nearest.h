#pragma once

#include <span>
#include <string>
#include <string_view>

namespace runtime {

// "; did you mean 'x'?" with the up to three of `known` that are nearest to `name`, or "".
std::string DidYouMean(std::string_view name, std::span<const std::string_view> known);

}  // namespace runtime
