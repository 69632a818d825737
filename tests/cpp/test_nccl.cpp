// NCCL's part of a group, with a library that only pretends, and the search for the real one.
#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "distributed/nccl_communicator.h"
#include "distributed/shm_communicator.h"
#include "runtime/error.h"

namespace runtime {
namespace {

// What the pretended library does next, and what it was asked. One communicator a test.
struct Pretended {
  NcclResult init = NcclResult::kInProgress;
  NcclResult call = NcclResult::kSuccess;
  NcclResult state = NcclResult::kSuccess;
  int num_in_progress = 3;   // times that it answers so before it answers `state`
  bool graph_lives = false;  // a communicator is not given back before it is false
  std::mutex mutex;          // of `asked` and `graph_lives`
  std::condition_variable changed;
  std::vector<std::string> asked;

  void Note(const std::string& what) {
    const std::lock_guard lock(mutex);
    asked.push_back(what);
    changed.notify_all();
  }
  void DropGraph() {
    const std::lock_guard lock(mutex);
    graph_lives = false;
    changed.notify_all();
  }
  void WaitForGraph() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return !graph_lives; });
  }
  // Whether the last call was this one; what gives a communicator back is called by another thread.
  bool Ends(const std::string& what) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, std::chrono::seconds(20),
                            [&] { return !asked.empty() && asked.back() == what; });
  }
  bool WasAsked() {
    const std::lock_guard lock(mutex);
    return !asked.empty();
  }
};
Pretended* pretended = nullptr;

NcclComm* const kComm = reinterpret_cast<NcclComm*>(64);

NcclResult InitRankConfig(NcclComm** comm, int size, NcclUniqueId id, int rank,
                          NcclConfig* config) {
  EXPECT_EQ(config->size, sizeof(NcclConfig));
  EXPECT_EQ(config->blocking, 0);
  pretended->Note("init " + std::to_string(rank) + " of " + std::to_string(size) + " " + id.bytes);
  *comm = kComm;
  return pretended->init;
}

NcclResult AsyncError(NcclComm* comm, NcclResult* state) {
  EXPECT_EQ(comm, kComm);
  const bool busy = pretended->num_in_progress > 0 && pretended->num_in_progress-- > 0;
  *state = busy ? NcclResult::kInProgress : pretended->state;
  return NcclResult::kSuccess;
}

template <const char* Name>
NcclResult Noted(NcclComm* comm) {
  EXPECT_EQ(comm, kComm);
  pretended->Note(Name);
  return NcclResult::kSuccess;
}
constexpr char kFinalize[] = "finalize", kDestroy[] = "destroy", kAbort[] = "abort";

template <const char* Name>
NcclResult GivenBack(NcclComm* comm) {
  pretended->WaitForGraph();
  return Noted<Name>(comm);
}

NcclResult Collective(const char* name, std::size_t count, int type, const std::string& more) {
  pretended->Note(std::string(name) + " " + std::to_string(count) + " " + std::to_string(type) +
                  more);
  return pretended->call;
}

NcclApi PretendedApi(int version = 22809) {
  NcclApi api;
  api.info = {"libpretended.so", version};
  api.CommInitRankConfig = &InitRankConfig;
  api.CommFinalize = &Noted<kFinalize>;
  api.CommDestroy = &GivenBack<kDestroy>;
  api.CommAbort = &GivenBack<kAbort>;
  api.CommGetAsyncError = &AsyncError;
  api.GetErrorString = [](NcclResult result) {
    return result == NcclResult::kSystemError ? "a system error" : "another error";
  };
  api.GetLastError = [](NcclComm*) { return "the last words"; };
  api.AllReduce = [](const void*, void*, std::size_t count, int type, int op, NcclComm*,
                     StreamHandle) {
    return Collective("all_reduce", count, type, " " + std::to_string(op));
  };
  api.AllGather = [](const void*, void*, std::size_t count, int type, NcclComm*, StreamHandle) {
    return Collective("all_gather", count, type, "");
  };
  api.ReduceScatter = [](const void*, void*, std::size_t count, int type, int, NcclComm*,
                         StreamHandle) { return Collective("reduce_scatter", count, type, ""); };
  api.Broadcast = [](const void* in, void* out, std::size_t count, int type, int root, NcclComm*,
                     StreamHandle) {
    EXPECT_EQ(in, out);
    return Collective("broadcast", count, type, " " + std::to_string(root));
  };
  return api;
}

class NcclCommunicatorTest : public testing::Test {
 protected:
  NcclCommunicatorTest() { pretended = &pretended_; }

  static CommunicatorOptions HostOptions(int rank, int size) {
    CommunicatorOptions options;
    options.rank = rank;
    options.size = size;
    options.piece_bytes = 4096;
    return options;
  }

  static std::shared_ptr<SharedMemory> HostMemory(int size) {
    const CommunicatorOptions options = HostOptions(0, size);
    auto memory =
        std::make_shared<SharedMemory>(SharedMemory::Anonymous(ShmGroup::MemoryBytes(options)));
    ShmGroup::Format(*memory, options);
    return memory;
  }

