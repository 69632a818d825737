#pragma once

#include <string_view>

#include "bench/flags.h"

namespace runtime::bench {

// A subcommand; `run` takes the words behind its name and returns the exit code. Without one it is
// `runtime bench NAME` of the Python package: it needs a model.
struct Command {
  std::string_view name, summary;
  int (*run)(const Words& words);
};

int RunScheduler(const Words& words);
int RunRoofline(const Words& words);
int RunCompare(const Words& words);
int RunSimulate(const Words& words);

// The whole program: finds the subcommand, and turns errors into one sentence and an exit code.
int Main(const Words& words);

// Exit codes, those of `runtime`.
inline constexpr int kExitFound = 1;  // compare: slower than allowed; simulate: a replay differs
inline constexpr int kExitUsage = 2;
inline constexpr int kExitBadModel = 65;
inline constexpr int kExitNoPython = 69;
inline constexpr int kExitFailed = 70;

}  // namespace runtime::bench
