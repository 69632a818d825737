// Every error that a C++ program can meet, as the exception that the headers promise.
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <future>
#include <limits>
#include <thread>

#include "engine_testing.h"

namespace runtime {
namespace {

namespace fs = std::filesystem;

InvalidRequest Refused(Request request) {
  return Thrown<InvalidRequest>([&] { SharedEngine().Submit(std::move(request)); });
}

// The stream's error.
template <typename E>
E Failed(Engine& engine, Request request) {
  const RequestId id = engine.Submit(std::move(request));
  return Thrown<E>([&] { Read(engine, id); });
}

TEST(EngineErrorsTest, NumbersAreRefusedAtSubmitWithTheNearestThatWorks) {
  const InvalidRequest e = Refused({.prompt = "a", .temperature = 3});
  EXPECT_EQ(e.code(), "invalid_request");
  EXPECT_EQ(e.param(), "temperature");
  EXPECT_EQ(e.value(), "3");
  EXPECT_EQ(e.suggestion(), "2");
  EXPECT_TRUE(Has(e.what(), e.limit())) << e.what();
  EXPECT_EQ(Refused({.prompt = "a", .n = 0}).param(), "n");
  EXPECT_EQ(Refused({.prompt = "a", .top_p = 0}).param(), "top_p");
  EXPECT_EQ(Refused({.prompt = "a", .top_k = -2}).param(), "top_k");
  EXPECT_EQ(Refused({.prompt = "a", .min_p = 2}).param(), "min_p");
  EXPECT_EQ(Refused({.prompt = "a", .presence_penalty = 3}).param(), "presence_penalty");
  EXPECT_EQ(Refused({.prompt = "a", .frequency_penalty = -3}).param(), "frequency_penalty");
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(Refused({.prompt = "a", .repetition_penalty = nan}).param(), "repetition_penalty");
  EXPECT_EQ(Refused({.prompt = "a", .max_tokens = 0}).param(), "max_tokens");
  EXPECT_EQ(Refused({.prompt = "a", .max_tokens = 4, .min_tokens = 5}).param(), "min_tokens");
  EXPECT_EQ(Refused({.prompt = "a", .logprobs = 21}).param(), "logprobs");
  EXPECT_EQ(Refused({.prompt = "a", .logit_bias = {{1, 101.0}}}).param(), "logit_bias");
  EXPECT_EQ(Refused({.prompt = "a", .stop_token_ids = {-1}}).param(), "stop_token_ids");
  EXPECT_EQ(Refused({.prompt = "a", .allowed_token_ids = {-1}}).param(), "allowed_token_ids");
}

TEST(EngineErrorsTest, WhatTheModelMustSayIsTheStreamsError) {
  Engine& engine = SharedEngine();
  using E = InvalidRequest;
  EXPECT_EQ(Failed<E>(engine, {.prompt = ""}).param(), "prompt");
  EXPECT_EQ(Failed<E>(engine, {.prompt = std::vector<TokenId>{}}).param(), "prompt");
  EXPECT_EQ(Failed<E>(engine, {.prompt = "\xff"}).param(), "prompt");  // not UTF-8
  EXPECT_EQ(Failed<E>(engine, {.prompt = std::vector<TokenId>{-1}}).param(), "prompt_token_ids");
  EXPECT_EQ(Failed<E>(engine, {.prompt = std::vector<TokenId>{1 << 30}}).param(), "prompt_ids");
  EXPECT_TRUE(Has(Failed<E>(engine, {.prompt = std::string(100'000, '7')}).what(), "tokens"));
  EXPECT_EQ(Failed<E>(engine, {.prompt = "a", .stop = {""}}).param(), "stop");
  EXPECT_EQ(Failed<E>(engine, {.prompt = "a", .stop = {"b"}, .detokenize = false}).param(), "stop");
  EXPECT_EQ(Failed<E>(engine, {.prompt = "a", .priority = 1ll << 40}).param(), "priority");
  EXPECT_EQ(Failed<E>(engine, {.prompt = "a", .tenant = std::string(300, 'x')}).param(), "tenant");
  EXPECT_EQ(Failed<E>(engine, {.prompt = "a", .deadline_s = -1.0}).param(), "deadline_s");
  EXPECT_EQ(Thrown<E>([&] { engine.Score("a", ""); }).param(), "continuation");
  EXPECT_EQ(Ask(engine, {.prompt = "12+35=", .temperature = 0}).text, "47");  // it goes on
}

TEST(EngineErrorsTest, FormsThatAreWrongAreTheStreamsError) {
  const auto refusal = [](StructuredOutputs form) {
    return Failed<InvalidRequest>(SharedEngine(), {.prompt = "a", .structured_outputs = form});
  };
  EXPECT_PRED2(Has, refusal({}).what(), "exactly one of json, regex");
  EXPECT_EQ(refusal({.json = "{"}).param(), "structured_outputs.json");
  EXPECT_PRED2(Has, refusal({.json = R"({"type": "bogus"})"}).what(), "bogus");
  EXPECT_EQ(refusal({.regex = std::string(9000, 'x')}).suggestion(), "8192");
  EXPECT_EQ(refusal({.regex = "\xff"}).param(), "structured_outputs.regex");
}

TEST(EngineErrorsTest, DeadlinesEndARequest) {
  Request request = Endless();
  request.deadline_s = 1e-4;
  const auto e = Failed<DeadlineExceeded>(SharedEngine(), std::move(request));
  EXPECT_EQ(e.code(), "deadline_exceeded");
  EXPECT_TRUE(Has(e.what(), "deadline_s")) << e.what();
}

TEST(EngineErrorsTest, AFullQueueIsACapacityError) {
  Engine engine(Config({{"max_queued_requests", 0}}));
  const auto e = Failed<CapacityError>(engine, {.prompt = "12+35="});
  EXPECT_EQ(e.code(), "capacity_exceeded");
  EXPECT_TRUE(Has(e.what(), "max_queued_requests")) << e.what();
}

TEST(EngineErrorsTest, ArgumentsAreCheckedByName) {
  auto e = Thrown<ConfigError>([] { Engine engine(Config({{"max_num_seq", 4}})); });
  EXPECT_EQ(e.code(), "config_error");
  EXPECT_TRUE(Has(e.what(), "max_num_seqs")) << e.what();  // did you mean
  e = Thrown<ConfigError>([] { Engine engine(Config({{"max_num_seqs", 0}})); });
  EXPECT_TRUE(Has(e.what(), "nearest: 1")) << e.what();
  e = Thrown<ConfigError>([] { Engine engine(Config({{"max_num_seqs", "many"}})); });
  EXPECT_TRUE(Has(e.what(), "integer")) << e.what();
  e = Thrown<ConfigError>([] { Engine::Plan(Config({{"dtype", "float31"}})); });
  EXPECT_TRUE(Has(e.what(), "float32")) << e.what();
}

TEST(EngineErrorsTest, WhatThisMachineLacks) {
  const auto e =
      Thrown<CapacityError>([] { Engine engine(Config({{"num_kv_blocks", 2147483646}})); });
  EXPECT_EQ(e.code(), "capacity_exceeded");
  EXPECT_TRUE(Has(e.what(), " GiB are needed")) << e.what();
  if (fs::exists("/dev/nvidiactl")) return;
  const auto cuda = Thrown<DeviceNotFound>([] { Engine engine(Config({{"device", "cuda"}})); });
  EXPECT_EQ(cuda.code(), "device_not_found");
  EXPECT_TRUE(Has(cuda.what(), "device='cuda'")) << cuda.what();
}

// A folder for a model; it has a config.json when `config` is not empty.
std::string ModelFolder(const std::string& name, const std::string& config) {
  const fs::path folder = fs::path(testing::TempDir()) / (name + std::to_string(getpid()));
  fs::create_directories(folder);
  if (!config.empty()) std::ofstream(folder / "config.json") << config;
  return folder;
}

TEST(EngineErrorsTest, ModelsThatAreNotThereOrWrong) {
  EngineConfig config = Config();
  config.model = "/no/such/model";
  const auto absent = Thrown<ModelNotFound>([&] { Engine engine(config); });
  EXPECT_EQ(absent.code(), "model_not_found");
  EXPECT_TRUE(Has(absent.what(), "/no/such/model")) << absent.what();
  config.model = ModelFolder("empty", "");
  const auto empty = Thrown<ModelFormatError>([&] { Engine engine(config); });
  EXPECT_EQ(empty.code(), "model_format_error");
  EXPECT_EQ(empty.what(), config.model + " has no config.json");
  config.model = ModelFolder("unknown", R"({"model_type": "lama"})");
  const auto unknown = Thrown<ModelFormatError>([&] { Engine::Plan(config); });
  EXPECT_TRUE(Has(unknown.what(), "model_type 'lama' is unknown; known: ")) << unknown.what();
  EXPECT_EQ(unknown.hint(), "nearest: llama");
  Engine engine(Config());  // a failed start leaves no trace
  EXPECT_EQ(Ask(engine, {.prompt = "12+35=", .temperature = 0}).text, "47");
}

TEST(EngineErrorsTest, AStepThatHangsEndsTheEngine) {
  Engine engine(Config({{"step_timeout", 1e-6}}));
  std::vector<RequestId> ids;
  for (int i = 0; i < 4; ++i) ids.push_back(engine.Submit(Endless()));
  for (const RequestId id : ids) {
    const auto e = Thrown<EngineDead>([&] { Read(engine, id); });
    EXPECT_EQ(e.code(), "engine_dead");
    EXPECT_TRUE(Has(e.what(), "step_timeout")) << e.what();
  }
  Failed<EngineDead>(engine, {.prompt = "later"});
  Thrown<EngineDead>([&] { engine.Stats(); });
}

TEST(EngineErrorsTest, DrainedEnginesFinishAndRefuse) {
  Engine engine(Config());
  const RequestId id = engine.Submit({.prompt = "12+35=", .temperature = 0});
  const RequestId endless = engine.Submit(Endless());
  EXPECT_EQ(Thrown<DeadlineExceeded>([&] { engine.Drain(std::chrono::nanoseconds(1)); }).code(),
            "deadline_exceeded");
  engine.Abort(endless);
  engine.Drain();
  EXPECT_EQ(Read(engine, id).text, "47");  // what came can still be read
  const auto e = Thrown<RequestAborted>([&] { engine.Submit({.prompt = "12+35="}); });
  EXPECT_EQ(e.code(), "request_aborted");
  EXPECT_TRUE(Has(e.what(), "drained")) << e.what();
  Thrown<RequestAborted>([&] { engine.Score("a", "b"); });
}

TEST(EngineErrorsTest, IdsThatAreNotRequests) {
  Engine& engine = SharedEngine();
  Chunk chunk;
  EXPECT_EQ(Thrown<InvalidArgument>([&] { engine.Next(1 << 30); }).code(), "invalid_argument");
  Thrown<InvalidArgument>([&] { engine.TryNext(-1, chunk); });
  const RequestId id = engine.Submit({.prompt = "12+35="});
  Read(engine, id);
  Thrown<InvalidArgument>([&] { engine.Next(id); });
}

TEST(EngineErrorsTest, ACallbackThatThrowsIsReported) {
  std::promise<std::string> report;
  EngineConfig config = Config();
  config.on_callback_error = [&](RequestId, std::exception_ptr error) {
    report.set_value(Thrown<std::runtime_error>([&] { std::rethrow_exception(error); }).what());
  };
  Engine engine(config);
  engine.Submit(Endless(), {[](RequestId, const Chunk&) { throw std::runtime_error("disk full"); },
                            [](RequestId, std::exception_ptr) { FAIL() << "called again"; }});
  EXPECT_EQ(report.get_future().get(), "disk full");
  while (engine.Stats().num_running > 0) std::this_thread::yield();  // it was aborted
  EXPECT_EQ(Ask(engine, {.prompt = "12+35=", .temperature = 0}).text, "47");
}

TEST(EngineErrorsTest, WithoutAReporterItIsALineOnStandardError) {
  Engine& engine = SharedEngine();
  testing::internal::CaptureStderr();
  const RequestId id = engine.Submit(
      Endless(), {[](RequestId, const Chunk&) { throw std::runtime_error("disk full"); }, {}});
  while (engine.Stats().num_running > 0) std::this_thread::yield();
  std::promise<void> ended;  // callbacks come one after another
  engine.Submit({.prompt = "12+35="}, {{}, [&](RequestId, auto) { ended.set_value(); }});
  ended.get_future().wait();
  const std::string line = "runtime: a callback of request " + std::to_string(id) +
                           " threw, so it is aborted: disk full\n";
  const std::string printed = testing::internal::GetCapturedStderr();
  EXPECT_TRUE(Has(printed, line)) << printed;
}

}  // namespace
}  // namespace runtime
