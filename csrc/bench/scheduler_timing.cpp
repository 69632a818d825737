#include "bench/scheduler_timing.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "runtime/error.h"
#include "runtime/scheduler.h"
#include "runtime/step_plan.h"

namespace runtime::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int32_t kBlockSize = 16, kVocabSize = 32000, kMaxTokensPerStep = 8192;
constexpr TokenId kToken = 7;  // that every step samples

double Microseconds(Clock::duration d) {
  return std::chrono::duration<double, std::micro>(d).count();
}

// The value that so large a share of the others is below.
double Quantile(std::vector<double>& values, double share) {
  const auto rank = static_cast<std::ptrdiff_t>(share * static_cast<double>(values.size() - 1));
  std::ranges::nth_element(values, values.begin() + rank);
  return values[static_cast<std::size_t>(rank)];
}

double Median(std::vector<double>& values) { return Quantile(values, 0.5); }

SchedulerConfig ConfigOf(std::int32_t max_num_seqs, std::int32_t max_model_len) {
  SchedulerConfig config;
  config.max_num_seqs = max_num_seqs;
  config.max_num_batched_tokens = std::max(kMaxTokensPerStep, max_num_seqs);
  config.block_size = kBlockSize;
  config.max_model_len = max_model_len;
  config.vocab_size = kVocabSize;
  return config;
}

RequestParams Greedy(std::optional<std::int64_t> max_tokens) {
  return RequestParams({.temperature = 0.0, .ignore_eos = true, .max_tokens = max_tokens});
}

struct StepTimes {
  double schedule_us, update_us;
  bool decodes_all;  // every row decodes, as many as were expected
};

// A scheduler, its pool and the buffers for its plans.
class Bench {
 public:
  Bench(const SchedulerConfig& config, std::int32_t num_blocks)
      : allocator_(num_blocks), scheduler_(config, allocator_) {
    for (auto& buffer : buffers_) {
      buffer.resize(static_cast<std::size_t>(scheduler_.plan_capacity()));
    }
    const std::vector<PlanBuffer> spans(buffers_.begin(), buffers_.end());
    scheduler_.AttachPlanBuffers(spans);
  }

  void SubmitRandom(RequestId id, std::int32_t prompt_len, const RequestParams& params) {
    std::vector<TokenId> prompt(static_cast<std::size_t>(prompt_len));
    for (TokenId& token : prompt) {
      token = static_cast<TokenId>(random_() % static_cast<std::uint32_t>(kVocabSize));
    }
    scheduler_.Submit(id, std::move(prompt), params);
  }

  StepTimes Step(std::int32_t num_decodes) {
    const auto start = Clock::now();
    const std::vector<std::int32_t>& plan =
        buffers_[static_cast<std::size_t>(scheduler_.Schedule())];
    const auto planned = Clock::now();
    const std::int32_t num_rows = plan[step_plan::kHeaderNumRows];
    tokens_.resize(static_cast<std::size_t>(num_rows), kToken);
    const auto ready = Clock::now();
    scheduler_.Update(plan[step_plan::kHeaderStep], tokens_);
    return {Microseconds(planned - start), Microseconds(Clock::now() - ready),
            num_rows == num_decodes && plan[step_plan::kHeaderNumDecodeRows] == num_decodes};
  }

  Scheduler& scheduler() { return scheduler_; }
  std::mt19937& random() { return random_; }

 private:
  BlockAllocator allocator_;
  Scheduler scheduler_;
  std::vector<std::vector<std::int32_t>> buffers_{2};
  std::vector<TokenId> tokens_;
  std::mt19937 random_;
};

void Call(const Tick& tick) {
  if (tick) tick();
}

std::vector<double> ScheduleTimes(Bench& bench, int num_steps, const Tick& tick) {
  std::vector<double> times;
  for (int i = 0; i < num_steps; ++i) {
    times.push_back(bench.Step(0).schedule_us);
    Call(tick);
  }
  return times;
}

