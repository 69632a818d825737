// The scheduler and the KV allocator without a model, without Python: three requests share the
// start of their prompts, and every sampled token is 7. Prints what each step computes.
#include <array>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <span>
#include <vector>

#include "runtime/block_allocator.h"
#include "runtime/request_params.h"
#include "runtime/scheduler.h"
#include "runtime/scheduler_config.h"
#include "runtime/step_plan.h"

namespace plan = runtime::step_plan;

namespace {

// 40 tokens that all requests share, then some of their own.
std::vector<runtime::TokenId> Prompt(runtime::RequestId id) {
  std::vector<runtime::TokenId> ids(40);
  std::iota(ids.begin(), ids.end(), 100);
  ids.insert(ids.end(), 8, static_cast<runtime::TokenId>(10 + id));
  return ids;
}

void Print(std::span<const std::int32_t> words) {
  std::printf("step %2d: %d rows (%d decode), %2d tokens;", words[plan::kHeaderStep],
              words[plan::kHeaderNumRows], words[plan::kHeaderNumDecodeRows],
              words[plan::kHeaderNumTokens]);
  const auto rows = words.subspan(words[plan::kHeaderRows]);
  for (std::int32_t i = 0; i < words[plan::kHeaderNumRows]; ++i) {
    const auto row = rows.subspan(i * plan::kRowWords, plan::kRowWords);
    std::printf("  row %d: %d + %d", row[0], row[1], row[2]);
  }
  std::printf("\n");
}

}  // namespace

int main() {
  runtime::SchedulerConfig config;
  config.max_num_seqs = 4;
  config.max_num_batched_tokens = 32;  // a prompt of 48 tokens takes two chunks
  config.max_model_len = 128;
  config.eos_token_ids = {2};

  runtime::BlockAllocator allocator(/*num_blocks=*/32);
  runtime::Scheduler scheduler(config, allocator);
  std::array<std::vector<std::int32_t>, 2> memory;
  std::vector<runtime::PlanBuffer> buffers;
  for (auto& words : memory) {
    words.resize(static_cast<std::size_t>(scheduler.plan_capacity()));
    buffers.emplace_back(words);
  }
  scheduler.AttachPlanBuffers(buffers);

  const runtime::RequestParams params({.max_tokens = 4});
  for (runtime::RequestId id = 0; id < 3; ++id) scheduler.Submit(id, Prompt(id), params);

  for (std::int32_t index = scheduler.Schedule(); index >= 0; index = scheduler.Schedule()) {
    const std::span<const std::int32_t> words = memory[index];
    Print(words);
    const std::vector<runtime::TokenId> sampled(words[plan::kHeaderNumRows], 7);
    const runtime::StepResult& result = scheduler.Update(words[plan::kHeaderStep], sampled);
    for (std::size_t i = 0; i < result.request_ids.size(); ++i) {
      if (result.finish[i] == runtime::FinishReason::kNone) continue;
      std::printf("         request %d finished, %d prompt tokens came from the prefix cache\n",
                  static_cast<int>(result.request_ids[i]), result.num_cached[i]);
    }
  }
  return allocator.num_free() == allocator.num_blocks() ? 0 : 1;
}
