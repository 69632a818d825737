#include "scheduler/past_future.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "scheduler/tenants.h"

namespace runtime {
namespace {

// 2^32 over the golden ratio: multiples of it, modulo 2^32, spread evenly however many there are.
constexpr std::uint32_t kGoldenStep = 0x9e3779b9;

// Early ends say little while many run. The share and the least number keep a cold start from
// admitting too much, and it short (docs/simulation.md has the runs).
constexpr std::int32_t kUnknownShare = 8;
constexpr std::int32_t kMinUnknown = 8;

std::int32_t MaxBlocks(const SchedulerConfig& config, std::int32_t num_blocks) {
  return std::min(config.max_num_blocks_per_seq(), num_blocks);
}

}  // namespace

HistoryForecast::HistoryForecast(const SchedulerConfig& config)
    : window_(config.length_window),
      num_unknown_(std::min(std::max(config.max_num_seqs / kUnknownShare, kMinUnknown), window_)),
      everybody_(window_, num_unknown_) {}

std::int32_t HistoryForecast::EndOf(const Request& request) const {
  if (request.is_scoring()) return request.max_len;
  const LengthHistory* own = request.tenant->lengths.get();
  const LengthHistory& history = own != nullptr && own->is_known() ? *own : everybody_;
  const std::int32_t produced = request.num_tokens() - request.prompt_len;
  const std::uint32_t quantile = static_cast<std::uint32_t>(request.arrival) * kGoldenStep;
  std::int32_t length = history.Quantile(produced, quantile, request.length_rank);
  if (length == LengthHistory::kUnknown) {
    if (!history.is_known()) return request.max_len;
    length = 2 * produced;
  }
  return std::min(length, request.max_len - request.prompt_len) + request.prompt_len;
}

void HistoryForecast::OnFinished(const Request& request) {
  if (request.is_scoring()) return;
  auto& own = request.tenant->lengths;
  if (own == nullptr) own = std::make_unique<LengthHistory>(window_, num_unknown_);
  own->Add(request.num_outputs());
  everybody_.Add(request.num_outputs());
}

std::int32_t OracleForecast::EndOf(const Request& request) const {
  if (request.true_output_len == 0) return request.max_len;
  return std::min(request.prompt_len + request.true_output_len, request.max_len);
}

PastFutureAdmission::PastFutureAdmission(const SchedulerConfig& config, std::int32_t num_blocks,
                                         std::unique_ptr<Forecast> forecast)
    : forecast_(std::move(forecast)),
      limit_(num_blocks - std::llround(std::ceil(config.admission_reserve * num_blocks))),
      use_(MaxBlocks(config, num_blocks)) {}

bool PastFutureAdmission::Admits(const AdmissionView& view) {
  if (view.running.empty()) return true;
  is_current_ = PeakWith(view) <= limit_;
  return is_current_;
}

std::int64_t PastFutureAdmission::PeakWith(const AdmissionView& view) {
  if (!is_current_) Count(view);
  if (view.is_protected) {
    constant_ += view.num_needed;
  } else {
    const auto num_known = static_cast<std::int32_t>(view.candidate.tokens.size());
    Add(view, view.candidate, view.num_needed, view.kv.BlocksFor(num_known));
  }
  return constant_ + use_.Peak();
}

void PastFutureAdmission::Count(const AdmissionView& view) {
  use_.Clear();
  constant_ = view.kv.num_blocks() - view.kv.num_available();
  for (const Request* request : view.running) {
    if (request->kv.num_reserved > 0) continue;
    const std::int32_t end =
        view.kv.BlocksFor(std::max(request->prefill_len, request->num_computed));
    const std::int32_t has = end - view.kv.NumShared(request->kv);
    Add(view, *request, has, end);
    constant_ -= has - (end - request->kv.table.size());
  }
}

// `has`: what only it refers to; `end`: the blocks of its table once its prompt is computed.
void PastFutureAdmission::Add(const AdmissionView& view, const Request& request, std::int32_t has,
                              std::int32_t end) {
  // the last token needs no KV
  const std::int32_t last = view.kv.BlocksFor(forecast_->EndOf(request) - 1);
  use_.Add(has, std::max(last - end, 0));
}

}  // namespace runtime
