// What an engine does for C++ programs, on the built-in model.
#include <regex.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <future>
#include <thread>

#include "engine_testing.h"
#include "expected_outputs.h"

namespace runtime {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

TEST(EngineTest, TokensAndTextEqualPythons) {
  const auto lines = ExpectedLines("generate");
  if (lines.empty()) GTEST_SKIP() << "test_embedding.py makes $EXPECTED_OUTPUTS";
  ExpectPythonsTokens(SharedEngine(), lines);
}

TEST(EngineTest, ScoresEqualPythons) {
  const auto lines = ExpectedLines("score");  // prompt, continuation, logprobs
  if (lines.empty()) GTEST_SKIP() << "test_embedding.py makes $EXPECTED_OUTPUTS";
  for (const Words& line : lines) {
    const std::vector<double> scores = SharedEngine().Score(line[1], line[2]);
    const Words expected = Split(line[3], ' ');
    ASSERT_EQ(scores.size(), expected.size());
    for (std::size_t i = 0; i < scores.size(); ++i) {
      EXPECT_NEAR(scores[i], std::stod(expected[i]), 1e-4);
    }
  }
}

struct sigaction DispositionOf(int signal) {
  struct sigaction found{};
  sigaction(signal, nullptr, &found);
  return found;
}

// As the program started: a job in the background ignores SIGINT.
const struct sigaction kInterruptAtStart = DispositionOf(SIGINT);
const struct sigaction kPipeAtStart = DispositionOf(SIGPIPE);

TEST(EngineTest, SignalsStayTheHosts) {
  SharedEngine();
  EXPECT_EQ(DispositionOf(SIGINT).sa_handler, kInterruptAtStart.sa_handler);
  EXPECT_EQ(DispositionOf(SIGPIPE).sa_handler, kPipeAtStart.sa_handler);
}

TEST(EngineTest, StreamsTokenByToken) {
  Engine& engine = SharedEngine();
  const RequestId id = engine.Submit(Endless());
  int num_chunks = 0;
  std::size_t num_tokens = 0;
  while (const auto chunk = engine.Next(id)) {
    ++num_chunks;
    num_tokens += chunk->token_ids.size();
  }
  EXPECT_GT(num_chunks, 3);
  EXPECT_GT(num_tokens, 100u);
}

TEST(EngineTest, WhatCameSinceTheLastReadComesAsOne) {
  Engine& engine = SharedEngine();
  const std::int64_t before = engine.Stats().num_output_tokens;
  const RequestId id = engine.Submit(Endless());
  while (engine.Stats().num_output_tokens < before + 50)
    std::this_thread::sleep_for(milliseconds(1));
  std::size_t num_tokens = engine.Next(id)->token_ids.size();
  num_tokens += engine.Next(id)->token_ids.size();
  EXPECT_GE(num_tokens, 50u);
  engine.Abort(id);
  std::int64_t counted = 0;
  while (const auto chunk = engine.Next(id)) {
    num_tokens += chunk->token_ids.size();
    if (chunk->metrics) counted = chunk->metrics->num_output_tokens;
  }
  EXPECT_EQ(static_cast<std::int64_t>(num_tokens), counted);
}

TEST(EngineTest, TokenIdsAreAPromptToo) {
  Engine& engine = SharedEngine();
  const Output output = Ask(engine, {.prompt = std::vector<TokenId>{5, 6, 7}, .max_tokens = 3});
  EXPECT_EQ(output.metrics.value().num_prompt_tokens, 3);
}

TEST(EngineTest, TheLastChunkSaysHowItEnded) {
  Engine& engine = SharedEngine();
  Output output = Ask(engine, {.prompt = "12+35=", .temperature = 0});
  EXPECT_EQ(output.text, "47");
  EXPECT_EQ(output.finish_reason, FinishReason::kStop);
  EXPECT_EQ(output.stop_token_id, -1);  // the end-of-sequence token is none
  ASSERT_TRUE(output.metrics);
  EXPECT_EQ(output.metrics->num_output_tokens, static_cast<int>(output.token_ids.size()));
  EXPECT_GT(output.metrics->ttft_s, 0.0);
  EXPECT_GE(output.metrics->e2e_s, output.metrics->ttft_s);

  output = Ask(engine, {.prompt = "12+35=", .temperature = 0, .max_tokens = 1});
  EXPECT_EQ(output.finish_reason, FinishReason::kLength);
  output = Ask(engine, {.prompt = "12+35=", .temperature = 0, .stop = {"7"}});
  EXPECT_EQ(output.finish_reason, FinishReason::kStop);
  EXPECT_EQ(output.stop_string, "7");
  EXPECT_EQ(output.text, "4");
  EXPECT_TRUE(output.metrics);
  output = Ask(
      engine,
      {.prompt = "12+35=", .temperature = 0, .stop = {"7"}, .include_stop_str_in_output = true});
  EXPECT_EQ(output.text, "47");
}

TEST(EngineTest, BadWordsDoNotCome) {
  Engine& engine = SharedEngine();
  for (const std::string word : {"47", "4", "7"}) {
    const Output output =
        Ask(engine, {.prompt = "12+35=", .temperature = 0, .bad_words = {"zz", word}});
    EXPECT_EQ(output.finish_reason, FinishReason::kStop);
    EXPECT_EQ(output.text.find(word), std::string::npos);
  }
}

// Greedily, and whole.
std::string AnswerOf(StructuredOutputs form) {
  const Output output = Ask(SharedEngine(), {.prompt = "12+35=",
                                             .temperature = 0,
                                             .max_tokens = 200,
                                             .structured_outputs = std::move(form)});
  EXPECT_EQ(output.finish_reason, FinishReason::kStop);
  return output.text;
}

// All of the text, by POSIX's extended syntax: std::regex does not compile under a sanitizer
// without warnings.
bool Matches(const std::string& text, const char* pattern) {
  regex_t compiled;
  EXPECT_EQ(
      regcomp(&compiled, ("^(" + std::string(pattern) + ")$").c_str(), REG_EXTENDED | REG_NOSUB),
      0);
  const bool found = regexec(&compiled, text.c_str(), 0, nullptr, 0) == 0;
  regfree(&compiled);
  return found;
}

TEST(EngineTest, AnswersHaveTheFormThatIsAskedFor) {
  constexpr char kSchema[] = R"({"type": "object", "required": ["sum", "sure"],
      "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 99},
                     "sure": {"type": "boolean"}}, "additionalProperties": false})";
  EXPECT_PRED2(Matches, AnswerOf({.json = kSchema}),
               R"(\s*\{\s*"sum"\s*:\s*[0-9]{1,2}\s*,\s*"sure"\s*:\s*(true|false)\s*\}\s*)");
  EXPECT_PRED2(Matches, AnswerOf({.json = kSchema, .disable_any_whitespace = true}),
               R"(\{"sum":[0-9]{1,2},"sure":(true|false)\})");
  EXPECT_PRED2(Matches, AnswerOf({.regex = "[a-z]{3}-[0-9]{4}"}), "[a-z]{3}-[0-9]{4}");
  EXPECT_PRED2(Matches, AnswerOf({.choice = {{"yes", "no"}}}), "yes|no");
  EXPECT_PRED2(Matches, AnswerOf({.grammar = R"(start: "<" /[0-9]/ ">")"}), "<[0-9]>");
}

