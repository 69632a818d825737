#include "distributed/rank_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "runtime/error.h"

extern char** environ;

namespace runtime {
namespace {

constexpr int kFirstForeignFd = 5;
constexpr int kAboveTargets = 10;  // where descriptors wait that become 3 and 4

std::vector<char*> Pointers(const std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (const std::string& string : strings) pointers.push_back(const_cast<char*>(string.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

UniqueFd Above(int fd) {
  UniqueFd file(fcntl(fd, F_DUPFD_CLOEXEC, kAboveTargets));
  // EINVAL: the limit lies below kAboveTargets
  if (!file) ThrowSystemError("a descriptor for a rank", errno == EINVAL ? EMFILE : errno);
  return file;
}

// posix_spawn's two lists, freed with their owner.
class SpawnOptions {
 public:
  SpawnOptions(int socket, int memory) {
    posix_spawn_file_actions_init(&actions_);
    posix_spawnattr_init(&attributes_);
    SetDescriptors(socket, memory);
    SetSignals();
  }
  SpawnOptions(const SpawnOptions&) = delete;
  SpawnOptions& operator=(const SpawnOptions&) = delete;
  ~SpawnOptions() {
    posix_spawn_file_actions_destroy(&actions_);
    posix_spawnattr_destroy(&attributes_);
  }

  const posix_spawn_file_actions_t* actions() const { return &actions_; }
  const posix_spawnattr_t* attributes() const { return &attributes_; }

 private:
  void SetDescriptors(int socket, int memory) {
    posix_spawn_file_actions_addopen(&actions_, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    if (fcntl(STDERR_FILENO, F_GETFD) < 0) {
      posix_spawn_file_actions_addopen(&actions_, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    }
    posix_spawn_file_actions_adddup2(&actions_, STDERR_FILENO, STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions_, socket, kRankSocketFd);
    posix_spawn_file_actions_adddup2(&actions_, memory, kRankMemoryFd);
#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 34)
    posix_spawn_file_actions_addclosefrom_np(&actions_, kFirstForeignFd);
#endif
  }

  void SetSignals() {
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setsigmask(&attributes_, &none);
    posix_spawnattr_setsigdefault(&attributes_, &all);
    posix_spawnattr_setpgroup(&attributes_, 0);
    posix_spawnattr_setflags(
        &attributes_, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
  }

  posix_spawn_file_actions_t actions_;
  posix_spawnattr_t attributes_;
};

std::string SignalName(int number) {
  switch (number) {
    case SIGABRT:
      return "SIGABRT";
    case SIGBUS:
      return "SIGBUS";
    case SIGFPE:
      return "SIGFPE";
    case SIGILL:
      return "SIGILL";
    case SIGKILL:
      return "SIGKILL";
    case SIGSEGV:
      return "SIGSEGV";
    case SIGTERM:
      return "SIGTERM";
    default:
      return "signal " + std::to_string(number);
  }
}

}  // namespace

RankProcess::RankProcess(const RankCommand& command, int socket, int memory) {
  const UniqueFd high_socket = Above(socket), high_memory = Above(memory);
  const SpawnOptions options(high_socket.get(), high_memory.get());
  const std::vector<char*> argv = Pointers(command.argv), env = Pointers(command.environment);
  const int error =
      posix_spawn(&pid_, argv[0], options.actions(), options.attributes(), argv.data(), env.data());
  if (error == EAGAIN || error == ENOMEM) ThrowSystemError("starting a rank's process", error);
  if (error != 0) {
    throw ConfigError("the program of a rank, " + command.argv[0] +
                      ", cannot be started: " + std::generic_category().message(error));
  }
  pidfd_ = UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, pid_, 0)));
  if (!pidfd_) {
    const int reason = errno;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    ThrowSystemError("watching a rank's process (pidfd_open, Linux 5.3 or later)", reason);
  }
}

std::string RankProcess::Reap() {
  const auto id = static_cast<id_t>(pid_);
  siginfo_t info{};
  if (waitid(P_PID, id, &info, WEXITED | WNOHANG | WNOWAIT) != 0) {
    ended_ = true;
    return "ended, and another part of this process took its exit status";
  }
  if (info.si_pid == 0) return "";
  kill(-pid_, SIGKILL);  // what it started; the number is its own until it is reaped
  ended_ = true;
  waitid(P_PID, id, &info, WEXITED | WNOHANG);
  if (info.si_code == CLD_EXITED) {
    exited_well_ = info.si_status == 0;
    return "exited with code " + std::to_string(info.si_status);
  }
  return "was killed by " + SignalName(info.si_status);
}

void RankProcess::Kill() {
  if (!ended_) kill(-pid_, SIGKILL);
}

std::vector<std::string> EnvironmentWith(const std::vector<std::string>& overrides) {
  const auto name_of = [](const std::string& entry) { return entry.substr(0, entry.find('=')); };
  std::vector<std::string> result;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const bool replaced = std::any_of(overrides.begin(), overrides.end(), [&](const auto& other) {
      return name_of(other) == name_of(*entry);
    });
    if (!replaced) result.emplace_back(*entry);
  }
  result.insert(result.end(), overrides.begin(), overrides.end());
  return result;
}

}  // namespace runtime
