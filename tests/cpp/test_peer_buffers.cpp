// Memory that ranks share on their devices, with a driver that only pretends; ranks are threads.
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "distributed/peer_copies.h"
#include "distributed/shm_communicator.h"
#include "runtime/error.h"

namespace runtime {
namespace {

constexpr CudaResult kOutOfMemory = 2, kNoPeerAccess = 217;

// One "device" for all threads: addresses are numbers, a handle holds the address it stands for.
struct Pretended {
  std::mutex mutex;
  std::map<CudaAddress, std::size_t> allocated;
  std::map<CudaAddress, int> filled;
  std::map<CudaAddress, CudaAddress> opened;  // and what it maps
  CudaAddress next = 4096;
  int num_words = 0;
  int num_streams = 0;
  std::vector<std::string> queued;  // by streams, in the order of the calls
  bool has_memory = true;
  bool has_peer_access = true;
};
Pretended* pretended = nullptr;
thread_local int current = 0;  // contexts pushed in this thread

void Queue(const std::string& what) {
  const std::lock_guard lock(pretended->mutex);
  pretended->queued.push_back(what);
}

CudaDriver PretendedDriver() {
  CudaDriver driver;
  driver.GetErrorString = [](CudaResult result, const char** text) {
    *text = result == kOutOfMemory ? "out of memory" : "peer access is not supported";
    return 0;
  };
  driver.CtxGetCurrent = [](CudaContext** context) {
    *context = reinterpret_cast<CudaContext*>(64);
    return 0;
  };
  driver.CtxPushCurrent = [](CudaContext*) { return ++current, 0; };
  driver.CtxPopCurrent = [](CudaContext**) { return --current, 0; };
  driver.CtxSynchronize = [] { return 0; };
  driver.MemAlloc = [](CudaAddress* address, std::size_t num_bytes) {
    const std::lock_guard lock(pretended->mutex);
    if (!pretended->has_memory && !pretended->allocated.empty()) return kOutOfMemory;
    *address = pretended->next += 4096;
    pretended->allocated[*address] = num_bytes;
    return 0;
  };
  driver.MemFree = [](CudaAddress address) {
    const std::lock_guard lock(pretended->mutex);
    EXPECT_EQ(current, 1);
    EXPECT_EQ(pretended->allocated.erase(address), 1u);
    return 0;
  };
  driver.MemsetD8 = [](CudaAddress address, unsigned char value, std::size_t) {
    const std::lock_guard lock(pretended->mutex);
    pretended->filled[address] = value;
    return 0;
  };
  driver.MemsetD32Async = [](CudaAddress address, unsigned value, std::size_t count, CudaStream*) {
    EXPECT_EQ(current, 1);
    Queue("set " + std::to_string(address) + " " + std::to_string(count) + " to " +
          std::to_string(value));
    return 0;
  };
  driver.MemcpyAsync = [](CudaAddress to, CudaAddress from, std::size_t num_bytes, CudaStream*) {
    Queue("copy " + std::to_string(from) + " to " + std::to_string(to) + ", " +
          std::to_string(num_bytes));
    return 0;
  };
  driver.StreamCreate = [](CudaStream** stream, unsigned) {
    const std::lock_guard lock(pretended->mutex);
    ++pretended->num_streams;
    *stream = reinterpret_cast<CudaStream*>(8);
    return 0;
  };
  driver.StreamDestroy = [](CudaStream*) {
    const std::lock_guard lock(pretended->mutex);
    EXPECT_EQ(current, 1);
    --pretended->num_streams;
    return 0;
  };
  driver.StreamWriteValue32 = [](CudaStream*, CudaAddress address, std::uint32_t value, unsigned) {
    Queue("write " + std::to_string(address) + " " + std::to_string(value));
    return 0;
  };
  driver.StreamWaitValue32 = [](CudaStream*, CudaAddress address, std::uint32_t value,
                                unsigned flags) {
    EXPECT_EQ(flags, 0u);  // at least
    Queue("wait " + std::to_string(address) + " " + std::to_string(value));
    return 0;
  };
  driver.MemHostAlloc = [](void** memory, std::size_t num_bytes, unsigned) {
    const std::lock_guard lock(pretended->mutex);
    ++pretended->num_words;
    *memory = new char[num_bytes];
    return 0;
  };
  driver.MemHostGetDevicePointer = [](CudaAddress* address, void* memory, unsigned) {
    *address = reinterpret_cast<CudaAddress>(memory);
    return 0;
  };
  driver.MemFreeHost = [](void* memory) {
    const std::lock_guard lock(pretended->mutex);
    --pretended->num_words;
    delete[] static_cast<char*>(memory);
    return 0;
  };
  driver.IpcGetMemHandle = [](CudaIpcHandle* handle, CudaAddress address) {
    std::memcpy(handle->bytes, &address, sizeof(address));
    return 0;
  };
  driver.IpcOpenMemHandle = [](CudaAddress* address, CudaIpcHandle handle, unsigned) {
    const std::lock_guard lock(pretended->mutex);
    if (!pretended->has_peer_access) return kNoPeerAccess;
    *address = pretended->next += 4096;
    std::memcpy(&pretended->opened[*address], handle.bytes, sizeof(CudaAddress));
    return 0;
  };
  driver.IpcCloseMemHandle = [](CudaAddress address) {
    const std::lock_guard lock(pretended->mutex);
    EXPECT_EQ(pretended->opened.erase(address), 1u);
    return 0;
  };
  return driver;
}

class PeerBuffersTest : public testing::Test {
 protected:
  static constexpr int kSize = 3;
  static constexpr std::size_t kNumBytes = 1000;

