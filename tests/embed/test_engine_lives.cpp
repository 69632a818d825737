// Engines that come and go: one after another, side by side, moved, destroyed while they serve.
#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <future>
#include <iostream>
#include <limits>
#include <string>
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

// Files and shared memory in the address space, of which the count above knows nothing. Memory
// without a name is the allocator's, in as many pieces as it likes.
std::int64_t NumMappings() {
  std::ifstream maps("/proc/self/maps");
  std::int64_t count = 0;
  for (std::string line; std::getline(maps, line);) count += line.find('/') != std::string::npos;
  return count;
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

struct InUse {
  std::int64_t bytes = std::numeric_limits<std::int64_t>::max();
  std::int64_t mappings = std::numeric_limits<std::int64_t>::max();
};

// The least in use after any of so many cycles: what Python frees late, and pieces of the heap that
// come and go, do not count.
InUse LeastAfter(int num_cycles) {
  InUse least;
  for (int i = 0; i < num_cycles; ++i) {
    Cycle();
    least.bytes = std::min(least.bytes, BytesInUse());
    least.mappings = std::min(least.mappings, NumMappings());
  }
  return least;
}

// safetensors 0.8 never frees two Python integers for each tensor that it reads, 38 in this model:
// some 2 KiB an engine, and all that grows.
constexpr std::int64_t kMaxGrowthPerCycle = 8 << 10;

TEST(EngineLivesTest, CyclesLeaveNothingBehind) {
  const char* wanted = std::getenv("TEST_CYCLES");
  const int third = (wanted == nullptr ? 21 : std::atoi(wanted)) / 3;
  const InUse first = LeastAfter(third);
  const std::int64_t threads = NumThreads();
  const InUse second = LeastAfter(third), last = LeastAfter(third);
  // what is allocated once, late, is in one of the two; what each engine leaves is in both
  const std::int64_t bytes = std::min(second.bytes - first.bytes, last.bytes - second.bytes);
  const std::int64_t mappings = last.mappings - first.mappings;
  std::cout << "growth over " << third << " cycles: " << bytes
            << " bytes; over twice as many: " << mappings << " mappings\n";
  EXPECT_LT(bytes, third * kMaxGrowthPerCycle);
  EXPECT_LT(mappings, third);  // one that stayed would be one each time
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