TEST(EngineTest, StopTokensAreNamed) {
  Engine& engine = SharedEngine();
  const TokenId second =
      Ask(engine, {.prompt = "12+35=", .temperature = 0, .max_tokens = 2}).token_ids.at(1);
  const Output output =
      Ask(engine, {.prompt = "12+35=", .temperature = 0, .stop_token_ids = {second}});
  EXPECT_EQ(output.finish_reason, FinishReason::kStop);
  EXPECT_EQ(output.stop_token_id, second);
}

TEST(EngineTest, CompletionsAreToldApart) {
  Engine& engine = SharedEngine();
  const auto outputs = ReadAll(engine, engine.Submit({.prompt = "sort(3142)=",
                                                      .n = 3,
                                                      .temperature = 1.5,
                                                      .seed = 5,
                                                      .ignore_eos = true,
                                                      .max_tokens = 12}));
  ASSERT_EQ(outputs.size(), 3u);
  int num_metrics = 0;
  for (const auto& [index, output] : outputs) {
    EXPECT_EQ(output.token_ids.size(), 12u);
    num_metrics += output.metrics.has_value();
  }
  EXPECT_EQ(num_metrics, 1);
  EXPECT_NE(outputs.at(0).token_ids, outputs.at(1).token_ids);
}

TEST(EngineTest, LogprobsComeWithTheirTokens) {
  const Output output =
      Ask(SharedEngine(), {.prompt = "12+35=", .temperature = 0, .max_tokens = 4, .logprobs = 2});
  ASSERT_EQ(output.logprobs.size(), output.token_ids.size());
  for (std::size_t i = 0; i < output.logprobs.size(); ++i) {
    const auto& [ids, values] = output.logprobs[i];
    ASSERT_EQ(ids.size(), 3u);  // the sampled one, then two
    ASSERT_EQ(values.size(), 3u);
    EXPECT_EQ(ids[0], output.token_ids[i]);
    EXPECT_EQ(ids[1], ids[0]);  // greedy: it is the best
    EXPECT_GE(values[1], values[2]);
    EXPECT_LE(values[0], 0.0f);
  }
}

