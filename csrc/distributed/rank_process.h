// The process of one rank: how it is started, watched and ended.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "distributed/inherited_memory.h"

namespace runtime {

// Descriptors of a rank's process, besides standard error: where RankLink finds them.
inline constexpr int kRankSocketFd = 3;
inline constexpr int kRankMemoryFd = 4;

struct RankCommand {
  std::vector<std::string> argv;         // argv[0] is a path
  std::vector<std::string> environment;  // NAME=VALUE, all of it
};

// One started process. It leads a process group of its own, so that a terminal's Ctrl-C is rank
// 0's to handle and its children go with it. Not thread-safe.
class RankProcess {
 public:
  // Starts it with `socket` and `memory` as its descriptors 3 and 4 and no others but standard
  // error: standard input is empty and standard output goes to standard error. Throws ConfigError
  // if the program cannot be run, CapacityError at a limit of the system.
  RankProcess(const RankCommand& command, int socket, int memory);

  pid_t pid() const { return pid_; }

  // Readable once the process has ended.
  int pidfd() const { return pidfd_.get(); }

  bool ended() const { return ended_; }

  // "was killed by SIGKILL", "exited with code 1"; "" while it runs. Reaps it; `exited_well` tells
  // whether it ended by itself with code 0.
  std::string Reap();
  bool exited_well() const { return exited_well_; }

  // SIGKILL to the process and to what it started.
  void Kill();

 private:
  pid_t pid_ = -1;
  UniqueFd pidfd_;
  bool ended_ = false, exited_well_ = false;
};

// This process's environment with `overrides` (NAME=VALUE) put in.
std::vector<std::string> EnvironmentWith(const std::vector<std::string>& overrides);

}  // namespace runtime
