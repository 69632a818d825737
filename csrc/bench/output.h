#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/json.h"

namespace runtime::bench {

// To standard output. Throws Error, code "io_error", when it cannot be written.
void Print(std::string_view text);
// What is still buffered; likewise.
void FlushOutput();

// One measurement, on one line of JSON.
void PrintRow(const Json::Object& row);
// The same, added to a .jsonl file. Throws ConfigError.
void AppendRow(const Json::Object& row, const std::string& path);

void RequireAppendable(const std::string& path);
// Replaces a file. Throws ConfigError.
void WriteFile(std::string_view text, const std::string& path);
// A file as a whole. Throws ConfigError when it cannot be read or has more than `max_bytes`.
std::string ReadFile(const std::string& path, std::size_t max_bytes = std::size_t{64} << 20);

// `value` with so many digits after the point, as a row holds it.
Json Rounded(double value, int num_digits);
// As printf does: Format("%.2f", value).
std::string Format(const char* format, double value);

// Columns under their names; the first is flush left, the others flush right.
class Table {
 public:
  using Cells = std::vector<std::string>;

  explicit Table(Cells names) : rows_{std::move(names)} {}
  void Add(Cells cells) { rows_.push_back(std::move(cells)); }
  std::string Text() const;

 private:
  std::vector<Cells> rows_;
};

// "device", "versions", "commit" and "date" of a measurement on this machine's CPU. The commit is
// $SOURCE_COMMIT or null: a program does not know the tree that it was built from.
Json::Object Environment();

// A line on the terminal about what takes long: only when standard error is one, not before two
// seconds have passed, a few times a second, and gone at the end.
class Progress {
 public:
  // total: of `done` in Update; 0: not known, and the seconds are shown.
  explicit Progress(std::string what, std::int64_t total = 0);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void Update(std::int64_t done = 0);

 private:
  using Clock = std::chrono::steady_clock;

  std::string what_;
  std::int64_t total_;
  bool is_shown_ = false;
  bool is_terminal_;
  Clock::time_point start_ = Clock::now();
  Clock::time_point next_ = start_ + std::chrono::seconds(2);
};

}  // namespace runtime::bench