  PeerBuffersTest() { pretended = &pretended_; }
  ~PeerBuffersTest() override {
    EXPECT_TRUE(pretended_.allocated.empty());
    EXPECT_TRUE(pretended_.opened.empty());
    EXPECT_EQ(pretended_.num_words, 0);
    EXPECT_EQ(pretended_.num_streams, 0);
  }

  static CommunicatorOptions Options(int rank) {
    CommunicatorOptions options;
    options.rank = rank;
    options.size = kSize;
    options.timeout_s = 20;
    return options;
  }

  // Every rank's buffers, or what it threw.
  struct Made {
    std::unique_ptr<PeerBuffers> buffers;
    std::string error;
  };
  std::array<Made, kSize> MakeOnAll(const std::function<const CudaDriver&()>& load) {
    auto memory =
        std::make_shared<SharedMemory>(SharedMemory::Anonymous(ShmGroup::MemoryBytes(Options(0))));
    ShmGroup::Format(*memory, Options(0));
    std::array<Made, kSize> made;
    std::vector<std::thread> threads;
    for (int rank = 0; rank < kSize; ++rank) {
      threads.emplace_back([&, rank] {
        ShmCommunicator group(memory, Options(rank));
        try {
          made[rank].buffers = PeerBuffers::Make(group, kNumBytes, load);
        } catch (const ConfigError& error) {
          made[rank].error = error.what();
        }
        group.Barrier();
      });
    }
    for (std::thread& thread : threads) thread.join();
    return made;
  }
  std::array<Made, kSize> MakeOnAll() {
    return MakeOnAll([this]() -> const CudaDriver& { return driver_; });
  }

  Pretended pretended_;
  const CudaDriver driver_ = PretendedDriver();
};

TEST_F(PeerBuffersTest, EveryRankReachesTheMemoryOfAll) {
  const auto made = MakeOnAll();
  for (int rank = 0; rank < kSize; ++rank) {
    for (int peer = 0; peer < kSize; ++peer) {
      const CudaAddress own = made[peer].buffers->addresses()[peer];
      const CudaAddress seen = made[rank].buffers->addresses()[peer];
      EXPECT_EQ(rank == peer ? seen : pretended_.opened.at(seen), own);
      EXPECT_GE(pretended_.allocated.at(own), kNumBytes);
      EXPECT_EQ(pretended_.filled.at(own), 0xff);
    }
  }
}

// A group of one whose failure is told, as that of NCCL's groups is.
class FailingGroup final : public Communicator {
 public:
  FailingGroup() : Communicator(0, 1) {}
  void AllReduce(const void*, void*, std::size_t, DataType, StreamHandle) override {}
  void AllGather(const void*, void*, std::size_t, DataType, StreamHandle) override {}
  void ReduceScatter(const void*, void*, std::size_t, DataType, StreamHandle) override {}
  void Broadcast(void*, std::size_t, DataType, int, StreamHandle) override {}
  void Barrier() override {}
  void Exchange(const void* in, void* out, std::size_t num_bytes) override {
    std::memcpy(out, in, num_bytes);
  }
  void Poll() override {}
  void Abort(const std::string&) noexcept override { StopKernels(); }
  bool blocks() const override { return false; }
};

TEST_F(PeerBuffersTest, TheWordIsSetWhenTheGroupFails) {
  FailingGroup group;
  const auto load = [this]() -> const CudaDriver& { return driver_; };
  auto buffers = PeerBuffers::Make(group, kNumBytes, load);
  const auto* word = reinterpret_cast<const std::int32_t*>(buffers->abort_word());
  EXPECT_EQ(*word, 0);
  group.Abort("rank 1 died");
  EXPECT_EQ(*word, 1);
  buffers.reset();
  group.Abort("again");  // and what is gone is left alone
}

class PeerCopiesTest : public PeerBuffersTest {
 protected:
  static constexpr std::size_t kNumWords = 6;

