#include "scheduler/recorder.h"

#include <bit>
#include <concepts>
#include <random>
#include <type_traits>
#include <utility>

#include "runtime/step_plan.h"
#include "runtime/version.h"

namespace runtime {
namespace {

namespace plan = step_plan;
using Words = std::span<const std::int32_t>;

// Writes each field that a record's Visit shows.
struct Out {
  RecordWriter& file;

  void operator()(event_log::Word word) { file.PutWord(word); }
  void operator()(double value) { file.PutWord(std::bit_cast<std::uint64_t>(value)); }
  void operator()(const std::string& text) { file.PutText(text); }
  void operator()(std::integral auto value) { file.Put(static_cast<std::int64_t>(value)); }
  template <typename Enum>
  void Choice(Enum value, Enum) {
    file.Put(static_cast<std::int64_t>(value));
  }
  template <typename Item>
  void operator()(std::vector<Item>& items) {
    file.Put(static_cast<std::int64_t>(items.size()));
    for (Item& item : items) {
      if constexpr (std::is_class_v<Item>) {
        item.Visit(*this);
      } else {
        (*this)(item);
      }
    }
  }
  void operator()(const std::map<event_log::Word, double>& items) {
    file.Put(static_cast<std::int64_t>(items.size()));
    for (const auto& [key, value] : items) {
      (*this)(key);
      (*this)(value);
    }
  }
};

Hash128 RandomKey() {
  std::random_device random;
  const auto word = [&] { return std::uint64_t{random()} << 32 | random(); };
  const std::uint64_t low = word();
  return {low, word()};
}

Words Section(Words words, std::int32_t header, std::int32_t words_each) {
  const auto at = static_cast<std::size_t>(header);
  return words.subspan(static_cast<std::size_t>(words[at]),
                       static_cast<std::size_t>(words[at + 1] * words_each));
}

}  // namespace

std::uint64_t DecisionOf(Words words) {
  Hash128 hash;
  const auto add = [&hash](Words part) { hash = SipHash128(hash, std::as_bytes(part)); };
  add(words.subspan(plan::kHeaderStep, 1));
  add(Section(words, plan::kHeaderRows, plan::kRowWords));
  add(Section(words, plan::kHeaderNewBlocks, plan::kNewBlockWords));
  add(Section(words, plan::kHeaderCopies, plan::kCopyWords));
  add(Section(words, plan::kHeaderFreedRows, 1));
  const Words records = Section(words, plan::kHeaderNewRows, plan::kNewRowWords);
  for (std::size_t at = 0; at < records.size(); at += plan::kNewRowWords) {
    add(records.subspan(at, plan::kNewRowEpoch + 1));
    add(records.subspan(at + plan::kNewRowPromptLen, 1));
  }
  return hash.low;
}

Recorder::Recorder(const std::string& path, const SchedulerConfig& config, std::int32_t num_blocks)
    : block_size_(config.enable_prefix_caching ? config.block_size : 0),
      key_(RandomKey()),
      file_(path, event_log::kVersion) {
  event_log::Header header{Version(), num_blocks, config, {}};
  for (const auto& [tenant, weight] : config.tenant_weights) {
    header.tenant_weights[HashOf(tenant).low] = weight;
  }
  Write(std::move(header));
  file_.Flush();
}

void Recorder::Write(auto record) {
  Out out{file_};
  file_.Put(static_cast<std::int64_t>(record.kKind));
  record.Visit(out);
  file_.EndRecord();
}

Hash128 Recorder::HashOf(const std::string& text) const {
  return SipHash128(key_, std::as_bytes(std::span(text)));
}

void Recorder::TakeFullBlocks(Request& request, auto take) const {
  if (block_size_ == 0) return;
  const auto size = static_cast<std::size_t>(block_size_);
  const std::span<const TokenId> tokens(request.tokens);
  auto& [tail, count] = request.trail;
  for (; (count + 1) * size <= tokens.size(); ++count) {
    tail = SipHash128(tail, std::as_bytes(tokens.subspan(count * size, size)));
    take(tail.low);
  }
}

void Recorder::OnTime(std::int64_t now_us) {
  if (now_us == time_us_) return;
  Write(event_log::Clock{now_us - std::exchange(time_us_, now_us)});
  if (now_us - flushed_us_ < kFlushEveryUs) return;
  flushed_us_ = now_us;
  file_.Flush();
}

void Recorder::OnSubmit(Request& request) {
  const RequestParams& params = request.params;
  event_log::Submit submit;
  submit.prompt_len = request.prompt_len;
  submit.max_tokens = params.max_tokens().value_or(0);
  submit.score_start = request.score_start;
  submit.priority = request.priority;
  submit.true_output_len = request.true_output_len;
  submit.num_list_words =
      static_cast<std::int32_t>(2 * params.logit_bias().size() + params.allowed_token_ids().size() +
                                request.masked_ids.size());
  submit.has_penalties = params.has_penalties();
  submit.tenant = HashOf(request.tenant_name).low;
  request.trail.tail = HashOf(request.kv.chain.salt);
  TakeFullBlocks(request, [&](event_log::Word block) { submit.blocks.push_back(block); });
  Write(std::move(submit));
}

void Recorder::OnAbort(const Request& request) { Write(event_log::Abort{request.arrival}); }

void Recorder::OnStop(const Request& request, std::int32_t num_kept) {
  Write(event_log::Stop{request.arrival, num_kept});
}

void Recorder::OnResetPrefixCache() { Write(event_log::ResetPrefixCache{}); }

void Recorder::OnPlan(Words words) { Write(event_log::Plan{DecisionOf(words)}); }

void Recorder::OnNoPlan() { Write(event_log::NoPlan{}); }

void Recorder::OnTransferDone(std::int32_t step) { Write(event_log::TransferDone{step}); }

void Recorder::OnPin(std::span<const TokenId> tokens, const std::string& salt) {
  event_log::Pin pin;
  const auto size = static_cast<std::size_t>(block_size_);
  Hash128 tail = HashOf(salt);
  for (std::size_t end = size; end <= tokens.size(); end += size) {
    tail = SipHash128(tail, std::as_bytes(tokens.subspan(end - size, size)));
    pin.pinned.push_back(tail.low);
  }
  Write(std::move(pin));
}

void Recorder::OnUnpin(std::int64_t pin) { Write(event_log::Unpin{pin}); }

void Recorder::OnToken(Request& request) {
  TakeFullBlocks(
      request, [&](event_log::Word block) { update_.blocks.push_back({request.arrival, block}); });
}

void Recorder::OnEnd(std::int32_t row, bool is_error) { update_.ends.push_back({row, is_error}); }

void Recorder::OnUpdate() {
  Out out{file_};
  file_.Put(static_cast<std::int64_t>(update_.kKind));
  update_.Visit(out);
  file_.EndRecord();
  update_.ends.clear();
  update_.blocks.clear();
}

}  // namespace runtime
