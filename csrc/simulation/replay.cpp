// Replays an event log.
#include <algorithm>
#include <array>
#include <span>
#include <unordered_map>
#include <utility>

#include "runtime/error.h"
#include "runtime/event_log.h"
#include "runtime/scheduler.h"
#include "runtime/step_plan.h"
#include "scheduler/recorder.h"
#include "simulation/replay_log.h"
#include "simulation/replay_tokens.h"

namespace runtime {
namespace {

namespace plan = step_plan;
using event_log::Word;

constexpr std::int64_t kNoRequest = -1;         // whose blocks a pin's are
constexpr std::int64_t kHeartbeatEvery = 4096;  // records

std::string NameOf(Word tenant) { return std::to_string(tenant); }

// The recorded settings, with what a log leaves out made up.
SchedulerConfig ConfigOf(const event_log::Header& header) {
  SchedulerConfig config = header.config;
  config.eos_token_ids = {ReplayTokens::kEos};
  for (const auto& [tenant, weight] : header.tenant_weights) {
    config.tenant_weights[NameOf(tenant)] = weight;
  }
  return config;
}

// So many words of lists in a new_rows record: an allowed id is one, a bias two.
void SetListWords(RequestNumbers& numbers, std::int64_t count, std::int64_t vocab_size) {
  const std::int64_t num_biases =
      std::clamp<std::int64_t>((count - vocab_size + 1) / 2, 0, RequestParams::kMaxLogitBias);
  for (std::int64_t id = 0; id < num_biases; ++id) numbers.logit_bias.emplace_back(id, 1.0);
  const std::int64_t num_allowed = std::min(count - 2 * num_biases, vocab_size);
  if (num_allowed <= 0) return;
  auto& allowed = numbers.allowed_token_ids.emplace();
  for (std::int64_t id = 0; id < num_allowed; ++id) allowed.push_back(id);
}

// A scheduler that lives through the log again.
class Replayed {
 public:
  Replayed(const event_log::Header& header, ReplayTokens& tokens)
      : config_(ConfigOf(header)),
        tokens_(tokens),
        allocator_(header.num_blocks),
        scheduler_(config_, allocator_),
        owners_(static_cast<std::size_t>(config_.max_num_seqs)) {
    std::vector<PlanBuffer> buffers;
    for (std::int32_t i = 0; i <= config_.num_steps_in_flight; ++i) {
      buffers_.emplace_back(static_cast<std::size_t>(scheduler_.plan_capacity()));
    }
    for (auto& buffer : buffers_) buffers.emplace_back(buffer);
    scheduler_.AttachPlanBuffers(buffers);
  }

  std::int64_t num_requests() const { return num_requests_; }
  std::int64_t num_steps() const { return num_steps_; }
  std::int64_t passed_us() const { return now_us_ - first_us_; }
  const std::optional<ReplayReport::Difference>& difference() const { return difference_; }

  void operator()(const event_log::Clock& clock) {
    now_us_ += clock.passed_us;
    if (first_us_ == 0) first_us_ = now_us_;
    scheduler_.SetTime(now_us_);
  }

  void operator()(event_log::Submit submit) {
    RequestNumbers numbers;
    numbers.temperature = 0.0;
    numbers.seed = num_requests_;  // tells which request a row is of
    numbers.presence_penalty = submit.has_penalties ? 1.0 : 0.0;
    if (submit.max_tokens > 0) numbers.max_tokens = submit.max_tokens;
    SetListWords(numbers, submit.num_list_words, config_.vocab_size);
    const auto sequence = tokens_.SequenceOf(num_requests_, std::move(submit.blocks));
    std::vector<TokenId> prompt(
        static_cast<std::size_t>(std::clamp(submit.prompt_len, 0, config_.max_model_len + 1)));
    for (std::size_t i = 0; i < prompt.size(); ++i) {
      prompt[i] = tokens_.At(sequence, static_cast<std::int32_t>(i));
    }
    scheduler_.Submit(
        num_requests_, std::move(prompt), RequestParams(numbers),
        {{}, submit.score_start, submit.priority, NameOf(submit.tenant), submit.true_output_len});
    alive_[num_requests_++] = sequence;
    Deliver();
  }