TEST(EngineTest, EveryNumberOfARequestArrives) {
  Engine& engine = SharedEngine();
  const TokenId four =
      Ask(engine, {.prompt = "12+35=", .temperature = 0, .max_tokens = 1}).token_ids.at(0);
  Request request{.prompt = "12+35=", .temperature = 0, .max_tokens = 1};
  request.allowed_token_ids = {four + 1};
  EXPECT_EQ(Ask(engine, request).token_ids.at(0), four + 1);
  request.allowed_token_ids = {};
  request.logit_bias = {{four, -100.0}};
  EXPECT_NE(Ask(engine, request).token_ids.at(0), four);
  request = {.prompt = "12+35=", .temperature = 0, .min_tokens = 9, .detokenize = false};
  const Output output = Ask(engine, request);
  EXPECT_GE(output.token_ids.size(), 9u);
  EXPECT_EQ(output.text, "");
}

TEST(EngineTest, SixteenThreadsShareAnEngine) {
  Engine& engine = SharedEngine();
  std::atomic<int> num_right = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 16; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 4; ++i) {
        const int a = 10 + t, b = 20 + i;
        const std::string prompt = std::to_string(a) + "+" + std::to_string(b) + "=";
        const Output output = Ask(engine, {.prompt = prompt, .temperature = 0});
        num_right += output.text == std::to_string(a + b);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_right, 64);
}

TEST(EngineTest, CallbacksGetChunksAndTheEnd) {
  Engine& engine = SharedEngine();
  std::string text;
  std::promise<std::exception_ptr> ended;
  const Callbacks callbacks{[&](RequestId, const Chunk& chunk) { text += chunk.text; },
                            [&](RequestId, std::exception_ptr error) { ended.set_value(error); }};
  const RequestId id = engine.Submit({.prompt = "12+35=", .temperature = 0}, callbacks);
  EXPECT_EQ(ended.get_future().get(), nullptr);
  EXPECT_EQ(text, "47");
  Chunk chunk;
  EXPECT_THROW(engine.TryNext(id, chunk), InvalidArgument);
}

TEST(EngineTest, ACallbackMaySubmit) {
  Engine& engine = SharedEngine();
  std::string text;
  std::promise<void> ended;
  const auto second = [&](RequestId, std::exception_ptr) {
    engine.Submit({.prompt = "40+2=", .temperature = 0},
                  {[&](RequestId, const Chunk& chunk) { text += chunk.text; },
                   [&](RequestId, std::exception_ptr) { ended.set_value(); }});
  };
  engine.Submit({.prompt = "12+35=", .temperature = 0}, {{}, second});
  ended.get_future().wait();
  EXPECT_EQ(text, "42");
}

TEST(EngineTest, AbortEndsARequestThatRuns) {
  Engine& engine = SharedEngine();
  const RequestId id = engine.Submit(Endless());
  ASSERT_TRUE(engine.Next(id));
  engine.Abort(id);
  engine.Abort(id);
  const Output output = Read(engine, id);
  EXPECT_EQ(output.finish_reason, FinishReason::kAbort);
  EXPECT_TRUE(output.metrics);
  engine.Abort(id);  // long gone
}

TEST(EngineTest, ReleasedRequestsLeaveNothing) {
  Engine& engine = SharedEngine();
  const RequestId id = engine.Submit(Endless());
  ASSERT_TRUE(engine.Next(id));
  engine.Release(id);
  EXPECT_THROW(engine.Next(id), InvalidArgument);
  while (engine.Stats().num_running > 0) std::this_thread::sleep_for(milliseconds(1));
}

TEST(EngineTest, WaitsHaveLimits) {
  Engine& engine = SharedEngine();
  const RequestId id = engine.Submit(Endless());
  Chunk chunk;
  Poll found = engine.TryNext(id, chunk);
  while (found == Poll::kNothingYet) found = engine.Next(id, chunk, milliseconds(1));
  EXPECT_EQ(found, Poll::kChunk);
  EXPECT_FALSE(chunk.token_ids.empty());
  EXPECT_EQ(engine.Next(id, chunk, std::chrono::nanoseconds::max()), Poll::kChunk);
  engine.Release(id);
}

TEST(EngineTest, StatsCount) {
  Engine& engine = SharedEngine();
  const SchedulerStats before = engine.Stats();
  Ask(engine, {.prompt = "12+35=", .temperature = 0, .max_tokens = 2});
  const SchedulerStats after = engine.Stats();
  EXPECT_EQ(after.num_finished, before.num_finished + 1);
  EXPECT_EQ(after.num_output_tokens, before.num_output_tokens + 2);
  EXPECT_EQ(after.num_blocks, 512);
}

TEST(EngineTest, APlanNeedsNoEngine) {
  const MemoryPlan plan = Engine::Plan(Config());
  EXPECT_EQ(plan.kv_blocks, 512);
  EXPECT_GT(plan.weights, 0);
  EXPECT_EQ(plan.kv_cache, plan.kv_bytes_per_token * plan.block_size * (plan.kv_blocks + 1));
  EXPECT_EQ(plan.total, plan.context + plan.weights + plan.kv_cache + plan.workspace + plan.graphs);
}

}  // namespace
}  // namespace runtime
