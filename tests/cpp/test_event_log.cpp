// What is recorded replays with the same decisions; what is damaged says where.
#include <gtest/gtest.h>

#include <span>

#include "common/siphash.h"
#include "recorded.h"
#include "runtime/error.h"
#include "runtime/simulation.h"
#include "serving.h"
#include "simulated.h"
#include "stories.h"

namespace runtime::testing {
namespace {

// Records what `story` does to a serving; returns the steps it took.
template <typename Story>
std::int64_t Record(const TemporaryFile& log, const SchedulerConfig& config,
                    std::int32_t num_blocks, Story story) {
  Serving serving(config, num_blocks);
  serving.scheduler().Record(log.path());
  story(serving);
  serving.RunUntilDrained();
  serving.scheduler().StopRecording();
  serving.Submit(1 << 20, Prompt(3), Greedy(1));  // not any more
  return serving.scheduler().stats().num_steps;
}

// The records of a file, as docs/event_log.md has it.
std::string RecordsOf(const std::string& file) {
  std::string records;
  for (std::size_t at = 12; at < file.size();) {
    std::uint32_t size = 0;
    file.copy(reinterpret_cast<char*>(&size), sizeof(size), at);
    records += file.substr(at + 12, size);
    at += 12 + size;
  }
  return records;
}

// A file of one frame, as docs/event_log.md has it.
std::string FileOf(const std::string& records) {
  const auto size = static_cast<std::uint32_t>(records.size());
  const std::uint64_t checksum = SipHash128({size, 0}, std::as_bytes(std::span(records))).low;
  std::string file = "rt-event";
  file.append("\4\0\0\0", 4);
  file.append(reinterpret_cast<const char*>(&size), sizeof(size));
  file.append(reinterpret_cast<const char*>(&checksum), sizeof(checksum));
  return file + records;
}

// Why a replay refused the log, or ended early.
std::string DamageOf(const TemporaryFile& log) {
  std::string damage;
  const std::string refusal = Refusal([&] { damage = Replay(log.path()).damage; });
  return refusal + damage;
}

class EventLogTest : public ::testing::Test {
 protected:
  // Requests that share a prefix, one that is aborted, one that a stop string ends.
  void RecordStory(const SchedulerConfig& config = Config(2)) {
    num_steps_ = Record(log_, config, 24, [](Serving& serving) {
      for (RequestId id = 1; id <= 6; ++id) serving.Submit(id * 1000, Prompt(9), Greedy(12));
      for (int i = 0; i < 4; ++i) serving.Step();
      serving.Abort(2000);
      serving.scheduler().Stop(3000, 1);
      serving.Step();
      serving.scheduler().ResetPrefixCache();
      serving.Submit(7, Prompt(12), Greedy(3));
    });
  }

