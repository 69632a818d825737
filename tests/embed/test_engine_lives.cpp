// Engines that come and go: one after another, side by side, moved, destroyed while they serve.
#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <future>
#include <iostream>
#include <limits>
#include <thread>

#include "engine_testing.h"

namespace runtime {
namespace {

// Bytes of this process that no file backs.
std::int64_t AnonymousBytes() {
  malloc_trim(0);
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    if (word != "RssAnon:") continue;
    std::int64_t kilobytes = 0;
    status >> kilobytes;
    return kilobytes << 10;
  }
  return 0;
}

std::int64_t NumThreads() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    std::int64_t count = 0;
    if (word == "Threads:" && status >> count) return count;
  }
  return 0;
}

void Cycle() {
  Engine engine(Config());
  std::vector<RequestId> ids;
  for (int i = 0; i < 3; ++i) ids.push_back(engine.Submit(Endless()));
  ids.push_back(engine.Submit(Endless(), {[](RequestId, const Chunk&) {}, {}}));
  ASSERT_TRUE(engine.Next(ids[0]));
  engine.Abort(ids[0]);
  engine.Release(ids[1]);
  EXPECT_EQ(Ask(engine, {.prompt = "12+35=", .temperature = 0}).text, "47");
}

// The least memory in use after any of so many cycles: what Python frees late does not count.
std::int64_t BytesAfter(int num_cycles) {
  std::int64_t least = std::numeric_limits<std::int64_t>::max();
  for (int i = 0; i < num_cycles; ++i) {
    Cycle();
    least = std::min(least, AnonymousBytes());
  }
  return least;
}

TEST(EngineLivesTest, CyclesLeaveNothingBehind) {
  const char* wanted = std::getenv("TEST_CYCLES");
  const int num_cycles = wanted == nullptr ? 20 : std::atoi(wanted);
  const std::int64_t bytes = BytesAfter(num_cycles / 2), threads = NumThreads();
  const std::int64_t growth = BytesAfter(num_cycles - num_cycles / 2) - bytes;
  std::cout << num_cycles << " cycles; growth from the first half to the second: " << growth / 1024
            << " KiB\n";
  EXPECT_LT(growth, 8 << 20);  // an engine that stayed would be megabytes, each time
  while (NumThreads() > threads) std::this_thread::sleep_for(std::chrono::milliseconds(10));
}

TEST(EngineLivesTest, EnginesServeSideBySide) {
  Engine first(Config());
  Engine second(Config());
  const RequestId a = first.Submit({.prompt = "12+35=", .temperature = 0});
  const RequestId b = second.Submit({.prompt = "40+2=", .temperature = 0});
  EXPECT_EQ(Read(first, a).text, "47");
  EXPECT_EQ(Read(second, b).text, "42");
}

TEST(EngineLivesTest, AnEngineMovesWithItsRequests) {
  Engine first(Config());
  const RequestId id = first.Submit({.prompt = "12+35=", .temperature = 0});
  Engine second(std::move(first));
  EXPECT_EQ(Read(second, id).text, "47");
  EXPECT_THROW(first.Submit({.prompt = "12+35="}), InvalidArgument);
  first = std::move(second);
  EXPECT_EQ(Ask(first, {.prompt = "40+2=", .temperature = 0}).text, "42");
}

TEST(EngineLivesTest, CallbacksAreToldOfTheEnd) {
  std::promise<std::exception_ptr> ended;
  {
    Engine engine(Config());
    engine.Submit(Endless(),
                  {{}, [&](RequestId, std::exception_ptr error) { ended.set_value(error); }});
  }
  EXPECT_THROW(std::rethrow_exception(ended.get_future().get()), RequestAborted);
}

TEST(EngineLivesTest, AnEngineMayOutliveMain) {
  SharedEngine();  // nobody destroys it; the process still ends well
}

}  // namespace
}  // namespace runtime
