#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>

#include "runtime/event_log.h"

namespace runtime::testing {

// A path of its own, whose file is gone in the end.
class TemporaryFile {
 public:
  TemporaryFile()
      : path_(::testing::TempDir() + "event_log." + std::to_string(::getpid()) + "." +
              std::to_string(++count_)) {}
  ~TemporaryFile() { std::remove(path_.c_str()); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const std::string& path() const { return path_; }

  std::string Read() const {
    std::ifstream file(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void Write(const std::string& bytes) const {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << bytes;
  }

 private:
  static inline int count_ = 0;
  const std::string path_;
};

// The log replays whole, in so many steps.
inline void ExpectReplays(const std::string& path, std::int64_t num_steps) {
  const ReplayReport report = Replay(path);
  EXPECT_EQ(report.damage, "");
  EXPECT_FALSE(report.difference) << "in step " << report.difference->step;
  EXPECT_EQ(report.num_steps, num_steps);
}

}  // namespace runtime::testing