  TemporaryFile log_;
  std::int64_t num_steps_ = 0;
};

TEST_F(EventLogTest, ReplaysEveryDecision) {
  RecordStory();
  ExpectReplays(log_.path(), num_steps_);
  EXPECT_EQ(Replay(log_.path()).num_requests, 7);
}

TEST_F(EventLogTest, KnowsNeitherTokenIdsNorNames) {
  const std::string secret = "tenant-of-mine", salt = "salt-of-mine";
  SchedulerConfig config = Config();
  config.policy = SchedulingPolicy::kFair;
  config.tenant_weights = {{secret, 2.0}};
  config.vocab_size = 1 << 24;
  std::vector<TokenId> prompt(16, 0x00414141);
  const auto story = [&](Serving& serving) {
    serving.Submit(0x4242424242, prompt, Greedy(3), {.cache_salt = salt, .tenant = secret});
  };
  const std::int64_t num_steps = Record(log_, config, 24, story);
  const std::string bytes = log_.Read();
  for (const std::string& word : {secret, salt, std::string("AAA"), std::string("BBB")}) {
    EXPECT_EQ(bytes.find(word), std::string::npos) << word;
  }
  ExpectReplays(log_.path(), num_steps);
  const TemporaryFile again;
  Record(again, config, 24, story);
  EXPECT_NE(again.Read(), bytes) << "hashes are keyed afresh";
}

TEST_F(EventLogTest, PrefixHitsComeBackFromHashesAlone) {
  SchedulerConfig config = Config();
  std::int32_t num_cached = 0;
  const std::int64_t num_steps = Record(log_, config, 24, [&](Serving& serving) {
    serving.Submit(1, Prompt(10), Greedy(8));
    serving.RunUntilDrained();
    std::vector<TokenId> turn = Prompt(10);  // the next turn of a conversation: prompt and answer
    const auto& answer = serving.outcome(1).tokens;
    turn.insert(turn.end(), answer.begin(), answer.end());
    turn.push_back(5);
    serving.Submit(2, turn, Greedy(4));
    serving.Submit(3, turn, Greedy(4), {.cache_salt = "other"});
    serving.RunUntilDrained();
    num_cached = serving.outcome(2).num_cached;
    EXPECT_EQ(serving.outcome(3).num_cached, 0);
  });
  EXPECT_EQ(num_cached, 16);
  ExpectReplays(log_.path(), num_steps);
}

TEST_F(EventLogTest, ListsOfNewRowsDecideWhoFitsThePlan) {
  SchedulerConfig config = Config();
  config.max_num_batched_tokens = 64;
  config.vocab_size = 40000;
  RequestNumbers numbers = Greedy(3);
  numbers.allowed_token_ids.emplace(40000);
  for (std::int64_t i = 0; i < 40000; ++i)
    (*numbers.allowed_token_ids)[static_cast<std::size_t>(i)] = i;
  numbers.logit_bias = {{1, 1.0}, {2, 1.0}};
  numbers.repetition_penalty = 1.5;
  const std::int64_t num_steps = Record(log_, config, 24, [&](Serving& serving) {
    for (RequestId id = 0; id < 4; ++id) serving.Submit(id, Prompt(5), numbers);
    serving.Step();
    EXPECT_EQ(serving.scheduler().stats().num_running, 2) << "lists fill the plan";
  });
  ExpectReplays(log_.path(), num_steps);
}

TEST_F(EventLogTest, TimeAndPrioritiesReplay) {
  SchedulerConfig config = Config();
  config.policy = SchedulingPolicy::kPriority;
  config.priority_ageing_s = 0.001;
  config.max_num_seqs = 1;
  const std::int64_t num_steps = Record(log_, config, 24, [&](Serving& serving) {
    for (std::int32_t i = 0; i < 8; ++i) {
      serving.scheduler().SetTime(1'000'000 + 700 * i);
      serving.Submit(i, Prompt(5), Greedy(3), {.priority = i % 3});
      serving.Step();
    }
  });
  ExpectReplays(log_.path(), num_steps);
  EXPECT_NEAR(Replay(log_.path()).seconds, 0.0049, 1e-9);
}

TEST_F(EventLogTest, ATokenOutsideTheVocabularyReplays) {
  const SchedulerConfig config = Config();
  {
    BlockAllocator allocator(24);
    Scheduler scheduler(config, allocator);
    scheduler.Record(log_.path());
    const PlanBuffers buffers(scheduler, 1);
    scheduler.Submit(1, Prompt(5), RequestParams(Greedy(3)));
    scheduler.Schedule();
    scheduler.Update(1, std::vector<TokenId>{-1});
    EXPECT_EQ(scheduler.Schedule(), -1);
  }
  ExpectReplays(log_.path(), 1);
}

TEST_F(EventLogTest, ASimulationReplays) {
  simulation::ReplicaConfig config = MillisecondReplica(60);
  config.event_log = log_.path();
  config.scheduler.num_steps_in_flight = 2;
  const auto result = Simulate(config, FixedWorkload(100, 200, 40));
  EXPECT_GT(result.totals.num_preemptions, 0);
  ExpectReplays(log_.path(), result.totals.num_steps);
}

TEST_F(EventLogTest, AHeartbeatMayEndAReplay) {
  struct Enough {};
  simulation::ReplicaConfig config = MillisecondReplica(100);
  config.event_log = log_.path();
  Simulate(config, FixedWorkload(1, 1500, 1));  // a time, a plan and a result for each step
  EXPECT_THROW(Replay(log_.path(), [] { throw Enough{}; }), Enough);
}

TEST_F(EventLogTest, RecordingBeginsBeforeTheFirstRequest) {
  Serving serving(Config(), 24);
  serving.Submit(1, Prompt(3), Greedy(3));
  serving.Step();
  EXPECT_THROW(serving.scheduler().Record(log_.path()), InvalidArgument);
  EXPECT_EQ(Refusal([] { Serving(Config(), 24).scheduler().Record("/no/such/folder/log"); }),
            "cannot write /no/such/folder/log: No such file or directory");
}

TEST_F(EventLogTest, AFullDiskEndsTheLogAndNotTheServing) {
  Serving serving(Config(), 24);
  serving.scheduler().Record("/dev/full");
  serving.Submit(1, Prompt(3), Greedy(3));
  serving.RunUntilDrained();
  EXPECT_EQ(serving.outcome(1).tokens.size(), 3);
}

// ---- logs that differ, or are damaged

TEST_F(EventLogTest, SaysWhereADecisionDiffers) {
  SchedulerConfig config = Config();
  RecordStory(config);
  std::string records = RecordsOf(log_.Read());
  char& num_blocks = records[2 + static_cast<std::size_t>(records[1] / 2)];  // behind a text
  ASSERT_EQ(num_blocks, 2 * 24);
  num_blocks = 2 * 5;
  log_.Write(FileOf(records));
  const ReplayReport report = Replay(log_.path());
  ASSERT_TRUE(report.difference);
  EXPECT_EQ(report.damage, "");
  EXPECT_EQ(report.difference->step, report.num_steps + 1);
  EXPECT_NE(report.difference->expected, report.difference->found);
}

TEST_F(EventLogTest, ATruncatedLogReplaysUpToThere) {
  simulation::ReplicaConfig config = MillisecondReplica(120);
  config.event_log = log_.path();
  config.step_time.buckets[0].launch_s = 0.05;  // a frame each second
  const auto result = Simulate(config, FixedWorkload(20, 50, 40));
  const std::string bytes = log_.Read();
  log_.Write(bytes.substr(0, bytes.size() - 10));
  const ReplayReport report = Replay(log_.path());
  EXPECT_FALSE(report.difference);
  EXPECT_GT(report.num_steps, 0);
  EXPECT_LT(report.num_steps, result.totals.num_steps);
  EXPECT_NE(report.damage.find(" is truncated: the frame at byte "), std::string::npos)
      << report.damage;
  log_.Write(bytes.substr(0, 20));
  EXPECT_EQ(Refusal([&] { Replay(log_.path()); }),
            log_.path() +
                " is truncated: the frame at byte 12 has 13 bytes, and the file ends "
                "after 8 of them");
}

TEST_F(EventLogTest, AnyFlippedByteIsSeen) {
  RecordStory();
  const std::string bytes = log_.Read();
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    std::string damaged = bytes;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x24);
    log_.Write(damaged);
    EXPECT_NE(DamageOf(log_), "") << "byte " << at;
  }
  log_.Write(FileOf("12345").substr(0, 28) + "6");
  EXPECT_EQ(DamageOf(log_), log_.path() +
                                " is corrupted: the checksum of the 5 bytes of the frame "
                                "at byte 12 is not the one that was written");
}

