#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <string>

namespace runtime::testing {

// Runs `stream(seed)` for so many seeds. RUNTIME_TEST_STREAMS scales the count, in percent;
// RUNTIME_TEST_SEED runs one seed alone, as the message of a failure says.
template <typename Stream>
void ForEachSeed(std::uint64_t count, Stream stream) {
  const char* factor = std::getenv("RUNTIME_TEST_STREAMS");
  const char* only = std::getenv("RUNTIME_TEST_SEED");
  if (factor != nullptr) count = count * std::stoull(factor) / 100;
  const std::uint64_t first = only != nullptr ? std::stoull(only) : 0;
  if (only != nullptr) count = 1;
  for (std::uint64_t seed = first; seed < first + count; ++seed) {
    try {
      stream(seed);
    } catch (const std::exception& error) {
      ADD_FAILURE() << error.what();
    }
    if (::testing::Test::HasFailure()) {
      const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
      FAIL() << "seed " << seed << "; alone: RUNTIME_TEST_SEED=" << seed
             << " ctest --output-on-failure -R " << test->test_suite_name() << '.' << test->name();
    }
  }
}

}  // namespace runtime::testing
