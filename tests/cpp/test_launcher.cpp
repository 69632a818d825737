#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <thread>

#include "plans.h"
#include "runtime/error.h"
#include "runtime/launcher.h"

namespace runtime {
namespace {

using namespace std::chrono_literals;

LaunchOptions Ranks(int num_ranks, std::vector<std::string> behaviour) {
  LaunchOptions options;
  options.argv = {RANK_PROGRAM};
  options.argv.insert(options.argv.end(), behaviour.begin(), behaviour.end());
  options.num_ranks = num_ranks;
  return options;
}

// Whether a process is there and no zombie.
bool Runs(std::int64_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(file, text);
  return !text.empty() && text[text.rfind(')') + 2] != 'Z';
}

bool AllEnd(const std::vector<std::int64_t>& pids) {
  for (int i = 0; i < 500; ++i) {
    bool any = false;
    for (const std::int64_t pid : pids) any |= Runs(pid);
    if (!any) return true;
    std::this_thread::sleep_for(10ms);
  }
  return false;
}

std::vector<std::int64_t> Pids(const Launcher& launcher) {
  std::vector<std::int64_t> pids;
  for (const RankState& state : launcher.ranks()) pids.push_back(state.pid);
  return pids;
}

std::string FailureOf(LaunchOptions options) {
  Launcher launcher(std::move(options));
  const auto pids = Pids(launcher);
  const auto failure = launcher.WaitForFailure(20.0);
  launcher.Stop(0.0);
  EXPECT_TRUE(AllEnd(pids));
  return failure ? failure->what : "none";
}

using Parts = std::vector<std::string>;

TEST(LauncherTest, EveryRankRunsEveryPlan) {
  Launcher launcher(Ranks(3, {"serve"}));
  const auto pids = Pids(launcher);
  EXPECT_EQ(launcher.Exchange("zero"), (Parts{"zero", "1", "2"}));
  Plans plans;
  for (int i = 1; i <= 50; ++i) {
    const auto plan = plans.Next(8, i);
    launcher.Publish(plan, 10.0);
    const std::string sum = std::to_string(8 * i);
    ASSERT_EQ(launcher.Exchange(""), (Parts{"", sum, sum}));
  }
  launcher.Stop(10.0);
  EXPECT_FALSE(launcher.failure());
  EXPECT_TRUE(AllEnd(pids));
}

TEST(LauncherTest, BytesReachTheRankThatTheyAreFor) {
  Launcher launcher(Ranks(3, {"receive"}));
  const std::string large(300'000, 'x');
  launcher.Send(2, large);
  launcher.Send(1, "one");
  EXPECT_EQ(launcher.Exchange(""), (Parts{"", "one", large}));
}

TEST(LauncherTest, ARankHasItsOwnDescriptorsOnly) {
  const int inheritable = open("/dev/null", O_RDONLY);
  Launcher launcher(Ranks(2, {"descriptors"}));
  EXPECT_EQ(launcher.Exchange(""), (Parts{"", "0 1 2 3 4 "}));
  close(inheritable);
}

TEST(LauncherTest, AVariableReplacesTheCallers) {
  setenv("RANK_TEST", "the caller's", 1);
  LaunchOptions options = Ranks(2, {"environment"});
  options.environment = {"RANK_TEST=a rank's"};
  Launcher launcher(options);
  EXPECT_EQ(launcher.Exchange(""), (Parts{"", "a rank's"}));
}

TEST(LauncherTest, RanksShowTheStepAndTheCallsThatTheyHaveMade) {
  Launcher launcher(Ranks(3, {"serve"}));
  launcher.Exchange("");
  EXPECT_EQ(launcher.ranks()[1].num_calls, 0u);
  Plans plans;
  launcher.Publish(plans.Next(8), 10.0);
  launcher.Exchange("");
  for (const int rank : {1, 2}) {
    while (launcher.ranks()[rank - 1].done_step != 1) std::this_thread::sleep_for(1ms);
    EXPECT_EQ(launcher.ranks()[rank - 1].num_calls, 10u + rank);
  }
}

TEST(LauncherTest, AKilledRankIsNamedWithItsStep) {
  Launcher launcher(Ranks(3, {"serve"}));
  const auto pids = Pids(launcher);
  launcher.Exchange("");
  Plans plans;
  launcher.Publish(plans.Next(8), 10.0);
  launcher.Exchange("");
  while (launcher.ranks()[1].done_step != 1) std::this_thread::sleep_for(1ms);
  kill(static_cast<pid_t>(pids[1]), SIGKILL);
  const auto failure = launcher.WaitForFailure(20.0);
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->rank, 2);
  EXPECT_EQ(failure->what,
            "rank 2 (process " + std::to_string(pids[1]) + ") was killed by SIGKILL after step 1");
  EXPECT_TRUE(AllEnd(pids));
  EXPECT_THROW(launcher.Exchange(""), EngineDead);
  EXPECT_THROW(launcher.Publish(plans.Next(8), 10.0), EngineDead);
}

TEST(LauncherTest, ARankThatExitsIsNamedWithItsCode) {
  const std::string why = FailureOf(Ranks(3, {"quit", "1"}));
  EXPECT_NE(why.find("rank 1 (process "), std::string::npos) << why;
  EXPECT_NE(why.find("exited with code 3 while starting"), std::string::npos) << why;
}

TEST(LauncherTest, ARanksOwnAccountIsTheFailure) {
  Launcher launcher(Ranks(3, {"fail", "2"}));
  const auto failure = launcher.WaitForFailure(20.0);
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->what, "rank 2 failed while starting: ValueError: weights are wrong");
  EXPECT_EQ(failure->type, "ValueError");
  EXPECT_EQ(failure->hint, "check them");
}

TEST(LauncherTest, TheCauseCountsAndNotItsEcho) {
  const std::string why = FailureOf(Ranks(3, {"echo", "1"}));
  EXPECT_NE(why.find("rank 2 (process "), std::string::npos) << why;
  EXPECT_NE(why.find("was killed by SIGKILL"), std::string::npos) << why;
}

TEST(LauncherTest, ARankThatNeverSpeaksIsNamed) {
  LaunchOptions options = Ranks(2, {"silent"});
  options.start_silence_s = 0.5;
  const std::string why = FailureOf(std::move(options));
  EXPECT_NE(why.find("does not respond while starting"), std::string::npos) << why;
}

TEST(LauncherTest, AStoppedRankFallsSilent) {
  Launcher launcher(Ranks(3, {"stop", "2"}));
  while (launcher.ranks()[1].silent_s < 1.0) std::this_thread::sleep_for(10ms);
  EXPECT_LT(launcher.ranks()[0].silent_s, 0.9);
}

TEST(LauncherTest, WhatARankStartedEndsWithIt) {
  Launcher launcher(Ranks(2, {"child"}));
  const std::int64_t child = std::stol(launcher.Exchange("")[1]);
  EXPECT_TRUE(Runs(child));
  launcher.Stop(0.0);
  EXPECT_TRUE(AllEnd({child}));
}

TEST(LauncherTest, AForkedChildLeavesTheRanksAlone) {
  auto launcher = std::make_unique<Launcher>(Ranks(2, {"serve"}));
  const pid_t child = fork();
  if (child == 0) {
    launcher.reset();
    _exit(0);
  }
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(launcher->Exchange("zero"), (Parts{"zero", "1"}));
}

TEST(LauncherTest, NoRankOutlivesItsKilledLauncher) {
  FILE* launched = popen("echo $$; exec " RANK_PROGRAM " launch", "r");
  std::vector<std::int64_t> pids(4);
  for (std::int64_t& pid : pids) ASSERT_EQ(fscanf(launched, "%ld", &pid), 1);
  EXPECT_TRUE(Runs(pids[1]) && Runs(pids[2]));
  kill(static_cast<pid_t>(pids[0]), SIGKILL);
  pclose(launched);
  EXPECT_TRUE(AllEnd({pids[0], pids[1], pids[2]}));
  kill(static_cast<pid_t>(pids[3]), SIGKILL);
}

TEST(LauncherTest, AProgramThatIsNotThereIsNamed) {
  LaunchOptions options;
  options.argv = {"/nowhere/python"};
  try {
    Launcher launcher(options);
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(),
                 "the program of a rank, /nowhere/python, cannot be started: No such file or "
                 "directory");
  }
}

// Runs `body` with a lower limit of the system; its error must be CapacityError with that hint.
template <typename Body>
void ExpectShortage(__rlimit_resource resource, rlim_t limit, const std::string& hint, Body body) {
  rlimit before{};
  getrlimit(resource, &before);
  const rlimit lowered{limit, before.rlim_max};
  ASSERT_EQ(setrlimit(resource, &lowered), 0);
  std::string found = "none";
  try {
    body();
  } catch (const CapacityError& error) {
    found = error.hint();
  }
  setrlimit(resource, &before);
  EXPECT_NE(found.find(hint), std::string::npos) << found;
}

TEST(LauncherTest, LimitsOfTheSystemAreNamed) {
  signal(SIGXFSZ, SIG_IGN);  // as in Python
  const auto launch = [] { Launcher launcher(Ranks(8, {"serve"})); };
  ExpectShortage(RLIMIT_NOFILE, 12, "ulimit -n", launch);
  ExpectShortage(RLIMIT_NOFILE, 9, "ulimit -n", launch);
  ExpectShortage(RLIMIT_FSIZE, 4096, "ulimit -f", launch);
}

}  // namespace
}  // namespace runtime
