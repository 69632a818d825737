#include "bench/output.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <memory>

#include "runtime/error.h"
#include "runtime/version.h"

namespace runtime::bench {
namespace {

#ifdef __clang__
constexpr char kCompiler[] = __VERSION__;
#else
constexpr char kCompiler[] = "gcc " __VERSION__;
#endif

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

[[noreturn]] void FailFile(const char* what, const std::string& path) {
  throw ConfigError(std::string("cannot ") + what + " " + path + ": " + std::strerror(errno));
}

File Opened(const std::string& path, const char* mode, const char* what) {
  File file(std::fopen(path.c_str(), mode));
  if (file == nullptr) FailFile(what, path);
  return file;
}

void WriteAll(File file, std::string_view text, const std::string& path) {
  if (std::fwrite(text.data(), 1, text.size(), file.get()) != text.size() ||
      std::fflush(file.get()) != 0) {
    FailFile("write", path);
  }
}

std::string CpuName() {
  std::ifstream lines("/proc/cpuinfo");
  for (std::string line; std::getline(lines, line);) {
    const std::size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) {
      return line.substr(colon + 2);
    }
  }
  return "a CPU";
}

std::string Today() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[16];
  return {text, std::strftime(text, sizeof(text), "%Y-%m-%d", &utc)};
}

}  // namespace

void Print(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size()) return;
  throw Error("io_error", std::string("cannot write standard output: ") + std::strerror(errno));
}

void FlushOutput() {
  if (std::fflush(stdout) == 0) return;
  throw Error("io_error", std::string("cannot write standard output: ") + std::strerror(errno));
}

void PrintRow(const Json::Object& row) {
  Print(Json(row).Shown(std::string::npos) + "\n");
  FlushOutput();
}

void AppendRow(const Json::Object& row, const std::string& path) {
  WriteAll(Opened(path, "ab", "add to"), Json(row).Shown(std::string::npos) + "\n", path);
}

void RequireAppendable(const std::string& path) { Opened(path, "ab", "add to"); }

void WriteFile(std::string_view text, const std::string& path) {
  WriteAll(Opened(path, "wb", "write"), text, path);
}

std::string ReadFile(const std::string& path, std::size_t max_bytes) {
  const File file = Opened(path, "rb", "read");
  std::string text;
  char piece[1 << 16];
  while (const std::size_t size = std::fread(piece, 1, sizeof(piece), file.get())) {
    text.append(piece, size);
    if (text.size() > max_bytes) {
      throw ConfigError(path + " has more than " + std::to_string(max_bytes) +
                        " bytes: must have at most that many");
    }
  }
  if (std::ferror(file.get()) != 0) FailFile("read", path);  // a folder, for one
  return text;
}

Json Rounded(double value, int num_digits) {
  const double scale = std::pow(10.0, num_digits);
  return Json(std::round(value * scale) / scale);
}

std::string Format(const char* format, double value) {
  char text[64];
  const int size = std::snprintf(text, sizeof(text), format, value);
  return {text, std::min(static_cast<std::size_t>(size), sizeof(text) - 1)};
}

std::string Table::Text() const {
  std::vector<std::size_t> widths(rows_.front().size());
  for (const Cells& cells : rows_) {
    for (std::size_t i = 0; i < cells.size(); ++i) widths[i] = std::max(widths[i], cells[i].size());
  }
  std::string text;
  for (const Cells& cells : rows_) {
    for (std::size_t i = 0; i < cells.size(); ++i) {
      const std::string gap(widths[i] - cells[i].size(), ' ');
      text += i == 0 ? cells[i] + gap : "  " + gap + cells[i];
    }
    text.erase(text.find_last_not_of(' ') + 1);
    text += '\n';
  }
  return text;
}

Json::Object Environment() {
  const char* commit = std::getenv("SOURCE_COMMIT");
  const bool has_commit = commit != nullptr && *commit != '\0';
  const long num_cores = sysconf(_SC_NPROCESSORS_ONLN);
  return {{"device", Json(CpuName() + ", " + std::to_string(num_cores) + " cores")},
          {"versions", Json(Json::Object{{"runtime", Json(std::string_view(Version()))},
                                         {"compiler", Json(std::string_view(kCompiler))}})},
          {"commit", has_commit ? Json(std::string_view(commit)) : Json()},
          {"date", Json(Today())}};
}

Progress::Progress(std::string what, std::int64_t total)
    : what_(std::move(what)), total_(total), is_terminal_(isatty(STDERR_FILENO) != 0) {}

Progress::~Progress() {
  if (is_shown_) std::fputs("\r\033[K", stderr);
}

void Progress::Update(std::int64_t done) {
  const auto now = Clock::now();
  if (!is_terminal_ || now < next_) return;
  next_ = now + std::chrono::milliseconds(200);
  is_shown_ = true;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double share = total_ > 0 ? static_cast<double>(done) / static_cast<double>(total_) : 0.0;
  const std::string text = total_ > 0 ? Format("%.0f %%", 100 * share) : Format("%.0f s", seconds);
  std::fputs(("\r\033[K" + what_ + ": " + text).c_str(), stderr);
}

}  // namespace runtime::bench