  void operator()(const event_log::Abort& abort) {
    scheduler_.Abort(abort.request);
    Deliver();
  }

  void operator()(const event_log::Stop& stop) {
    scheduler_.Stop(stop.request, stop.num_kept);
    Deliver();
  }

  void operator()(const event_log::ResetPrefixCache&) {
    scheduler_.ResetPrefixCache();
    Deliver();
  }

  void operator()(const event_log::TransferDone& done) { scheduler_.TransferDone(done.step); }

  void operator()(event_log::Pin pin) {
    std::vector<TokenId> tokens(pin.pinned.size() * static_cast<std::size_t>(config_.block_size));
    const auto sequence = tokens_.SequenceOf(kNoRequest, std::move(pin.pinned));
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      tokens[i] = tokens_.At(sequence, static_cast<std::int32_t>(i));
    }
    scheduler_.Pin(tokens);
  }

  void operator()(const event_log::Unpin& unpin) { scheduler_.Unpin(unpin.pin); }

  void operator()(const event_log::Plan& recorded) {
    const std::int32_t buffer = scheduler_.Schedule();
    if (buffer < 0) return Differ(recorded.decision, {});
    const std::span<const std::int32_t> words = buffers_[static_cast<std::size_t>(buffer)];
    const Word decision = DecisionOf(words);
    if (decision != recorded.decision) return Differ(recorded.decision, decision);
    ++num_steps_;
    Launch(words);
  }

  void operator()(const event_log::NoPlan&) {
    const std::int32_t buffer = scheduler_.Schedule();
    if (buffer >= 0) Differ({}, DecisionOf(buffers_[static_cast<std::size_t>(buffer)]));
  }

  void operator()(const event_log::Update& update) {
    Flight& done = flights_[0];
    for (const auto& [row, is_error] : update.ends) {
      if (row < 0 || row >= static_cast<std::int32_t>(done.tokens.size())) {
        throw InvalidArgument("row " + std::to_string(row) + " of a step of " +
                              std::to_string(done.tokens.size()) + " rows");
      }
      done.tokens[static_cast<std::size_t>(row)] = is_error ? -1 : ReplayTokens::kEos;
    }
    Forget(scheduler_.Update(done.step, done.tokens));
    std::swap(flights_[0], flights_[1]);
    --num_in_flight_;
  }

 private:
  struct Flight {
    std::int32_t step = 0;
    std::vector<TokenId> tokens;
  };

  // An event reached the recorded scheduler before its next call.
  void Deliver() { Forget(scheduler_.TakeEvents()); }

  void Forget(const StepResult& result) {
    for (std::size_t i = 0; i < result.finish.size(); ++i) {
      if (result.finish[i] != FinishReason::kNone) alive_.erase(result.request_ids[i]);
    }
  }

  void Differ(std::optional<Word> expected, std::optional<Word> found) {
    difference_ = {num_steps_ + 1, expected, found};
  }

  // Samples what the step will bring unless it ends a request.
  void Launch(std::span<const std::int32_t> words) {
    const auto at = [&](std::int32_t header) {
      return &words[static_cast<std::size_t>(words[static_cast<std::size_t>(header)])];
    };
    const std::int32_t* record = at(plan::kHeaderNewRows);
    for (std::int32_t i = words[plan::kHeaderNewRows + 1]; i > 0; --i) {
      const auto low = static_cast<std::uint32_t>(record[plan::kNewRowSeedLow]);
      owners_[static_cast<std::size_t>(record[plan::kNewRowRow])] =
          std::int64_t{record[plan::kNewRowSeedHigh]} << 32 | low;
      record += plan::kNewRowWords;
    }
    Flight& flight = flights_[static_cast<std::size_t>(num_in_flight_++)];
    flight.step = words[plan::kHeaderStep];
    flight.tokens.resize(static_cast<std::size_t>(words[plan::kHeaderNumRows]));
    const std::int32_t* row = at(plan::kHeaderRows);
    for (TokenId& token : flight.tokens) {
      const auto& sequence = alive_.at(owners_[static_cast<std::size_t>(row[0])]);
      token = tokens_.At(sequence, row[1] + row[2]);
      row += plan::kRowWords;
    }
  }

