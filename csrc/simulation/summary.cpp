#include <algorithm>
#include <cmath>
#include <vector>

#include "runtime/simulation.h"

namespace runtime::simulation {
namespace {

double Percentile(std::vector<float>& values, double share) {
  // the nearest rank: the least value that so large a share does not exceed
  const auto rank = static_cast<std::size_t>(std::ceil(share * static_cast<double>(values.size())));
  const auto at = values.begin() + static_cast<std::ptrdiff_t>(std::max<std::size_t>(rank, 1) - 1);
  std::ranges::nth_element(values, at);
  return *at;
}

Percentiles Of(std::vector<float>& values) {
  if (values.empty()) return {};
  double sum = 0.0;
  for (const float value : values) sum += value;
  return {sum / static_cast<double>(values.size()), Percentile(values, 0.5),
          Percentile(values, 0.9), Percentile(values, 0.99)};
}

template <typename Figure>
Percentiles Over(const std::vector<RequestRecord>& requests, Figure figure) {
  std::vector<float> values;
  values.reserve(requests.size());
  for (const RequestRecord& request : requests) {
    const auto value = static_cast<float>(figure(request));
    if (request.is_done != 0 && !std::isnan(value)) values.push_back(value);
  }
  return Of(values);
}

}  // namespace

double RequestRecord::tpot_s() const {
  return (static_cast<double>(e2e_s) - static_cast<double>(ttft_s)) /
         (output_len > 1 ? output_len - 1 : std::nan(""));
}

bool Slo::IsMet(const RequestRecord& request) const {
  const double tpot = request.output_len > 1 ? request.tpot_s() : 0.0;
  return request.is_done != 0 && request.ttft_s <= ttft_s && tpot <= tpot_s &&
         request.e2e_s <= e2e_s && request.max_gap_s <= gap_s;
}

Summary Summarize(const SimulationResult& result, const Slo& slo) {
  Summary summary;
  std::int64_t num_good = 0, num_prompt = 0, num_output = 0, num_cached = 0;
  for (const RequestRecord& request : result.requests) {
    if (request.is_done == 0) continue;
    ++summary.num_done;
    num_good += slo.IsMet(request);
    num_prompt += request.prompt_len;
    num_output += request.output_len;
    num_cached += request.num_cached;
  }
  using R = RequestRecord;
  summary.ttft_s = Over(result.requests, [](const R& r) { return r.ttft_s; });
  summary.tpot_s = Over(result.requests, [](const R& r) { return r.tpot_s(); });
  summary.e2e_s = Over(result.requests, [](const R& r) { return r.e2e_s; });
  summary.max_gap_s = Over(result.requests, [](const R& r) { return r.max_gap_s; });
  const double seconds = std::max(result.duration_s, 1e-9);
  const auto done = static_cast<double>(std::max<std::int64_t>(summary.num_done, 1));
  summary.requests_per_s = static_cast<double>(summary.num_done) / seconds;
  summary.output_tokens_per_s = static_cast<double>(num_output) / seconds;
  summary.total_tokens_per_s = static_cast<double>(num_prompt + num_output) / seconds;
  summary.goodput_per_s = static_cast<double>(num_good) / seconds;
  summary.slo_share = static_cast<double>(num_good) / done;
  summary.cached_share =
      static_cast<double>(num_cached) / static_cast<double>(std::max<std::int64_t>(num_prompt, 1));
  return summary;
}

}  // namespace runtime::simulation
