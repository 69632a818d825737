// Tensor parallelism in a C++ program: its process is rank 0, the others are its children.
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "engine_testing.h"
#include "expected_outputs.h"

namespace runtime {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

std::string Contents(const fs::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Whether it is a child of this process and has not ended; proc(5): "pid (name) state parent ...".
bool IsLiveChild(const fs::path& process) {
  const std::string stat = Contents(process / "stat");
  std::istringstream fields(stat.substr(std::min(stat.rfind(')') + 1, stat.size())));
  std::string state;
  pid_t parent = 0;
  return fields >> state >> parent && parent == getpid() && state != "Z";
}

// The processes of the ranks above 0.
std::vector<pid_t> RankPids() {
  std::vector<pid_t> pids;
  for (const auto& entry : fs::directory_iterator("/proc")) {
    const pid_t pid = std::atoi(entry.path().filename().c_str());
    if (pid > 0 && IsLiveChild(entry) &&
        Has(Contents(entry.path() / "cmdline"), "runtime.worker")) {
      pids.push_back(pid);
    }
  }
  return pids;
}

bool WaitUntil(auto holds, std::chrono::seconds timeout = std::chrono::seconds(5)) {
  const auto deadline = Clock::now() + timeout;
  while (!holds()) {
    if (Clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

EngineConfig Ranks(std::int64_t size = 2) { return Config({{"tensor_parallel_size", size}}); }

// A model that test_ranks.py makes, of a family in which rank 1 fails.
EngineConfig Failing(const char* variable) {
  EngineConfig config = Ranks();
  config.model = std::getenv(variable);
  return config;
}

class EngineRanksTest : public testing::Test {
 protected:
  void SetUp() override {
    if (std::getenv("EXPECTED_OUTPUTS") == nullptr) GTEST_SKIP() << "test_ranks.py runs these";
  }
  void TearDown() override {
    EXPECT_TRUE(WaitUntil([] { return RankPids().empty(); })) << "a rank has outlived its engine";
  }
};

TEST_F(EngineRanksTest, TokensAndTextEqualPythons) {
  const auto lines = ExpectedLines("generate");
  ASSERT_FALSE(lines.empty());
  Engine engine(Ranks());
  EXPECT_EQ(RankPids().size(), 1u);
  ExpectPythonsTokens(engine, lines);
}

TEST_F(EngineRanksTest, AKilledRankIsNamedWithItsStep) {
  Engine engine(Ranks());
  const pid_t pid = RankPids().at(0);
  std::vector<RequestId> ids;
  for (int i = 0; i < 4; ++i) ids.push_back(engine.Submit(Endless()));
  for (const RequestId id : ids) ASSERT_TRUE(engine.Next(id));
  kill(pid, SIGKILL);
  const auto killed = Clock::now();
  const std::string rank = "rank 1 (process " + std::to_string(pid) + ") was killed by SIGKILL ";
  for (const RequestId id : ids) {
    const auto e = Thrown<EngineDead>([&] { Read(engine, id); });
    EXPECT_EQ(e.code(), "engine_dead");
    EXPECT_TRUE(Has(e.what(), rank + "in step ") || Has(e.what(), rank + "after step "))
        << e.what();
  }
  EXPECT_LT(Clock::now() - killed, std::chrono::seconds(5));
  const RequestId later = engine.Submit(Endless());
  EXPECT_TRUE(Has(Thrown<EngineDead>([&] { Read(engine, later); }).what(), rank));
  EXPECT_TRUE(Has(Thrown<EngineDead>([&] { engine.Stats(); }).what(), rank));
  engine.Drain();  // there is nothing left to wait for
}

TEST_F(EngineRanksTest, ARankThatIsKilledWhileItStartsEndsTheStart) {
  std::thread killer([] {
    if (WaitUntil([] { return !RankPids().empty(); }, std::chrono::seconds(60))) {
      kill(RankPids().at(0), SIGKILL);
    }
  });
  const auto e = Thrown<EngineDead>([] { Engine engine(Ranks()); });
  EXPECT_TRUE(Has(e.what(), "rank 1 (process ")) << e.what();
  EXPECT_TRUE(Has(e.what(), "was killed by SIGKILL while ")) << e.what();
  killer.join();
}

TEST_F(EngineRanksTest, TheExceptionOfARankIsTheStreams) {
  Engine engine(Failing("TEST_RAISING_MODEL"));
  const RequestId id = engine.Submit(Endless());
  const auto e = Thrown<EngineDead>([&] { Read(engine, id); });
  EXPECT_TRUE(Has(e.what(), "rank 1 failed in step 5: ValueError: experts are out of luck"))
      << e.what();
}

TEST_F(EngineRanksTest, WhatARankRefusesAtTheStartIsThrownAsItIs) {
  const auto e = Thrown<ModelFormatError>([] { Engine engine(Failing("TEST_UNLOADABLE_MODEL")); });
  EXPECT_STREQ(e.what(), "rank 1: config.json: rank 1 does not like it");
  EXPECT_EQ(e.hint(), "ask rank 0");
}

TEST_F(EngineRanksTest, SizesThatDoNotDivideAreRefusedBeforeAnyProcessStarts) {
  const auto e = Thrown<ConfigError>([] { Engine engine(Ranks(3)); });
  EXPECT_TRUE(Has(e.what(), "3") && Has(e.what(), "heads")) << e.what();
  EXPECT_TRUE(RankPids().empty());
}

}  // namespace
}  // namespace runtime
