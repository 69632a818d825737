#include "runtime/roofline.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <utility>

#include "common/json.h"
#include "common/text.h"
#include "runtime/error.h"

namespace runtime {
namespace {

constexpr std::int32_t kMaxGraphRows = 512;
constexpr double kActivationBytes = 2.0;  // of one value that an all-reduce sums
constexpr double kTile = StepFeatures::kTileLen;

// Sizes of steps that StepTimes computes; others lie between two of them.
std::vector<std::int32_t> BucketSizes() {
  std::vector<std::int32_t> sizes{1, 2, 4};
  for (std::int32_t size = 8; size < 128; size += 8) sizes.push_back(size);
  for (std::int32_t size = 128; size < 512; size += 16) sizes.push_back(size);
  for (std::int32_t size = 512; size < 1024; size += 64) sizes.push_back(size);
  for (std::int32_t i = 0; i < 6; ++i) sizes.push_back(1024 << i);
  return sizes;
}

// 0 as "0.0": a number of Python's, where most of these come from.
std::string Shown(double value) { return std::isfinite(value) ? JsonNumber(value) : Text(value); }

constexpr std::array<KnownDevice, 2> kDevices{{
    {"h200", "NVIDIA H200", {}},
    {"h100",
     "NVIDIA H100 80GB HBM3",
     {.bandwidth = 3.0e12, .flops = 780e12, .memory = 81559.0 * (1 << 20)}},
}};

}  // namespace

std::span<const KnownDevice> KnownDevices() { return kDevices; }

double DeviceLimits::AllReduceSeconds(double num_bytes, std::int32_t tp) const {
  if (tp == 1) return 0.0;
  const double share = 2.0 * (tp - 1) / tp * num_bytes;
  return std::min({one_shot_s + (tp - 1) * num_bytes / link, two_shot_s + share / link,
                   ring_s + share / bus_bandwidth});
}

void DeviceLimits::Validate() const {
  for (const auto& [name, value] : {std::pair{"bandwidth", bandwidth},
                                    {"flops", flops},
                                    {"link", link},
                                    {"bus_bandwidth", bus_bandwidth},
                                    {"memory", memory}}) {
    RequireSetting(value > 0.0, name, Shown(value), "above 0");
    RequireSetting(std::isfinite(value), name, Shown(value), "finite");
  }
  for (const auto& [name, value] : {std::pair{"one_shot_s", one_shot_s},
                                    {"two_shot_s", two_shot_s},
                                    {"ring_s", ring_s},
                                    {"reserve", reserve},
                                    {"launch_s", launch_s},
                                    {"host_s", host_s}}) {
    RequireSetting(value >= 0.0, name, Shown(value), "at least 0");
    RequireSetting(std::isfinite(value), name, Shown(value), "finite");
  }
  RequireSetting(utilization > 0.0 && utilization <= 1.0, "utilization", Shown(utilization),
                 "above 0 and at most 1");
}

Roofline::Roofline(const ModelShape& shape, const DeviceLimits& device,
                   const RooflineOptions& options)
    : shape_(shape), device_(device), options_(options) {
  device.Validate();
  if (options.tp < 1 || shape.heads % options.tp != 0) {
    throw ConfigError("tp=" + std::to_string(options.tp) + ": must divide the model's " +
                      std::to_string(shape.heads) + " heads");
  }
  RequireSetting(options.weight_bytes > 0.0 && options.weight_bytes <= 8.0, "weight_bytes",
                 options.weight_bytes, "above 0 and at most 8");
  RequireSetting(options.kv_bytes > 0.0 && options.kv_bytes <= 8.0, "kv_bytes", options.kv_bytes,
                 "above 0 and at most 8");
}

double Roofline::GemmSeconds(double num_tokens, double num_sampled) const {
  const double products = 2 * (shape_.active() * num_tokens + shape_.head * num_sampled);
  return std::max(shape_.Read(num_tokens) * options_.weight_bytes / options_.tp / device_.bandwidth,
                  products / options_.tp / device_.flops);
}

// A pair is a query and a key that it sees; each takes two products of the heads' width.
double Roofline::AttentionSeconds(double kv_tokens_read, double num_pairs) const {
  const double width = static_cast<double>(shape_.heads * shape_.head_dim * shape_.layers);
  return std::max(kv_tokens_read * KvBytesPerToken() / device_.bandwidth,
                  num_pairs * (4 * (width / options_.tp / device_.flops)));
}

double Roofline::CollectiveSeconds(double num_tokens) const {
  const double num_bytes = num_tokens * static_cast<double>(shape_.hidden) * kActivationBytes;
  return static_cast<double>(2 * shape_.layers + 1) *
         device_.AllReduceSeconds(num_bytes, options_.tp);
}

StepTime Roofline::Decode(double batch, double context) const {
  return {.launch = device_.launch_s,
          .gemm = GemmSeconds(batch, batch),
          .attention = AttentionSeconds(batch * context, batch * context),
          .collectives = CollectiveSeconds(batch),
          .host = device_.host_s};
}

// Causal attention computes half the square; it may keep KV on chip.
StepTime Roofline::Prefill(std::span<const std::int32_t> prompt_lens) const {
  double num_tokens = 0.0, num_pairs = 0.0;
  for (const double len : prompt_lens) {
    num_tokens += len;
    num_pairs += len * len / 2;
  }
  return {.launch = device_.launch_s,
          .gemm = GemmSeconds(num_tokens, static_cast<double>(prompt_lens.size())),
          .attention = AttentionSeconds(0.0, num_pairs),
          .collectives = CollectiveSeconds(num_tokens),
          .host = device_.host_s};
}

double Roofline::OfflineSeconds(std::span<const RequestLengths> requests) const {
  std::vector<std::int32_t> prompts;
  std::vector<RequestLengths> left(requests.begin(), requests.end());
  for (const RequestLengths& request : left) prompts.push_back(request.prompt_len);
  std::ranges::sort(left, std::ranges::greater{}, &RequestLengths::output_len);
  double num_prompt_tokens = 0.0, seconds = Prefill(prompts).total();
  for (const std::int32_t len : prompts) num_prompt_tokens += len;
  for (std::int32_t step = 1;; ++step) {  // a prompt's last step samples the first token
    while (!left.empty() && left.back().output_len <= step) {
      num_prompt_tokens -= left.back().prompt_len;
      left.pop_back();
    }
    if (left.empty()) return seconds;
    const auto batch = static_cast<double>(left.size());
    seconds += Decode(batch, num_prompt_tokens / batch + step).total();
  }
}

double Roofline::KvBytesPerToken() const {
  return shape_.KvValues(options_.tp) * options_.kv_bytes;
}

std::int64_t Roofline::KvTokens() const {
  const double weights = shape_.total() * options_.weight_bytes / options_.tp;
  const double free = device_.memory * device_.utilization - weights - device_.reserve;
  constexpr double kMost = 1e15;  // nothing has so much, and an integer holds it
  return static_cast<std::int64_t>(std::floor(std::clamp(free / KvBytesPerToken(), -kMost, kMost)));
}

StepTimeModel Roofline::StepTimes(std::int32_t max_num_seqs) const {
  StepTimeModel model;
  for (const std::int32_t tokens : BucketSizes()) {
    model.buckets.push_back({tokens, device_.launch_s,
                             GemmSeconds(tokens, std::min(tokens, max_num_seqs)),
                             CollectiveSeconds(tokens)});
  }
  model.max_graph_rows = kMaxGraphRows;
  model.decode_tile_s = AttentionSeconds(kTile, kTile);
  model.prefill_tile_s = AttentionSeconds(0.0, kTile * kTile);
  model.host_s = device_.host_s;
  return model;
}

}  // namespace runtime
