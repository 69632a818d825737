#include "bench/commands.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "bench/output.h"
#include "bench/to_python.h"
#include "common/nearest.h"
#include "runtime/error.h"
#include "runtime/version.h"

namespace runtime::bench {
namespace {

constexpr std::array kCommands{
    Command{"latency", "mean time of a decode step", nullptr},
    Command{"throughput", "tokens a second of a batch that is all there", nullptr},
    Command{"suite", "many scenarios on one engine", nullptr},
    Command{"serve", "load on an OpenAI-compatible server, open loop", nullptr},
    Command{"startup", "where the time goes until an engine is ready", nullptr},
    Command{"kernels", "hot kernels at a model's shapes", nullptr},
    Command{"allreduce", "sums over GPUs, ours and NCCL's", nullptr},
    Command{"simulation", "the simulator's prediction beside measured scenarios", nullptr},
    Command{"admission", "the modes of admission side by side, simulated", nullptr},
    Command{"fairness", "two tenants under fair sharing, simulated", nullptr},
    Command{"report", "one HTML page, with plots, of result files", nullptr},
    Command{"scheduler", "schedule and update, without a model", &RunScheduler},
    Command{"simulate", "serve made-up requests in virtual time", &RunSimulate},
    Command{"roofline", "the limits of a model's steps on a device", &RunRoofline},
    Command{"compare", "two result files, row by row", &RunCompare},
};

std::string Usage() {
  std::string text =
      "usage: runtime-bench SUBCOMMAND [flags]\n       runtime-bench --suite NAME "
      "[flags]\n\nwithout Python:\n";
  const auto add = [&text](const Command& command) {
    const std::string name(command.name);
    text += "  " + name + std::string(12 - name.size(), ' ') + std::string(command.summary) + "\n";
  };
  for (const Command& command : kCommands) {
    if (command.run != nullptr) add(command);
  }
  text += "\nwith the Python package:\n";
  for (const Command& command : kCommands) {
    if (command.run == nullptr) add(command);
  }
  return text +
         "\n`runtime-bench SUBCOMMAND --help` lists its flags; --version says which this is.\n";
}

[[noreturn]] void RunBenchInPython(const Words& words) {
  Words all{"bench"};
  all.insert(all.end(), words.begin(), words.end());
  RunInPython(all);
}

[[noreturn]] void FailUnknown(const std::string& name) {
  std::vector<std::string_view> known;
  for (const Command& one : kCommands) known.push_back(one.name);
  throw ConfigError("unknown subcommand '" + name + "'" + DidYouMean(name, known),
                    "`runtime-bench --help` lists all");
}

int Dispatch(const Words& words) {
  if (words.empty()) return std::fputs(Usage().c_str(), stderr), kExitUsage;
  const std::string& name = words.front();
  if (name == "-h" || name == "--help") return Print(Usage()), 0;
  if (name == "--version") return Print(std::string("runtime-bench ") + Version() + "\n"), 0;
  if (name.starts_with("--")) RunBenchInPython(words);  // --suite field --engine runtime
  const auto command = std::ranges::find(kCommands, name, &Command::name);
  if (command == kCommands.end()) FailUnknown(name);
  if (command->run == nullptr) RunBenchInPython(words);
  return command->run({words.begin() + 1, words.end()});
}

int Report(const std::string& message, const std::string& hint, int exit_code) {
  const std::string behind = hint.empty() ? "" : " (" + hint + ")";
  std::fputs(("runtime-bench: " + message + behind + "\n").c_str(), stderr);
  return exit_code;
}

int ExitCodeOf(const Error& error) {
  if (error.code() == "python_not_found") return kExitNoPython;
  if (error.code() == "model_not_found" || error.code() == "model_format_error") {
    return kExitBadModel;
  }
  return error.code() == "config_error" ? kExitUsage : kExitFailed;
}

}  // namespace

int Main(const Words& words) {
  try {
    const int exit_code = Dispatch(words);
    FlushOutput();
    return exit_code;
  } catch (const UsageError& error) {
    return Report(words.front() + ": " + error.what(),
                  "see runtime-bench " + words.front() + " --help", kExitUsage);
  } catch (const Error& error) {
    return Report(error.what(), error.hint(), ExitCodeOf(error));
  } catch (const std::exception& error) {
    return Report(error.what(), "", kExitFailed);
  }
}

}  // namespace runtime::bench
