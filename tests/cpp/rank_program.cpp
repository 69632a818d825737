// The process of a rank for test_launcher: argv[1] says how it behaves, argv[2] which rank does.
#include <dirent.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "runtime/launcher.h"
#include "runtime/rank_link.h"

namespace {

using namespace std::chrono_literals;

std::string OpenDescriptors() {
  std::string found;
  DIR* folder = opendir("/proc/self/fd");
  while (const dirent* entry = readdir(folder)) {
    const std::string name = entry->d_name;
    if (name[0] != '.' && std::stoi(name) != dirfd(folder)) found += name + " ";
  }
  closedir(folder);
  return found;
}

// Runs plans to the end; the sum of the words of each goes to rank 0 through an exchange.
int Serve(runtime::RankLink& link) {
  link.SetPhase("");
  std::vector<std::int32_t> buffer(1 << 16);
  while (const auto step = link.ReadPlan(buffer)) {
    const auto words = buffer.begin() + 24;
    link.Exchange(std::to_string(std::accumulate(words, words + 8, 0)));
    link.ShowCalls(static_cast<std::uint32_t>(10 * *step + link.rank()));
    link.FinishStep(*step);
  }
  return 0;
}

void Misbehave(const std::string& how, runtime::RankLink& link) {
  if (how == "quit") std::exit(3);
  if (how == "stop") raise(SIGSTOP);
  if (how == "fail" || how == "echo") {
    link.Fail("ValueError", "weights are wrong", "check them", how == "echo");
    std::exit(1);
  }
}

// A launcher of its own: prints the processes of its ranks, then of a child that has inherited its
// descriptors, and stays.
int Launch(const char* program) {
  runtime::LaunchOptions options;
  options.argv = {program, "serve"};
  options.num_ranks = 3;
  runtime::Launcher launcher(options);
  launcher.Exchange("");
  for (const runtime::RankState& state : launcher.ranks()) std::cout << state.pid << std::endl;
  const pid_t child = fork();
  if (child > 0) std::cout << child << std::endl;
  pause();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string how = argv[1];
  if (how == "launch") return Launch(argv[0]);
  if (how == "silent") std::this_thread::sleep_for(60s);
  runtime::RankLink link;
  if (argc > 2 && std::stoi(argv[2]) == link.rank()) Misbehave(how, link);
  if (how == "echo") {
    std::this_thread::sleep_for(100ms);
    raise(SIGKILL);
  }
  if (how == "descriptors") link.Exchange(OpenDescriptors());
  if (how == "environment") link.Exchange(std::getenv("RANK_TEST"));
  if (how == "receive") link.Exchange(link.Receive());
  if (how == "child") {
    const pid_t child = fork();
    if (child == 0) pause();
    link.Exchange(std::to_string(child));
  }
  link.Exchange(std::to_string(link.rank()));
  return Serve(link);
}
