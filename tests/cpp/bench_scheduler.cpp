// Time of schedule and update at a number of running decodes, of an admission decision beside them,
// and of a submit with a full prefix hit. Prints medians; not a test.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "runtime/scheduler.h"

namespace {

using Clock = std::chrono::steady_clock;

double Microseconds(Clock::duration d) {
  return std::chrono::duration<double, std::micro>(d).count();
}

double Median(std::vector<double>& values) {
  std::ranges::nth_element(values, values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2));
  return values[values.size() / 2];
}

struct Bench {
  Bench(std::int32_t num_seqs, std::int32_t num_blocks, std::int32_t max_model_len = 16384)
      : allocator(num_blocks) {
    runtime::SchedulerConfig config;
    config.max_num_seqs = num_seqs;
    config.max_num_batched_tokens = 8192;
    config.max_model_len = max_model_len;
    config.vocab_size = 128000;
    config.admission_reserve = 0.2;
    scheduler = std::make_unique<runtime::Scheduler>(config, allocator);
    for (auto& buffer : buffers)
      buffer.resize(static_cast<std::size_t>(scheduler->plan_capacity()));
    const std::vector<runtime::PlanBuffer> spans(buffers.begin(), buffers.end());
    scheduler->AttachPlanBuffers(spans);
  }

  // One step; returns the microseconds of its Schedule.
  double Step() {
    const auto start = Clock::now();
    const std::int32_t buffer = scheduler->Schedule();
    const auto planned = Clock::now();
    const std::int32_t num_rows = buffers[static_cast<std::size_t>(buffer)][4];
    scheduler->Update(++step, std::vector<runtime::TokenId>(static_cast<std::size_t>(num_rows), 7));
    return Microseconds(planned - start);
  }

  runtime::BlockAllocator allocator;
  std::vector<std::vector<std::int32_t>> buffers{2};
  std::unique_ptr<runtime::Scheduler> scheduler;
  std::int32_t step = 0;
};

void TimeDecodes(std::int32_t num_seqs) {
  Bench bench(num_seqs, num_seqs * 80);
  for (runtime::RequestId id = 0; id < num_seqs; ++id) {
    std::vector<runtime::TokenId> prompt(100, static_cast<runtime::TokenId>(id));
    bench.scheduler->Submit(id, prompt, runtime::RequestParams({.max_tokens = 1100}));
  }
  std::vector<runtime::TokenId> tokens(static_cast<std::size_t>(num_seqs), 7);
  std::vector<double> schedule, update;
  while (bench.scheduler->stats().num_finished == 0) {
    const auto start = Clock::now();
    const std::int32_t buffer = bench.scheduler->Schedule();
    const auto planned = Clock::now();
    const std::size_t num_rows =
        static_cast<std::size_t>(bench.buffers[static_cast<std::size_t>(buffer)][4]);
    tokens.resize(num_rows);
    const auto before_update = Clock::now();
    bench.scheduler->Update(++bench.step, tokens);
    const auto done = Clock::now();
    if (bench.step < 20) continue;
    schedule.push_back(Microseconds(planned - start));
    update.push_back(Microseconds(done - before_update));
  }
  const double s = Median(schedule), u = Median(update);
  std::printf(
      "decode %5d rows: schedule %6.2f us, update %6.2f us, both %6.2f us (median of %zu steps)\n",
      num_seqs, s, u, s + u, schedule.size());
}

// A decision beside so many decodes: what Schedule takes longer while a request waits that fits now
// but not at the predicted peak.
void TimeAdmission(std::int32_t num_seqs) {
  const std::int32_t num_blocks = num_seqs * 80, waiting_len = num_blocks / 4 * 3 * 16;
  Bench bench(num_seqs + 1, num_blocks, waiting_len + 16);
  const auto submit = [&](runtime::RequestId id, std::int32_t prompt_len, std::int64_t max_tokens) {
    const std::vector<runtime::TokenId> prompt(static_cast<std::size_t>(prompt_len),
                                               static_cast<runtime::TokenId>(id));
    bench.scheduler->Submit(id, prompt, runtime::RequestParams({.max_tokens = max_tokens}));
  };
  runtime::RequestId id = 0;
  for (; id < 2048; ++id) submit(id, 1, 1 + id * 7919 % 300);  // the history
  while (bench.scheduler->stats().num_finished < id) bench.Step();
  for (std::int32_t i = 0; i < num_seqs; ++i) submit(id++, 100, 1100);
  for (int i = 0; i < 40; ++i) bench.Step();
  std::vector<double> alone, beside;
  for (int i = 0; i < 60; ++i) alone.push_back(bench.Step());
  submit(id, waiting_len, 1);
  for (int i = 0; i < 60; ++i) beside.push_back(bench.Step());
  const runtime::SchedulerStats stats = bench.scheduler->stats();
  std::printf("admission decision beside %5d: %6.2f us%s\n", num_seqs,
              Median(beside) - Median(alone),
              stats.num_running == num_seqs && stats.num_waiting == 1 ? "" : " (INVALID)");
}

void TimePrefixHit() {
  constexpr std::int32_t kLen = 8192;
  Bench bench(4, 4096);
  std::vector<runtime::TokenId> prompt(kLen + 1);
  for (std::int32_t i = 0; i <= kLen; ++i) prompt[static_cast<std::size_t>(i)] = i;
  std::vector<double> times;
  for (runtime::RequestId id = 0; id < 200; ++id) {
    const auto start = Clock::now();
    bench.scheduler->Submit(id, prompt, runtime::RequestParams({.max_tokens = 1}));
    bench.scheduler->Schedule();
    const auto done = Clock::now();
    if (id > 1) times.push_back(Microseconds(done - start));
    do {
      bench.scheduler->Update(++bench.step, std::vector<runtime::TokenId>{1});
    } while (bench.scheduler->Schedule() >= 0);
  }
  std::printf("submit and schedule of %d tokens, all but one cached: %6.1f us\n", kLen + 1,
              Median(times));
}

}  // namespace

int main() {
  for (const std::int32_t num_seqs : {1, 64, 256, 1024}) TimeDecodes(num_seqs);
  for (const std::int32_t num_seqs : {64, 256, 1024}) TimeAdmission(num_seqs);
  TimePrefixHit();
}