// Finishes requests of 1 to 299 tokens, whose lengths the predictions then go by.
RequestId MakeHistory(Bench& bench, const Tick& tick) {
  constexpr RequestId kNumFinished = 2048;
  for (RequestId id = 0; id < kNumFinished; ++id) {
    bench.SubmitRandom(id, 1, Greedy(1 + bench.random()() % 299));
  }
  while (bench.scheduler().stats().num_finished < kNumFinished) {
    bench.Step(0);
    Call(tick);
  }
  return kNumFinished;
}

}  // namespace

DecodeTimes TimeDecodes(std::int32_t batch, std::int32_t num_steps, const Tick& tick) {
  constexpr std::int32_t kPromptLen = 64;
  const std::int32_t max_model_len = kPromptLen + num_steps + 256;
  SchedulerConfig config = ConfigOf(batch, max_model_len);
  config.admission = AdmissionMode::kNone;
  Bench bench(config, (batch + 1) * (max_model_len / kBlockSize + 2));
  for (RequestId id = 0; id < batch; ++id) bench.SubmitRandom(id, kPromptLen, Greedy({}));
  std::vector<double> schedule, update, both;
  while (both.size() < static_cast<std::size_t>(num_steps)) {
    const StepTimes step = bench.Step(batch);
    Call(tick);
    if (!step.decodes_all) continue;  // prompts, at the start
    schedule.push_back(step.schedule_us);
    update.push_back(step.update_us);
    both.push_back(step.schedule_us + step.update_us);
  }
  return {Median(schedule), Median(update), Median(both), Quantile(both, 0.99)};
}

double TimeAdmission(std::int32_t batch, const Tick& tick) {
  constexpr int kNumSteps = 60;
  const std::int32_t num_blocks = batch * 80, waiting_len = num_blocks / 4 * 3 * kBlockSize;
  SchedulerConfig config = ConfigOf(batch + 1, waiting_len + kBlockSize);
  config.admission_reserve = 0.2;
  Bench bench(config, num_blocks);
  RequestId id = MakeHistory(bench, tick);
  for (std::int32_t i = 0; i < batch; ++i) bench.SubmitRandom(id++, 100, Greedy(1100));
  ScheduleTimes(bench, 40, tick);  // until all decode
  std::vector<double> alone = ScheduleTimes(bench, kNumSteps, tick);
  bench.SubmitRandom(id, waiting_len, Greedy(1));
  std::vector<double> beside = ScheduleTimes(bench, kNumSteps, tick);
  const SchedulerStats stats = bench.scheduler().stats();
  if (stats.num_running != batch || stats.num_waiting != 1) {
    throw InvariantError("no request waited beside " + std::to_string(batch) + " decodes");
  }
  return Median(beside) - Median(alone);
}

double TimePrefixHit(std::int32_t prompt_len, const Tick& tick) {
  constexpr RequestId kNumRequests = 200;
  const SchedulerConfig config = ConfigOf(1, prompt_len + 256);
  Bench bench(config, 2 * (prompt_len / kBlockSize + 16));
  std::vector<TokenId> prompt(static_cast<std::size_t>(prompt_len));
  for (TokenId& token : prompt) token = static_cast<TokenId>(bench.random()() % kVocabSize);
  std::vector<double> times;
  for (RequestId id = 0; id <= kNumRequests; ++id) {
    const auto start = Clock::now();
    bench.scheduler().Submit(id, prompt, Greedy(1));
    const double submit_us = Microseconds(Clock::now() - start);
    const double schedule_us = bench.Step(0).schedule_us;
    if (id > 0) times.push_back(submit_us + schedule_us);  // the first one fills the cache
    while (bench.scheduler().stats().num_finished <= id) bench.Step(0);
    Call(tick);
  }
  const std::int64_t cached_len = (prompt_len - 1) / kBlockSize * kBlockSize;
  if (bench.scheduler().stats().num_cached_tokens != kNumRequests * cached_len) {
    throw InvariantError("a prompt was not found in the prefix cache");
  }
  return Median(times);
}

}  // namespace runtime::bench