  std::unique_ptr<PeerCopies> MakeCopies() {
    const auto load = [this]() -> const CudaDriver& { return driver_; };
    auto copies = PeerCopies::Make(group_, kNumWords, kNumBytes, load);
    memory_ = pretended_.allocated.begin()->first;
    return copies;
  }

  FailingGroup group_;
  CudaAddress memory_ = 0;
};

TEST_F(PeerCopiesTest, BytesComeBehindTheWords) {
  const auto copies = MakeCopies();
  EXPECT_GE(copies->own_bytes(), memory_ + 4 * kNumWords);
  EXPECT_EQ(copies->own_bytes() % 256, memory_ % 256);
  copies->Copy(0, 24, 5000, 100, nullptr);
  copies->Write(0, 5, 7, nullptr);
  copies->Wait(2, -1, nullptr);
  EXPECT_EQ(pretended_.queued,
            (std::vector<std::string>{
                "copy 5000 to " + std::to_string(copies->own_bytes() + 24) + ", 100",
                "write " + std::to_string(memory_ + 20) + " 7",
                "wait " + std::to_string(memory_ + 8) + " 4294967295"}));
}

TEST_F(PeerCopiesTest, RefusesWhatLiesOutside) {
  const auto copies = MakeCopies();
  EXPECT_THROW(copies->Copy(0, kNumBytes - 99, 5000, 100, nullptr), InvalidArgument);
  EXPECT_THROW(copies->Copy(1, 0, 5000, 100, nullptr), InvalidArgument);
  EXPECT_THROW(copies->Write(0, kNumWords, 1, nullptr), InvalidArgument);
  EXPECT_THROW(copies->Wait(kNumWords, 1, nullptr), InvalidArgument);
  EXPECT_TRUE(pretended_.queued.empty());
}

// However far the words have counted, beyond the largest signed number too.
TEST_F(PeerCopiesTest, StreamsThatWaitGoOnWhenTheGroupFails) {
  auto copies = MakeCopies();
  for (const std::int32_t awaited : {0, 41, 0x7fffffff, -5}) {
    copies->Wait(1, awaited, nullptr);
    group_.Abort("rank 1 died");
    const std::uint32_t set = static_cast<std::uint32_t>(awaited) + 0x3fffffff;
    EXPECT_GT(static_cast<std::int32_t>(set - static_cast<std::uint32_t>(awaited)), 0);
    EXPECT_EQ(pretended_.queued.back(),
              "set " + std::to_string(memory_) + " 6 to " + std::to_string(set));
  }
  copies.reset();  // which releases them too
  const std::size_t num_queued = pretended_.queued.size();
  group_.Abort("again");
  EXPECT_EQ(pretended_.queued.size(), num_queued);
}

TEST_F(PeerBuffersTest, NoPeerAccessIsSaidOnEveryRank) {
  pretended_.has_peer_access = false;
  for (const Made& made : MakeOnAll()) {
    EXPECT_EQ(made.error, "rank 0: cuIpcOpenMemHandle of rank 1: peer access is not supported");
  }
}

TEST_F(PeerBuffersTest, NoMemoryOnOneRankIsSaidOnEveryRank) {
  pretended_.has_memory = false;  // but for the first that asks
  for (const Made& made : MakeOnAll()) {
    EXPECT_NE(made.error.find(": cuMemAlloc: out of memory"), std::string::npos) << made.error;
  }
}

TEST_F(PeerBuffersTest, NoDriverIsSaidOnEveryRank) {
  const auto load = []() -> const CudaDriver& { throw ConfigError("no CUDA driver"); };
  for (const Made& made : MakeOnAll(load)) EXPECT_EQ(made.error, "rank 0: no CUDA driver");
}

}  // namespace
}  // namespace runtime
