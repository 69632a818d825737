// Engines that come and go: one after another, side by side, moved, destroyed while they serve.
#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <future>
#include <iostream>
#include <iterator>
#include <limits>
#include <thread>

#include "engine_testing.h"

// sanitizer/allocator_interface.h, which Debian's gcc comes without
extern "C" std::size_t __sanitizer_get_current_allocated_bytes();

namespace runtime {
namespace {

// Bytes that the process has allocated and not freed. What it has of the system is more, by what
// the allocator keeps for later, which goes up and down by megabytes.
std::int64_t BytesInUse() {
#ifdef __SANITIZE_ADDRESS__
  return static_cast<std::int64_t>(__sanitizer_get_current_allocated_bytes());
#else
  const struct mallinfo2 info = mallinfo2();
  return static_cast<std::int64_t>(info.uordblks + info.hblkhd);
#endif
}

std::int64_t NumThreads() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    std::int64_t count = 0;
    if (word == "Threads:" && status >> count) return count;
  }
  return 0;
}

// Files, stacks and shared memory in the address space, of which the count above knows nothing.
std::int64_t NumMappings() {
  std::ifstream maps("/proc/self/maps");
  return std::count(std::istreambuf_iterator<char>(maps), {}, '\n');
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

// The least in use after any of so many cycles: what Python frees late does not count.
std::int64_t BytesAfter(int num_cycles) {
  std::int64_t least = std::numeric_limits<std::int64_t>::max();
  for (int i = 0; i < num_cycles; ++i) {
    Cycle();
    least = std::min(least, BytesInUse());
  }
  return least;
}

// safetensors 0.8 never frees two Python integers for each tensor that it reads, 38 in this model:
// some 2 KiB an engine, and all that grows. The rest is for what is allocated once, late.
constexpr std::int64_t kMaxGrowthPerCycle = 8 << 10;

TEST(EngineLivesTest, CyclesLeaveNothingBehind) {
  const char* wanted = std::getenv("TEST_CYCLES");
  const int num_cycles = wanted == nullptr ? 20 : std::atoi(wanted), half = num_cycles / 2;
  const std::int64_t bytes = BytesAfter(half), threads = NumThreads(), mappings = NumMappings();
  const std::int64_t growth = BytesAfter(half) - bytes;
  std::cout << num_cycles << " cycles; growth from the first half to the second: " << growth
            << " bytes\n";
  EXPECT_LT(growth, half * kMaxGrowthPerCycle);
  EXPECT_LT(NumMappings() - mappings, half);  // one that stayed would be one each time
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