TEST_F(EventLogTest, RecordsThatNoRecorderWritesAreRefused) {
  RecordStory();
  const std::string whole = RecordsOf(log_.Read());
  const auto damage_of = [&](const std::string& records) {
    log_.Write(FileOf(records));
    const std::string damage = DamageOf(log_), where = "in the frame at byte 12, ";
    const std::size_t at = damage.find(where);
    return at == std::string::npos ? damage : damage.substr(at + where.size());
  };
  EXPECT_EQ(damage_of(whole + "\x18"), "a number is 12: must be between 1 and 11");
  EXPECT_EQ(damage_of(whole + "\x02"), "a record is longer than its frame");
  EXPECT_EQ(damage_of(whole + "\x02\x01"), "an event that cannot be: time never goes back");
  EXPECT_EQ(damage_of(whole + "\x06" + std::string(11, '\xff')), "a number has more than 10 bytes");
  EXPECT_EQ(damage_of(whole + std::string("\x10\0\0", 3)),
            "an event that cannot be: update needs a step in flight");
  EXPECT_EQ(damage_of(whole + std::string("\x10\x02\x04\0\0", 5)),
            "an event that cannot be: row 2 of a step of 2 rows");
  EXPECT_EQ(damage_of(whole + "\x10\x7e"), "a number is 63: must be between 0 and 1");
  EXPECT_EQ(damage_of(std::string("\0\x82\x10", 3)), "a text has 1025 bytes");
  std::string empty_pool = whole;
  empty_pool[2 + static_cast<std::size_t>(whole[1] / 2)] = 0;  // behind a text
  EXPECT_EQ(damage_of(empty_pool), "num_blocks is 0");
  EXPECT_EQ(damage_of(std::string("\2", 1)), "a number is 1: must be between 0 and 0");
}

TEST_F(EventLogTest, AnotherVersionAndOtherFilesAreRefused) {
  RecordStory();
  std::string bytes = log_.Read();
  bytes[8] = 1;
  log_.Write(bytes);
  EXPECT_EQ(Refusal([&] { Replay(log_.path()); }),
            log_.path() + " is an event log of version 1: this runtime reads version 4");
  log_.Write("{\"version\": 1}");
  EXPECT_EQ(Refusal([&] { Replay(log_.path()); }),
            log_.path() + " is no event log: it does not begin with 'rt-event' and a version");
  EXPECT_EQ(Refusal([] { Replay("/no/such/log"); }),
            "cannot read /no/such/log: No such file or directory");
}

}  // namespace
}  // namespace runtime::testing
