#include "simulation/replica.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/text.h"
#include "runtime/step_plan.h"

namespace runtime::simulation {
namespace {

constexpr std::int64_t kSlotMask = 0xffffffff;  // a request id is (serial number, slot)

double Seconds(std::int64_t ns) { return static_cast<double>(ns) / kNanoseconds; }

// The scheduler's settings with the simulated vocabulary.
SchedulerConfig WithVocabulary(SchedulerConfig config) {
  config.vocab_size = kVocabSize;
  config.eos_token_ids = {kEos};
  config.max_queued_requests = -1;
  return config;
}

void Add(SchedulerStats& sum, const SchedulerStats& part) {
  sum.num_waiting += part.num_waiting;
  sum.num_running += part.num_running;
  sum.num_blocks += part.num_blocks;
  sum.num_free_blocks += part.num_free_blocks;
  sum.num_cached_blocks += part.num_cached_blocks;
  sum.num_host_blocks += part.num_host_blocks;
  sum.num_cached_host_blocks += part.num_cached_host_blocks;
  sum.num_prefix_queries += part.num_prefix_queries;
  sum.num_prefix_hits += part.num_prefix_hits;
  sum.num_evictions += part.num_evictions;
  sum.num_host_evictions += part.num_host_evictions;
  sum.num_stored_blocks += part.num_stored_blocks;
  sum.num_loaded_blocks += part.num_loaded_blocks;
  sum.num_swaps += part.num_swaps;
  sum.num_steps += part.num_steps;
  sum.num_prompt_tokens += part.num_prompt_tokens;
  sum.num_cached_tokens += part.num_cached_tokens;
  sum.num_output_tokens += part.num_output_tokens;
  sum.num_recomputed_tokens += part.num_recomputed_tokens;
  sum.num_preemptions += part.num_preemptions;
  sum.num_finished += part.num_finished;
}

}  // namespace

std::int32_t ReplicaConfig::max_len() const {
  const std::int64_t pool = std::int64_t{num_blocks} * scheduler.block_size;
  // the last token of an output needs no KV
  return static_cast<std::int32_t>(std::min<std::int64_t>(scheduler.max_model_len, pool + 1));
}

void ReplicaConfig::Validate() const {
  RequireSetting(num_blocks >= 1 && num_blocks <= (1 << 28), "num_blocks", num_blocks,
                 "between 1 and " + Text(1 << 28));
  WithVocabulary(scheduler).Validate();
  step_time.Validate();
}

PlanMemory::PlanMemory(const SchedulerConfig& config) {
  BlockAllocator allocator(1);
  const auto capacity =
      static_cast<std::size_t>(Scheduler(WithVocabulary(config), allocator).plan_capacity());
  words_.resize(static_cast<std::size_t>(config.num_steps_in_flight) + 1);
  for (auto& words : words_) {
    words.resize(capacity);
    buffers_.emplace_back(words);
  }
}

Replica::Replica(const ReplicaConfig& config, const SharedPrefixes& shape, std::int32_t index,
                 const PlanMemory& memory, std::span<RequestRecord> records)
    : config_(config),
      prompts_(shape),
      index_(index),
      records_(records),
      memory_(memory),
      allocator_(config.num_blocks),
      scheduler_(WithVocabulary(config.scheduler), allocator_),
      executor_(config.scheduler.max_num_seqs),
      flights_(2) {
  scheduler_.AttachPlanBuffers(memory.buffers());
  if (!config.event_log.empty()) scheduler_.Record(config.event_log);
}

void Replica::AdvanceTo(std::int64_t until_ns, Feed& feed) {
  for (;;) {
    Deliver(feed);
    if (has_news_) Plan();
    const std::int64_t end = num_in_flight_ > 0 ? flight(oldest_).end_ns : kNever;
    // an arrival matters at once only if a step could be planned for it
    const std::int64_t arrival =
        CanPlan() ? feed.NextArrival({now_ns_, num_alive_, num_waiting_}) : kNever;
    const std::int64_t copied = copies_.empty() ? kNever : copies_.front().end_ns;
    next_event_ = std::min({end, arrival, copied});
    if (next_event_ > until_ns || next_event_ == kNever) return;
    PassTime(std::max(next_event_, now_ns_));
    if (copied == next_event_) {
      FinishCopies();
    } else if (end <= arrival) {
      Retire();
    }
  }
}

void Replica::Deliver(Feed& feed) {
  while (feed.NextArrival({now_ns_, num_alive_, num_waiting_}) <= now_ns_) {
    std::int64_t number = 0;
    const SimulatedRequest request = feed.Take(number);
    Submit(request, number);
  }
}

void Replica::Submit(const SimulatedRequest& request, std::int64_t number) {
  if (free_slots_.empty()) {
    free_slots_.push_back(static_cast<std::int32_t>(live_.size()));
    live_.emplace_back();
  }
  const auto slot = static_cast<std::size_t>(free_slots_.back());
  RequestNumbers numbers;
  numbers.temperature = 0.0;
  numbers.seed = SeedOf(request, number);
  if (request.max_tokens > 0) {
    numbers.max_tokens = std::min(request.max_tokens, config_.max_len() - request.prompt_len);
  }
  SubmitOptions options;
  options.priority = request.priority;
  options.tenant = Text(request.tenant);
  options.true_output_len = request.output_len;
  scheduler_.Submit(num_submitted_++ << 32 | static_cast<std::int64_t>(slot),
                    prompts_.Write(request, number), RequestParams(numbers), std::move(options));
  free_slots_.pop_back();
  live_[slot] = {number, request.arrival_ns, 0, 0, 0};
  RequestRecord& record = records_[static_cast<std::size_t>(number)];
  record.arrival_s = Seconds(request.arrival_ns);
  record.prompt_len = request.prompt_len;
  record.output_len = request.output_len;
  record.replica = index_;
  record.tenant = request.tenant;
  ++num_alive_;
  ++num_waiting_;
  has_news_ = true;
}

// Plans until the pipeline is full or nothing can run.
void Replica::Plan() {
  has_news_ = false;
  scheduler_.SetTime(now_ns_ / 1000);
  while (CanPlan()) {
    const std::int32_t buffer = scheduler_.Schedule();
    if (buffer < 0) break;
    const std::span<const std::int32_t> plan = memory_.buffers()[static_cast<std::size_t>(buffer)];
    const StepFeatures features = FeaturesOf(plan);
    StartCopies(plan[step_plan::kHeaderStep], plan[step_plan::kHeaderCopies + 1]);
    // a plan without rows carries copies alone
    const double seconds = features.num_rows > 0 ? config_.step_time.Of(features).total() : 0.0;
    const std::int64_t start_ns = std::max(now_ns_, device_free_ns_);
    device_free_ns_ = start_ns + std::max<std::int64_t>(std::llround(seconds * kNanoseconds), 1);
    Flight& next = flight(oldest_ + num_in_flight_++);
    next.end_ns = device_free_ns_;
    next.step = plan[step_plan::kHeaderStep];
    next.num_sampled = executor_.Sample(plan, next.tokens);
    ++num_steps_;
    num_scheduled_tokens_ += features.num_tokens;
    busy_s_ += seconds;
  }
  const SchedulerStats stats = scheduler_.stats();
  held_share_ = 1.0 - static_cast<double>(stats.num_free_blocks) / stats.num_blocks;
  cached_share_ = static_cast<double>(stats.num_cached_blocks) / stats.num_blocks;
}

void Replica::StartCopies(std::int32_t step, std::int32_t count) {
  if (count == 0) return;
  const std::int64_t start_ns = copies_.empty() ? now_ns_ : copies_.back().end_ns;
  const double seconds = count * config_.scheduler.transfer_block_s;
  copies_.push_back({start_ns + std::llround(seconds * kNanoseconds), step});
}

void Replica::FinishCopies() {
  scheduler_.TransferDone(copies_.front().step);
  copies_.pop_front();
  has_news_ = true;
}

void Replica::Retire() {
  Flight& done = flight(oldest_);
  oldest_ ^= 1;
  --num_in_flight_;
  last_end_ = now_ns_;
  const StepResult& result = scheduler_.Update(done.step, done.tokens);
  num_waiting_ -= static_cast<std::int32_t>(result.started.size());
  std::int32_t num_emitted = 0;
  for (std::size_t i = 0; i < result.request_ids.size(); ++i) {
    const auto slot = static_cast<std::size_t>(result.request_ids[i] & kSlotMask);
    if (result.token_ids[i] >= 0) TakeToken(slot, num_emitted);
    if (result.finish[i] != FinishReason::kNone) Finish(slot, result, i);
  }
  num_wasted_tokens_ += done.num_sampled - num_emitted;
  has_news_ = true;
}

void Replica::TakeToken(std::size_t slot, std::int32_t& num_emitted) {
  Live& live = live_[slot];
  ++num_emitted;
  if (live.num_tokens++ == 0) {
    records_[static_cast<std::size_t>(live.number)].ttft_s =
        static_cast<float>(Seconds(now_ns_ - live.arrival_ns));
  } else {
    live.max_gap_ns = std::max(live.max_gap_ns, now_ns_ - live.last_token_ns);
  }
  live.last_token_ns = now_ns_;
}

void Replica::Finish(std::size_t slot, const StepResult& result, std::size_t entry) {
  const Live& live = live_[slot];
  RequestRecord& record = records_[static_cast<std::size_t>(live.number)];
  record.e2e_s = static_cast<float>(Seconds(now_ns_ - live.arrival_ns));
  record.max_gap_s = static_cast<float>(Seconds(live.max_gap_ns));
  record.output_len = live.num_tokens;
  record.num_cached = result.num_cached[entry];
  record.num_preemptions = result.num_preemptions[entry];
  record.is_done = 1;
  free_slots_.push_back(static_cast<std::int32_t>(slot));
  --num_alive_;
  ++ended_.num_requests;
  ended_.num_prompt_tokens += record.prompt_len;
  ended_.num_output_tokens += record.output_len;
}

// Moves the clock, and counts what was held meanwhile.
void Replica::PassTime(std::int64_t now_ns) {
  const double seconds = Seconds(now_ns - now_ns_);
  now_ns_ = now_ns;
  held_s_ += held_share_ * seconds;
  cached_s_ += cached_share_ * seconds;
  if (num_waiting_ == 0) return;
  queued_s_ += seconds;
  held_queued_s_ += held_share_ * seconds;
}

TimelinePoint Replica::Sample() const {
  const SchedulerStats stats = scheduler_.stats();
  return {Seconds(now_ns_), stats.num_running, stats.num_waiting,
          std::int64_t{stats.num_blocks} - stats.num_free_blocks, stats.num_cached_blocks};
}

Replica::Ended Replica::TakeEnded() { return std::exchange(ended_, {}); }

void Replica::AddTo(SimulationResult& result, double& queued_s) const {
  Add(result.totals, scheduler_.stats());
  result.duration_s = std::max(result.duration_s, Seconds(last_end_));
  result.num_scheduled_tokens += num_scheduled_tokens_;
  result.num_wasted_tokens += num_wasted_tokens_;
  result.step_seconds += busy_s_;
  result.busy_share += busy_s_;
  result.held_share += held_s_;
  result.held_share_queued += held_queued_s_;
  result.cached_share += cached_s_;
  queued_s += queued_s_;
}

}  // namespace runtime::simulation