  const SchedulerConfig config_;
  ReplayTokens& tokens_;
  BlockAllocator allocator_;
  Scheduler scheduler_;
  std::vector<std::vector<std::int32_t>> buffers_;
  std::vector<std::int64_t> owners_;  // request, by row
  std::unordered_map<std::int64_t, ReplayTokens::Sequence> alive_;
  std::array<Flight, 2> flights_;  // oldest first
  std::int32_t num_in_flight_ = 0;
  std::int64_t now_us_ = 0, first_us_ = 0;
  std::int64_t num_requests_ = 0;
  std::int64_t num_steps_ = 0;
  std::optional<ReplayReport::Difference> difference_;
};

// Shows `tokens` which blocks the log has. What is wrong with the log is for the replay to say.
void LookAhead(RecordReader& file, ReplayTokens& tokens) {
  std::int64_t num_requests = 0;
  const auto see = [&](const auto& record) {
    if constexpr (requires { record.prompt_len; }) {
      tokens.Expect(num_requests++, record.blocks);
    } else if constexpr (requires { record.pinned; }) {
      tokens.Expect(kNoRequest, record.pinned);
    } else if constexpr (requires { record.ends; }) {
      for (const auto& [request, block] : record.blocks) tokens.Expect(request, block);
    }
  };
  try {
    while (!file.AtEnd()) event_log::ReadNext(file, see);
  } catch (const ConfigError&) {
  }
}

event_log::Header ReadHeader(RecordReader& file) {
  if (file.AtEnd()) file.Refuse("there is no header");
  event_log::In{file}.Number(0, 0);
  auto header = event_log::Read<event_log::Header>(file);
  if (header.num_blocks < 1 || header.num_blocks > (1 << 28)) {
    file.Refuse("num_blocks is " + std::to_string(header.num_blocks));
  }
  ConfigOf(header).Validate();
  return header;
}

// True once there is nothing more to replay.
bool ReplayNext(RecordReader& file, Replayed& replayed, std::string& damage) {
  try {
    if (file.AtEnd()) return true;
    try {
      event_log::ReadNext(file, replayed);
    } catch (const ConfigError&) {
      throw;
    } catch (const Error& error) {
      file.Refuse(std::string("an event that cannot be: ") + error.what());
    }
  } catch (const ConfigError& error) {
    damage = error.what();
    return true;
  }
  return replayed.difference().has_value();
}

}  // namespace

ReplayReport Replay(const std::string& path, const std::function<void()>& heartbeat) {
  RecordReader file(path, event_log::kVersion);
  const event_log::Header header = ReadHeader(file);
  ReplayTokens tokens(header.config);
  LookAhead(file, tokens);
  file.Rewind();
  ReadHeader(file);
  Replayed replayed(header, tokens);
  ReplayReport report;
  for (std::int64_t count = 1; !ReplayNext(file, replayed, report.damage); ++count) {
    if (heartbeat && count % kHeartbeatEvery == 0) heartbeat();
  }
  report.num_steps = replayed.num_steps();
  report.num_requests = replayed.num_requests();
  report.seconds = static_cast<double>(replayed.passed_us()) * 1e-6;
  report.runtime_version = header.runtime_version;
  report.difference = replayed.difference();
  return report;
}

}  // namespace runtime