  // A group of one, or one rank of the group in `memory`.
  static std::unique_ptr<Communicator> Join(const NcclApi& api, double timeout_s = 20.0,
                                            std::shared_ptr<SharedMemory> memory = HostMemory(1),
                                            int rank = 0, int size = 1) {
    auto host = std::make_unique<ShmCommunicator>(std::move(memory), HostOptions(rank, size));
    return std::make_unique<NcclCommunicator>(api, std::move(host), NcclUniqueId{"id"}, timeout_s);
  }

  static std::string ErrorOf(const std::function<void()>& work) {
    try {
      work();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  const NcclApi api_ = PretendedApi();
  Pretended pretended_;
};

TEST_F(NcclCommunicatorTest, JoinsAndLeavesWithoutBlocking) {
  Join(api_);
  EXPECT_EQ(pretended_.asked, (std::vector<std::string>{"init 0 of 1 id", "finalize", "destroy"}));
  EXPECT_EQ(pretended_.num_in_progress, 0);
}

TEST_F(NcclCommunicatorTest, PassesTypesAndCountsAsNcclNumbersThem) {
  const auto group = Join(api_);
  pretended_.asked.clear();
  int x = 0;
  group->AllReduce(&x, &x, 1, DataType::kFloat32, nullptr);
  group->AllGather(&x, &x, 2, DataType::kBFloat16, nullptr);
  group->ReduceScatter(&x, &x, 3, DataType::kFloat16, nullptr);
  group->Broadcast(&x, 4, DataType::kInt32, 0, nullptr);
  EXPECT_EQ(pretended_.asked, (std::vector<std::string>{"all_reduce 1 7 0", "all_gather 2 9",
                                                        "reduce_scatter 3 6", "broadcast 4 2 0"}));
  EXPECT_THROW(group->Broadcast(&x, 4, DataType::kInt32, 1, nullptr), InvalidArgument);
}

TEST_F(NcclCommunicatorTest, WaitsForACallThatTakesLonger) {
  const auto group = Join(api_);
  pretended_.call = NcclResult::kInProgress;
  pretended_.num_in_progress = 5;
  int x = 0;
  group->AllReduce(&x, &x, 1, DataType::kInt32, nullptr);
  EXPECT_EQ(pretended_.num_in_progress, 0);
}

TEST_F(NcclCommunicatorTest, ACallThatFailsEndsTheGroup) {
  const auto group = Join(api_);
  pretended_.call = NcclResult::kSystemError;
  int x = 0;
  const auto call = [&] { group->AllReduce(&x, &x, 1, DataType::kInt32, nullptr); };
  const std::string cause = "ncclAllReduce failed on rank 0: a system error (the last words)";
  EXPECT_EQ(ErrorOf(call), cause);
  EXPECT_TRUE(pretended_.Ends("abort"));
  pretended_.asked.clear();
  EXPECT_EQ(ErrorOf(call), cause);
  EXPECT_EQ(ErrorOf([&] { group->Barrier(); }), cause);
  EXPECT_TRUE(pretended_.asked.empty());
}

TEST_F(NcclCommunicatorTest, KernelsThatWaitForAPeerEndBeforeNcclIsAborted) {
  const auto group = Join(api_);
  group->OnFailure([&] { pretended_.Note("stop"); });
  pretended_.asked.clear();
  group->Abort("the step was too long");
  EXPECT_TRUE(pretended_.Ends("abort"));
  EXPECT_EQ(pretended_.asked, (std::vector<std::string>{"stop", "abort"}));
}

// As NCCL does, whose kernels in a captured graph need it.
TEST_F(NcclCommunicatorTest, AGraphThatLivesOnKeepsNobodyFromAborting) {
  pretended_.graph_lives = true;
  const auto group = Join(api_);
  group->Abort("the step was too long");
  EXPECT_EQ(ErrorOf([&] { group->Poll(); }), "the step was too long");
  pretended_.DropGraph();
  EXPECT_TRUE(pretended_.Ends("abort"));
}

TEST_F(NcclCommunicatorTest, AGraphThatAnotherThreadDropsLaterLetsTheGroupLeave) {
  pretended_.graph_lives = true;
  std::thread other([&] {
    EXPECT_TRUE(pretended_.Ends("finalize"));
    pretended_.DropGraph();
  });
  Join(api_);
  EXPECT_TRUE(pretended_.Ends("destroy"));
  other.join();
}

TEST_F(NcclCommunicatorTest, PollFindsWhatFailedMeanwhile) {
  const auto group = Join(api_);
  pretended_.state = NcclResult::kInProgress;
  EXPECT_NO_THROW(group->Poll());
  pretended_.state = NcclResult::kRemoteError;
  EXPECT_EQ(ErrorOf([&] { group->Poll(); }),
            "a collective failed on rank 0: another error (the last words)");
  EXPECT_TRUE(pretended_.Ends("abort"));
}

TEST_F(NcclCommunicatorTest, AbortComesFromAnyThread) {
  {
    const auto group = Join(api_);
    std::thread([&] { group->Abort("the step was too long"); }).join();
    int x = 0;
    EXPECT_EQ(ErrorOf([&] { group->AllReduce(&x, &x, 1, DataType::kInt32, nullptr); }),
              "the step was too long");
  }
  EXPECT_TRUE(pretended_.Ends("abort"));
  EXPECT_EQ(pretended_.asked, (std::vector<std::string>{"init 0 of 1 id", "abort"}));
}

TEST_F(NcclCommunicatorTest, ASetUpThatTakesTooLongIsGivenUp) {
  pretended_.num_in_progress = 1 << 30;
  EXPECT_EQ(ErrorOf([&] { Join(api_, 0.05); }),
            "ncclCommInitRankConfig was not done on rank 0 after 0.05 s");
  EXPECT_TRUE(pretended_.Ends("abort"));
}

TEST_F(NcclCommunicatorTest, TheFirstFailureIsTheCauseOnEveryRank) {
  pretended_.num_in_progress = 1 << 30;
  const auto memory = HostMemory(2);
  std::thread other([&] {
    // the version of rank 1, and then what it died of
    ShmCommunicator host(memory, HostOptions(1, 2));
    const int own = api_.info.version;
    int versions[2];
    host.Exchange(&own, versions, sizeof(own));
    while (!pretended_.WasAsked()) std::this_thread::yield();
    host.Abort("rank 1 has lost its device");
  });
  EXPECT_EQ(ErrorOf([&] { Join(api_, 20.0, memory, 0, 2); }), "rank 1 has lost its device");
  EXPECT_TRUE(pretended_.Ends("abort"));
  other.join();
}

TEST_F(NcclCommunicatorTest, VersionsThatDifferAreNamed) {
  const NcclApi older = PretendedApi(22703);
  const auto memory = HostMemory(2);
  std::string errors[2];
  std::thread other([&] { errors[1] = ErrorOf([&] { Join(older, 20.0, memory, 1, 2); }); });
  errors[0] = ErrorOf([&] { Join(api_, 20.0, memory, 0, 2); });
  other.join();
  const std::string sentence = "rank 1 has NCCL 2.27.3, rank 0 2.28.9: all ranks need the same";
  EXPECT_EQ(errors[0], sentence + "; rank 0 loaded libpretended.so");
  EXPECT_EQ(errors[1], sentence + "; rank 1 loaded libpretended.so");
  EXPECT_TRUE(pretended_.asked.empty());
}

std::string Refusal(const NcclSearch& search) {
  try {
    OpenNccl(search);
  } catch (const ConfigError& error) {
    return error.what() + std::string(" | ") + error.hint();
  }
  return "";
}

testing::AssertionResult InOrder(const std::string& text, const std::vector<std::string>& parts) {
  std::size_t at = 0;
  for (const std::string& part : parts) {
    at = text.find(part, at);
    if (at == std::string::npos) return testing::AssertionFailure() << part << " not in " << text;
  }
  return testing::AssertionSuccess();
}

TEST(OpenNcclTest, SaysAllThatWasSearched) {
  NcclSearch search;
  search.name = "libnotthere.so.2";
  search.environment = "RUNTIME_TEST_NOT_SET";
  search.folders = {"/nowhere/nvidia/nccl/lib", "/elsewhere"};
  EXPECT_TRUE(InOrder(
      Refusal(search),
      {"NCCL was not found; searched: the process itself", "$RUNTIME_TEST_NOT_SET: not set",
       "/nowhere/nvidia/nccl/lib/libnotthere.so.2", "/elsewhere/libnotthere.so.2", "the system",
       " | pip install nvidia-nccl-cu13, or set RUNTIME_NCCL_LIB to its path"}));
}

TEST(OpenNcclTest, WhatWasAskedForIsNotReplaced) {
  NcclSearch search;
  search.library = "/nowhere/libnccl.so";
  EXPECT_TRUE(InOrder(Refusal(search), {"NCCL cannot be loaded from /nowhere/libnccl.so: "}));
  setenv("RUNTIME_TEST_NCCL", "/elsewhere/libnccl.so", 1);
  NcclSearch by_variable;
  by_variable.name = "libnotthere.so.2";
  by_variable.environment = "RUNTIME_TEST_NCCL";
  EXPECT_TRUE(InOrder(Refusal(by_variable), {"NCCL cannot be loaded from /elsewhere/libnccl.so"}));
}

TEST(OpenNcclTest, AnotherLibraryIsRefused) {
  NcclSearch search;
  search.name = "libm.so.6";  // loaded already
  EXPECT_TRUE(
      InOrder(Refusal(search), {"libm.so.6 lacks ncclGetVersion: NCCL 2.14 or newer is needed"}));
}

TEST(OpenNcclTest, FindsTheRealOne) {
  const char* library = std::getenv("RUNTIME_NCCL_LIB");
  if (library == nullptr) GTEST_SKIP() << "needs RUNTIME_NCCL_LIB, the path of an NCCL";
  const NcclApi api = OpenNccl({});
  EXPECT_EQ(api.info.path, library);
  EXPECT_GE(api.info.version, 21400);
  EXPECT_STREQ(api.GetErrorString(NcclResult::kSuccess), "no error");
}

}  // namespace
}  // namespace runtime
